"""The command `spkid doctor`: show what a job sees, before hours are spent on it.

Each process looks at its own machine (`spkid_dist.commands.rankfacts`), all of them together at what is between them:
how fast an all-reduce is, and how far their clocks are apart. Rank 0 prints a line per process, what is wrong, and a JSON
summary (`RunLog.summary`). Start it as the training will be started:

    accelerate launch --config_file ... -m spkid_dist doctor --shards data/train
"""

import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.table import Table

from shards.errors import InputError, SpkidError
from spkid_dist.commands.rankfacts import Vitals, look_at_this_process
from spkid_dist.config import DoctorConfig
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.together import explain_lost_ranks

ROUNDS = 7
REDUCED_BYTES = 16 * 1024 * 1024
CLOCK_SECONDS = 1.0  # further apart than this, the files of a shared folder have times in the future


class UnhealthyError(InputError):
    """Something is wrong; the lines that say what are printed already."""


@torch_threads()  # as in a training
def doctor(config: DoctorConfig) -> None:
    """Look at the job and print what was found; called by every process of a launch.

    Raises:
        UnhealthyError: something is wrong with it.
    """
    with ExitStack() as stack:
        try:
            accelerator = stack.enter_context(make_accelerator(precision=None, timeout_minutes=config.timeout_minutes))
        except SpkidError as error:
            _report([], [str(error)], {}, config.json)
            raise UnhealthyError(str(error)) from None
        with explain_lost_ranks(accelerator, config.timeout_minutes):
            everyone: list[Vitals] = gather_object([look_at_this_process(config, accelerator)])
            between = _between_ranks(accelerator)
        is_main = accelerator.is_main_process
    problems = find_problems(everyone, between["clock_seconds"])
    if is_main:
        _report(everyone, problems, between, config.json)
    if problems:
        unhealthy = UnhealthyError(
            problems[0] if len(problems) == 1 else f"{problems[0]} (and {len(problems) - 1} more)"
        )
        unhealthy.everywhere = True
        raise unhealthy


def _between_ranks(accelerator: Accelerator) -> dict[str, Any]:
    """Seconds and bytes a second of an all-reduce, and each rank's clock against that of rank 0, in seconds."""
    clocks: list[list[float]] = []
    seconds: dict[int, list[float]] = {8: [], REDUCED_BYTES: []}
    for size, taken in seconds.items():
        tensor = torch.ones(size // 4, device=accelerator.device)
        for _ in range(ROUNDS):
            accelerator.wait_for_everyone()
            clocks.append(gather_object([time.time()]))
            began = time.perf_counter()
            float(accelerator.reduce(tensor, reduction="sum")[0])  # waits for the device
            taken.append(time.perf_counter() - began)
    # The ranks do not leave a barrier at once: the smallest difference of several rounds is the nearest to the clocks'.
    differences = np.array(clocks) - np.array(clocks)[:, :1]  # (rounds, W)
    nearest = np.abs(differences).argmin(axis=0)
    facts: dict[str, Any] = {"clock_seconds": [round(float(differences[n, r]), 4) for r, n in enumerate(nearest)]}
    if accelerator.num_processes == 1:
        return facts
    share = 2 * (accelerator.num_processes - 1) / accelerator.num_processes  # what a ring sends, as nccl-tests counts
    latency, large = (statistics.median(taken) for taken in seconds.values())
    return facts | {
        "all_reduce_microseconds": round(latency * 1e6, 1),
        "all_reduce_bytes_per_second": round(REDUCED_BYTES * share / large),
    }


def find_problems(everyone: list[Vitals], clock_seconds: list[float]) -> list[str]:
    """What is wrong, a line each: at a rank, or where ranks differ."""
    problems = [f"rank {vitals.rank} on {vitals.host}: {problem}" for vitals in everyone for problem in vitals.problems]
    first = everyone[0]
    for vitals in everyone[1:]:
        for name, value in vitals.versions.items():
            if value != first.versions[name]:
                problems.append(
                    f"rank {vitals.rank} on {vitals.host}: {name} {value}, but {first.versions[name]} on rank 0 on "
                    f"{first.host}; install the same on all machines"
                )
        if vitals.fingerprint and first.fingerprint and vitals.fingerprint != first.fingerprint:
            problems.append(
                f"rank {vitals.rank} on {vitals.host}: sees another dataset in --shards than rank 0 on {first.host} "
                f"({vitals.fingerprint[:8]}, there {first.fingerprint[:8]}); give a folder that all machines share"
            )
    for vitals, seconds in zip(everyone, clock_seconds, strict=True):
        if abs(seconds) > CLOCK_SECONDS:
            problems.append(
                f"rank {vitals.rank} on {vitals.host}: its clock is {seconds:+.1f} s off that of rank 0; set it by NTP"
            )
    return problems + _shared_devices(everyone)


def _shared_devices(everyone: list[Vitals]) -> list[str]:
    problems: list[str] = []
    owners: dict[tuple[str, str | None], Vitals] = {}
    for vitals in everyone:
        owner = owners.setdefault((vitals.host, vitals.device_id), vitals)
        if vitals.device_id and owner is not vitals:
            problems.append(
                f"ranks {owner.rank} and {vitals.rank} are both on {vitals.device} of {vitals.host}; start one process per GPU"
            )
    return problems


def _report(everyone: list[Vitals], problems: list[str], between: dict[str, Any], as_json: bool) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if everyone:
        console.print(_table(everyone, between["clock_seconds"]))
        first = everyone[0]
        console.print(f"backend {first.backend}, {', '.join(f'{n} {v}' for n, v in first.versions.items())}")
    if "all_reduce_microseconds" in between:
        console.print(
            f"all-reduce: {between['all_reduce_microseconds']:,.0f} us for 8 bytes, "
            f"{between['all_reduce_bytes_per_second'] / 1e9:.2f} GB/s for {REDUCED_BYTES / 1e6:.0f} MB"
        )
    for vitals in everyone:
        for note in vitals.notes:
            console.print(f"note: rank {vitals.rank} on {vitals.host}: {note}")
    for problem in problems:
        console.print(f"wrong: {problem}")
    if not problems:
        console.print("healthy: nothing is wrong")
    found = {"healthy": not problems, "processes": len(everyone), "problems": problems}
    ranks = {"ranks": [asdict(vitals) for vitals in everyone]}
    RunLog(shown=True).summary(found | between | ranks, as_json)


def _table(everyone: list[Vitals], clock_seconds: list[float]) -> Table:
    table = Table(box=None)
    for heading in ("rank", "host", "device", "threads", "memory free", "disk free", "clock", "shards"):
        table.add_column(heading, justify="left" if heading in ("host", "device", "shards") else "right")
    for vitals, seconds in zip(everyone, clock_seconds, strict=True):
        table.add_row(
            *(str(vitals.rank), vitals.host, vitals.device, str(vitals.threads)),
            *(f"{vitals.memory_bytes / 1e9:.1f} GB", f"{vitals.disk_bytes / 1e9:.1f} GB", f"{seconds:+.3f} s"),
            (vitals.fingerprint or "-")[:8],
        )
    return table


def main() -> None:
    """Run `spkid doctor` with the process's arguments as its flags."""
    from spkid_dist.commands.cli import run_command

    run_command("doctor")
