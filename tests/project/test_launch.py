"""The files of launch/: each accelerate configuration starts the processes that it says, and the right ones are refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from shards import UsageError
from spkid_dist.ranks.launched import check_not_alone

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "launch" / "accelerate"
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(*arguments, on_cpu=True, **variables):
    """Start accelerate launch, as the first of several commands or the only one."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if on_cpu else {}) | variables
    command = [*ACCELERATE, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def found_by(*jobs):
    """What `spkid doctor`, run by all of these launchers together, has found."""
    ended = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), ended
    (line,) = (line for printed, _ in ended for line in printed.splitlines() if line.startswith("{"))
    return json.loads(line)


@pytest.mark.long
def test_one_process_on_the_cpu():
    found = found_by(start("--config_file", CONFIGS / "cpu.yaml", "-m", "spkid_dist", "doctor", on_cpu=False))
    assert (found["processes"], found["ranks"][0]["device"]) == (1, "cpu")


# cpus.yaml starts the two processes of test_doctor.py


# Where the machines are one, c10d's port may be open before 0 looks whether it is free.
@pytest.mark.long  # on two hosts: tests/cluster
@pytest.mark.parametrize(("name", "backend", "ranks"), [("nodes", "static", (0, 1)), ("nodes_elastic", "c10d", (1, 2))])
def test_several_machines(name, backend, ranks):
    options = ("--config_file", CONFIGS / f"{name}.yaml", "--num_processes", 2, "--main_process_ip", "127.0.0.1")
    options += ("--rdzv_backend", backend)
    port = free_port()
    found = found_by(
        *(
            start(*options, "--main_process_port", port, "--machine_rank", rank, "-m", "spkid_dist", "doctor")
            for rank in ranks
        )
    )
    assert sorted((rank["rank"], rank["local_rank"]) for rank in found["ranks"]) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configuration_as_it_is_meant(path):
    config = load_config_from_file(str(path))
    arguments = ["--config_file", str(path), "--machine_rank", "0", "--main_process_ip", "10.0.0.1", "train.py"]
    launch, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert launch.multi_gpu == (config.num_processes > 1)
    assert (launch.num_processes, launch.num_machines) == (config.num_processes, config.num_machines)
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("compute_environment", "distributed_type"):
            assert getattr(launch, name) == value, f"{name} has no effect"


def test_the_readme_names_every_file():
    text = (ROOT / "launch" / "README.md").read_text()
    files = [path for path in (ROOT / "launch").rglob("*") if path.is_file() and path.name != "README.md"]
    assert len(files) > 5
    assert [str(path) for path in files if str(path.relative_to(ROOT)) not in text] == []


def test_one_process_where_several_were_meant_is_refused(tmp_path):
    job = start("--cpu", "--num_processes", "2", "-m", "spkid_dist.train", "--save_path", tmp_path / "ckpt")
    _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    (line,) = (line for line in errors.splitlines() if line.startswith("spkid: error"))
    assert "was told to start several processes (2), but has started one" in line
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in line
    assert not (tmp_path / "ckpt").exists()


@pytest.fixture
def launcher():
    """Start a process to take the launcher's place, with arguments and variables to be looked at."""
    started = []

    def launch(*arguments, **variables):
        command = [sys.executable, "-c", "print('up', flush=True); input()", *arguments]
        process = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "up\n"
        return process.pid

    yield launch
    for process in started:
        process.communicate("\n", timeout=30)


ALONE = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}


def test_an_address_set_by_the_launcher_means_several(launcher):
    with pytest.raises(UsageError, match=r"several processes \(4\).* accelerate launch --multi_gpu --num_processes 4"):
        check_not_alone(ALONE, launcher("--num_processes=4"), 1, on_cpu=False)
    with pytest.raises(UsageError, match=r"several processes \(N\)"):  # told by a configuration file
        check_not_alone(ALONE, launcher("--config_file", "c.yaml"), 1, on_cpu=True)


def test_an_address_that_was_there_before_means_nothing(launcher):
    check_not_alone(ALONE, launcher("--num_processes", "1", MASTER_ADDR="127.0.0.1"), 1, on_cpu=True)
    with pytest.raises(UsageError, match="several processes"):
        check_not_alone(ALONE, launcher("--num_processes", "2", MASTER_ADDR="127.0.0.1"), 1, on_cpu=True)


def test_processes_that_have_met_are_let_alone(launcher):
    check_not_alone(ALONE | {"WORLD_SIZE": "2", "RANK": "0"}, launcher("--num_processes", "2"), 2, on_cpu=True)
    check_not_alone({}, launcher(), 1, on_cpu=True)
    check_not_alone({"ACCELERATE_DYNAMO_BACKEND": "NO"}, launcher("--num_processes", "1"), 1, on_cpu=True)


def test_tasks_of_srun_that_would_each_train_by_themselves_are_refused(launcher):
    tasks = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
    with pytest.raises(UsageError, match=r"srun has started 3 tasks.*launch/slurm/train\.sbatch"):
        check_not_alone(tasks, launcher(), 1, on_cpu=True)
    check_not_alone(tasks | {"WORLD_SIZE": "3"}, launcher(), 3, on_cpu=True)
