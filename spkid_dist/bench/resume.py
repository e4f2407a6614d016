"""Measure the seconds to the first batch, from an epoch's start and resumed within it, each in a fresh process.

The arithmetic of the order says that they are equal: a resume reads the pools in hand, and nothing of what was consumed.
"""

from collections.abc import Callable
from pathlib import Path

from accelerate.utils import broadcast_object_list

from shards.errors import InputError
from shards.jsontext import parse_json
from spkid_dist.bench.children import run_alone
from spkid_dist.bench.rows import RESUME, Findings, make_row
from spkid_dist.bench.workbench import Workbench

START = "from the start"
PLACES = {START: "start", "resumed at 0 %": "0.0", "resumed at 50 %": "0.5", "resumed at 99 %": "0.99"}


def measure_resume(bench: Workbench) -> Findings:
    """Measure the places in turn, by rank 0; the other ranks wait."""
    outcome: list[dict[str, list[float]] | InputError | None] = [None]
    if bench.rank == 0:
        try:
            config = bench.config
            outcome[0] = seconds_by_place(
                bench.shards,
                config.in_frames,
                config.batch_size,
                config.repeats,
                work=bench.corpus.work,
                progress=bench.progress,
            )
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


def seconds_by_place(
    shards: str,
    in_frames: int,
    batch_size: int,
    repeats: int,
    *,
    work: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Seconds of fresh processes, `repeats` for each of PLACES, in turn; what they print goes below `work`.

    Raises:
        InputError: one of them failed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in PLACES}
    for number, (name, place) in enumerate(tuple(PLACES.items()) * repeats):
        progress(number / (len(PLACES) * repeats))
        arguments = (shards, place, str(in_frames), str(batch_size))
        printed = run_alone("spkid_dist.bench.first_batch", *arguments, work=work)
        seconds[name].append(float(parse_json(printed)))
    return seconds
