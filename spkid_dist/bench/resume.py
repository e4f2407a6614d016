"""Seconds to the first batch, from the start of an epoch and resumed within one, each of a fresh process.

The arithmetic of the order says that they are equal: a resume reads the pools in hand, and nothing of what was consumed.
"""

import json
import os
import subprocess
import sys

from accelerate.utils import broadcast_object_list

from shards.errors import InputError
from spkid_dist.bench.rows import RESUME, Findings, make_row
from spkid_dist.bench.workbench import Workbench

START = "from the start"
PLACES = {START: "start", "resumed at 0 %": "0.0", "resumed at 50 %": "0.5", "resumed at 99 %": "0.99"}
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def measure_resume(bench: Workbench) -> Findings:
    """Measure the places in turn, by rank 0; the other ranks wait."""
    config = bench.config
    outcome: list[dict[str, list[float]] | InputError | None] = [None]
    if bench.rank == 0:
        try:
            outcome[0] = seconds_by_place(bench.shards, config.in_frames, config.batch_size, config.repeats)
        except InputError as error:
            outcome[0] = error
    seconds = broadcast_object_list(outcome)[0]
    if isinstance(seconds, InputError):
        seconds.everywhere = True
        raise seconds
    rows = [
        make_row(RESUME, name, "s", values, limit=None if name == START else (START, seconds[START]))
        for name, values in seconds.items()
    ]
    return Findings(rows=rows, figures={"seconds": seconds})


def seconds_by_place(shards: str, in_frames: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of fresh processes, `repeats` for each of PLACES, in turn. Raises InputError where one fails."""
    seconds: dict[str, list[float]] = {name: [] for name in PLACES}
    for _ in range(repeats):
        for name, place in PLACES.items():
            arguments = (shards, place, str(in_frames), str(batch_size))
            seconds[name].append(float(json.loads(run_alone("spkid_dist.bench.first_batch", *arguments))))
    return seconds


def run_alone(module: str, *arguments: str, launcher: tuple[str, ...] = (), **variables: str) -> str:
    """What ``python -m MODULE`` prints, by processes that are not of this launch. Raises InputError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED} | variables
    command = [sys.executable, *launcher, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise InputError(f"{module}: a process of it ended with {done.returncode}: {reason}")
    return done.stdout
