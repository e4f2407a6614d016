"""Check that the launcher started as many processes as it was told to: one alone would train by itself, as if all were well.

`accelerate launch` without a GPU, or with `--cpu`, starts a single process whatever `--num_processes` says, and tells it no
number of processes; what gives it away is an address to meet others at (MASTER_ADDR, MASTER_PORT) that the launcher
itself has set. Under `srun` each task that is not started by a launcher is a training of its own.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env

from shards.errors import UsageError

LAUNCHED = "ACCELERATE_DYNAMO_BACKEND"  # accelerate launch always sets it
MEETING = "MASTER_ADDR"
USE_CPU = "ACCELERATE_USE_CPU"


def is_told_to_use_cpus() -> bool:
    """Whether accelerate is told to leave GPUs alone. Raises UsageError where the variable is neither true nor false."""
    try:
        return bool(parse_flag_from_env(USE_CPU))
    except ValueError:
        raise UsageError(f"{USE_CPU} is {os.environ[USE_CPU]!r}: expected true or false; correct or unset it") from None


def is_on_cpus() -> bool:
    """Whether accelerate uses no GPU: there is none, or it is told so. Raises UsageError as `is_told_to_use_cpus`."""
    return is_told_to_use_cpus() or not torch.accelerator.is_available()


def check_world_size(environment: Mapping[str, str], num_processes: int, on_cpu: bool, command: str = "train") -> None:
    """Refuse to do `command` alone where WORLD_SIZE says several. Raises UsageError, which names the right command line."""
    meant = int(environment.get("WORLD_SIZE", "1"))
    if meant > 1 and num_processes == 1:
        raise UsageError(
            f"WORLD_SIZE is {meant}, but this process is alone: it would {command} by itself; launch with "
            f"{_right_launch(meant, on_cpu, command)}"
        )


def _right_launch(number: int | str, on_cpu: bool, command: str = "train") -> str:
    launch = f"accelerate launch --multi_gpu --num_processes {number} -m spkid_dist.{command} ..."
    return f"{USE_CPU}=true {launch}" if on_cpu else launch


def check_not_alone(environment: Mapping[str, str], parent: int, num_processes: int, on_cpu: bool) -> None:
    """Refuse to run alone where several processes were meant.

    Args:
        environment: of this process.
        parent: the number of the process that started this one.
        num_processes: how many processes have met.
        on_cpu: whether they use no GPU.

    Raises:
        UsageError: this process is alone, and the launcher meant several; names the right command.
    """
    if num_processes > 1:
        return
    check_world_size(environment, num_processes, on_cpu)
    if _launcher_meant_several(environment, parent):
        number = _flag(_command_line(parent), "num_processes") or "N"
        raise UsageError(
            f"accelerate launch was told to start several processes ({number}), but has started one: it would train by "
            f"itself; launch with {_right_launch(number, on_cpu)}, and for several machines see launch/README.md"
        )
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in environment:
        raise UsageError(
            f"srun has started {tasks} tasks, each of which would train by itself; let each start accelerate launch as "
            "launch/slurm/train.sbatch does, or unset SLURM_STEP_NUM_TASKS if they are to be separate trainings"
        )


def _launcher_meant_several(environment: Mapping[str, str], parent: int) -> bool:
    """Whether accelerate launch started this process alone with an address at which to meet others."""
    if LAUNCHED not in environment or MEETING not in environment or "RANK" in environment:
        return False
    # The address may also have been there before, set by whoever started the launcher.
    of_launcher = _read_list(parent, "environ")
    if any(item.startswith(f"{MEETING}=") for item in of_launcher):
        return int(_flag(_command_line(parent), "num_processes") or 1) > 1
    return True


def _command_line(process: int) -> list[str]:
    return _read_list(process, "cmdline")


def _read_list(process: int, name: str) -> list[str]:
    """A list that Linux keeps of a process; empty where it may not be read, or where the system is another."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _flag(command: list[str], name: str) -> str | None:
    """The number given to a flag on a command line, as ``--name 2`` or ``--name=2``."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            found = value or following
            return found if found.isdigit() else None
    return None


def check_this_process(num_processes: int, on_cpu: bool) -> None:
    """`check_not_alone` for the process that calls it. Raises UsageError as it does."""
    check_not_alone(os.environ, os.getppid(), num_processes, on_cpu)
