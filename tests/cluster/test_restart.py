"""A process of a training dies, and the launcher starts all of them anew: `--max_restarts`; `make test-cluster`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from training import OPTIONS, environment, make_shards, result, run

CONFIG = Path(__file__).parents[2] / "launch/accelerate/cpus.yaml"


def test_a_killed_rank_is_started_again_and_nothing_is_lost(tmp_path):
    options = OPTIONS | make_shards(tmp_path / "c") | {"epoch": 60, "patience": 10_000, "checkpoint_steps": 30}
    done = run(options | {"save_path": tmp_path / "straight"}, 3)
    assert done.returncode == 0, done.stderr[-3000:]

    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIG, "--num_processes", 3]
    command += ["--max_restarts", 2, "-m", "spkid_dist.train", *flags, "--resume", "auto"]
    command += ["--save_path", tmp_path / "killed"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen([*map(str, command)], env=environment(), **pipes)
    for line in job.stdout:
        if line.startswith("VALIDATION: epoch 5 "):
            ranks = {int(p.environ()["RANK"]): p for p in psutil.Process(job.pid).children() if "RANK" in p.environ()}
            os.kill(ranks[1].pid, signal.SIGKILL)
            break
    printed, errors = job.communicate(timeout=180)
    assert job.returncode == 0, errors[-3000:]
    assert "going on in epoch" in printed
    assert result(tmp_path / "killed") == result(tmp_path / "straight")
