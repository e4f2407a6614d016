"""A process of a training dies, and the launchers start all of them anew: `--max_restarts`; `make test-cluster`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from training import OPTIONS, environment, make_shards, run, statistics

ELASTIC = Path(__file__).parents[2] / "launch/accelerate/nodes_elastic.yaml"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return (
        OPTIONS
        | make_shards(tmp_path_factory.mktemp("corpus") / "c")
        | {"epoch": 20, "patience": 10_000, "checkpoint_steps": 30}
    )


@pytest.fixture(scope="module")
def straight(options, tmp_path_factory):
    """A training of three ranks without an interruption."""
    folder = tmp_path_factory.mktemp("straight") / "ckpt"
    done = run(options | {"save_path": folder}, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def one_machine():
    """Three processes of one launcher."""
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", 3, "--max-restarts", 2)
    return [launch]


def three_machines():
    """Three launchers of a process each."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = ("accelerate.commands.launch", "--config_file", ELASTIC, "--num_machines", 3, "--num_processes", 3)
    launch += (
        "--rdzv_backend",
        "c10d",
        "--max_restarts",
        2,
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        port,
    )
    # Rank 0 would refuse the port where another launcher of the same machine has opened it before; c10d gives ranks itself.
    return [(*launch, "--machine_rank", rank) for rank in (1, 2, 3)]


def rank_of(process):
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


@pytest.mark.parametrize("launchers", [one_machine, three_machines])
def test_a_killed_rank_is_started_again_and_nothing_is_lost(launchers, options, straight, tmp_path):
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    flags += ["--resume", "auto", "--save_path", tmp_path / "ckpt", "--timeout_minutes", 1]
    outputs, jobs = [], []
    for number, launch in enumerate(launchers()):
        outputs.append(tmp_path / f"{number}.log")
        command = [sys.executable, "-m", *launch, "-m", "spkid_dist.train", *flags]
        with outputs[-1].open("w") as output:
            variables = environment() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            jobs.append(subprocess.Popen([*map(str, command)], env=variables, stdout=output, stderr=output))
    try:
        wait_for_epoch(5, tmp_path / "ckpt/train.log", jobs)
        ranks = [child for job in jobs for child in psutil.Process(job.pid).children() if rank_of(child) == "1"]
        assert len(ranks) == 1
        os.kill(ranks[0].pid, signal.SIGKILL)
        codes = [job.wait(timeout=180) for job in jobs]
    finally:
        for job in jobs:
            job.terminate()
    printed = "\n".join(output.read_text() for output in outputs)
    assert codes == [0] * len(jobs), printed[-6000:]
    assert "continuing in epoch" in printed
    found, expected = statistics(tmp_path / "ckpt"), statistics(straight)
    for name in ("tr_loss", "va_loss"):  # three numbers have several sums, and DDP's first step takes others
        np.testing.assert_allclose(found[name], expected[name], rtol=5e-3)


def wait_for_epoch(epoch, log, jobs):
    while not (log.exists() and f"VALIDATION: epoch {epoch} " in log.read_text()):
        assert all(job.poll() is None for job in jobs)
        os.sched_yield()
