"""The commands in launch/ that no scheduler here would start, run as it would; `make test-cluster`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from training import OPTIONS, environment, make_shards

from shards.errors import EXIT_STOPPED

LAUNCH = Path(__file__).parents[2] / "launch"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def doctor_of(commands):
    """What `spkid doctor` has found, by commands of (words, variables), a node each."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    jobs = [
        subprocess.Popen(
            words,
            env=environment() | {"PATH": path} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, variables in commands
    ]
    ended = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), ended
    (line,) = (line for printed, _ in ended for line in printed.splitlines() if line.startswith("{"))
    return json.loads(line)


@pytest.mark.parametrize(("name", "processes"), [("gpu", 1), ("gpus", 2)])
def test_the_configurations_for_gpus_start_a_process_for_each(name, processes):
    on_gpus = torch.cuda.device_count() >= processes  # else CPUs stand in for them
    words = ["accelerate", "launch", "--config_file", LAUNCH / f"accelerate/{name}.yaml"]
    words += ["--num_processes", f"{processes}"] if processes > 1 else []
    variables = {"ACCELERATE_USE_CPU": "false" if on_gpus else "true"}
    found = doctor_of([([*words, "-m", "spkid_dist", "doctor"], variables)])
    assert [rank["local_rank"] for rank in found["ranks"]] == list(range(processes))
    assert [rank["device_id"] is not None for rank in found["ranks"]] == [on_gpus] * processes


def test_the_command_of_kubeflow_starts_all_processes():
    trainer = yaml.safe_load((LAUNCH / "kubernetes/trainjob.yaml").read_text())["spec"]["trainer"]
    port = free_port()
    nodes = []
    for rank in range(2):  # as the runtime torch-distributed sets them
        variables = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": f"{rank}"}
        variables |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": f"{port}"}
        variables |= {item["name"]: item["value"] for item in trainer["env"]}
        words = trainer["command"][2:-1]  # without tini, which has a test of its own
        for name, value in variables.items():
            words = [word.replace(f"$({name})", value) for word in words]  # as the kubelet does
        nodes.append(([*words, "spkid_dist", "doctor"], variables))
    assert [rank["local_rank"] for rank in doctor_of(nodes)["ranks"]] == [0, 0]


def test_the_command_of_skypilot_starts_all_processes():
    run = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    script = run.partition("-m spkid_dist.train")[0].replace("29500", str(free_port())) + "-m spkid_dist doctor"
    nodes = []
    for rank in range(2):
        variables = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": f"{rank}", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
        nodes.append((["bash", "-c", script], variables | {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}))
    assert [rank["rank"] for rank in doctor_of(nodes)["ranks"]] == [0, 1]


def test_the_images_first_process_passes_signals_on(tmp_path):
    if os.geteuid() != 0 or shutil.which("tini") is None:
        pytest.skip("needs root, tini and a namespace of processes")
    text = (LAUNCH / "Dockerfile").read_text()
    (entry,) = (line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("ENTRYPOINT"))
    options = (
        OPTIONS | make_shards(tmp_path / "c") | {"save_path": tmp_path / "ckpt", "epoch": 10_000, "patience": 10_000}
    )
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    container = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*container, *json.loads(entry), sys.executable, "-m", "spkid_dist.train", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen([*map(str, command)], env=environment(), **pipes)
    try:
        for line in job.stdout:
            if line.startswith("TRAINING"):
                first = subprocess.run(["pgrep", "-P", f"{job.pid}"], capture_output=True, text=True, check=True)
                os.kill(int(first.stdout), signal.SIGTERM)  # number 1 of the namespace
                break
        printed, errors = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == EXIT_STOPPED, errors
    assert "stopped by SIGTERM in epoch" in printed
