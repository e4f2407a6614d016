"""Measure how training scales with the number of processes on this machine.

There are 1, 2, 4, ... of them, started as users do, against as many times what one does. Each case is a launch of
`spkid_dist.bench.one_training`: the steps of a training on the stream, for an epoch or some seconds. Each process has
as many threads, whatever the number of processes.
"""

import json

import torch

from shards.errors import UsageError
from shards.jsontext import parse_json
from shards.resources import available_cpus
from spkid_dist.bench.children import run_alone
from spkid_dist.bench.rows import SCALING, Findings, make_row
from spkid_dist.bench.workbench import Workbench

ONE = "training by 1 process"
TRAINING = "spkid_dist.bench.one_training"
OPTIONS = ("frames", "in_frames", "batch_size", "hsize", "num_layers", "mixed_precision", "engine", "tf32")
LAUNCHER = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", "0")


def measure_scaling(bench: Workbench) -> Findings:
    """Measure trainings by more and more processes, in turn.

    Raises:
        InputError: a training failed.
        UsageError: this is one of several processes itself.
    """
    if bench.world_size > 1:
        raise UsageError("scaling: it starts its own processes; run it without a launcher")
    numbers = numbers_of_processes(bench)
    threads = max(1, bench.threads // numbers[-1])
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    for run, number in enumerate(numbers * bench.config.repeats):
        bench.progress(run / (len(numbers) * bench.config.repeats))
        rates[number].append(_train(bench, number, threads))
    rows = [
        make_row(
            SCALING,
            f"training by {number} processes" if number > 1 else ONE,
            "windows/s",
            values,
            limit=(f"{number} times 1 process", [number * one for one in rates[1]]) if number > 1 else None,
            windows_per_unit=1.0,
        )
        for number, values in rates.items()
    ]
    note = f"processes: {threads} thread(s) each, where one alone could have {bench.threads}"
    figures = {"rates": {str(number): values for number, values in rates.items()}, "threads": threads}
    return Findings(rows=rows, notes=[note], figures=figures)


def numbers_of_processes(bench: Workbench) -> list[int]:
    """How many processes train, one number after the other."""
    return process_counts(bench.config.processes or _most_processes(bench))


def process_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


def _most_processes(bench: Workbench) -> int:
    return available_cpus() if bench.device.type == "cpu" else torch.accelerator.device_count()


def _train(bench: Workbench, number: int, threads: int) -> float:
    """Windows a second of a training by `number` processes."""
    options = {name: getattr(bench.config, name) for name in OPTIONS}
    options |= {"shards": bench.shards, "threads": threads, "folder": str(bench.corpus.work)}
    launcher = [*LAUNCHER, "--mixed_precision", bench.config.mixed_precision, "--num_processes", str(number)]
    if number > 1:
        launcher.append("--multi_gpu")
    variables = {"OMP_NUM_THREADS": str(threads)}
    if bench.device.type == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"
    printed = run_alone(TRAINING, json.dumps(options), work=bench.corpus.work, launcher=launcher, **variables)
    return float(parse_json(printed.splitlines()[-1]))
