"""Planning and merging at the size of large corpora: time, and memory that does not grow with the list.

    python benchmarks/bench_plan.py [--keys 10000000] [--tasks 100] [--shards 100000] [--repeats 3]

Lines: reading the list's bytes, which is the limit; scanning it; planning and making the tasks of one of `--tasks`
machines; making all tasks (one scan for every 2^20 utterances); merging the records of `--shards` shards. Each runs in a
process of its own, whose largest memory beyond that of the imports and the compiled loops is given. Sources are not
read: all utterances are of 200 frames.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shards import Layout, Plan, Utterance, claim_folder, make_plan, merge, speaker_by_component
from shards.conversion.folder import LocalFolder
from shards.conversion.record import ShardRecord, record_name
from shards.conversion.tasks import TaskShare
from shards.layout import BLOCK_DTYPE, UTTERANCE_DTYPE, ShardInfo, shard_name
from shards.lines import CHUNK_BYTES
from shards.listing import ListFile
from shards.moments import Moments
from spkid_dist.bench.measure import print_result, ratio_by_rounds

SPEAKERS, FRAMES, D = 5000, 200, 20
SHARD_UTTERANCES = 10_000
LARGE_KEYS, LARGE_SHARDS = 10**9, 10**5  # what is extrapolated to


class NoSource:
    """Utterances of equal length, made of nothing."""

    def describe(self) -> dict[str, Any]:
        """A name."""
        return {"kind": "none"}

    def where(self, utterance: Utterance) -> str:
        """The key."""
        return utterance.key

    def load(self, _utterance: Utterance) -> np.ndarray:
        """Zeros."""
        return np.zeros((FRAMES, D), np.float32)


def main() -> None:
    """Make a list and records, run all cases, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000_000, help="of the list")
    parser.add_argument("--tasks", type=int, default=100, help="machines that share the work")
    parser.add_argument("--shards", type=int, default=100_000, help="whose records are merged")
    parser.add_argument("--shard_utterances", type=int, default=1000, help="of each of those")
    parser.add_argument("--repeats", type=int, default=3, help="counted runs of each case")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Run all cases on a list and records made in `folder`."""
    list_path, records = folder / "list", folder / "records"
    write_list(list_path, options.keys)
    write_records(records, options.shards, options.shard_utterances)
    rows = options.shards * options.shard_utterances
    cases: dict[str, tuple[Callable[..., object], tuple[Any, ...], int]] = {
        "limit: reading the list": (read, (list_path,), options.keys),
        "scan": (scan, (list_path,), options.keys),
        f"plan and tasks 0/{options.tasks}": (make_tasks, (list_path, options.tasks), options.keys),
        "plan and all tasks": (make_tasks, (list_path, 1), options.keys),
        "merge": (merge_records, (folder / "job",), rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    memory: dict[str, float] = dict.fromkeys(cases, 0.0)
    for _ in range(options.repeats):
        for name, (case, arguments, _) in cases.items():
            if case is merge_records:  # which removes what it merged
                shutil.rmtree(folder / "job", ignore_errors=True)
                shutil.copytree(records, folder / "job", copy_function=os.link)
            taken, used = in_own_process(case, arguments)
            seconds[name].append(taken)
            memory[name] = max(memory[name], used)
    for name, used in memory.items():
        print(f"{name}: {used:.0f} MB beyond the imports")
    for name, size, large, unit in (
        ("scan", options.keys, LARGE_KEYS, "utterances"),
        ("merge", options.shards, LARGE_SHARDS, f"shards of {options.shard_utterances} utterances"),
    ):
        minutes = statistics.median(seconds[name]) * large / size / 60
        print(f"{name}: {minutes:.1f} minutes for {large:.0e} {unit} (extrapolated in proportion to {size:.0e})")
    limit = seconds["limit: reading the list"]
    ratios = {f"{name}, of reading": ratio_by_rounds(limit, seconds[name]) for name in list(cases)[1:3]}
    result = {"benchmark": "plan", "keys": options.keys, "list_bytes": list_path.stat().st_size, "merged_rows": rows}
    table = [(name, seconds[name], amount / 1e3) for name, (_, _, amount) in cases.items()]
    print_result(table, result | {"seconds": seconds, "megabytes": memory, "ratios": ratios}, "thousand utterances/s")


def write_list(path: Path, keys: int) -> None:
    """A list of `keys` utterances."""
    with path.open("w") as file:
        for first in range(0, keys, 100_000):
            numbers = range(first, min(first + 100_000, keys))
            file.writelines(f"BLOCK{n % 7:02d}/SPK{n * 7919 % SPEAKERS:06d}/UTT{n:010d}\n" for n in numbers)


def plan_of(list_path: Path) -> Plan:
    """The plan of the list, with `SHARD_UTTERANCES` in a shard."""
    layout = Layout(shard_bytes=SHARD_UTTERANCES * FRAMES * D * 4)
    listing = ListFile(list_path, speaker_by_component(2), layout.seed)
    speakers = sorted(utterance.speaker for utterance in listing.examples)
    return make_plan(listing, speakers, NoSource(), layout)


def read(list_path: Path) -> None:
    """Read the list and do nothing with it."""
    with list_path.open("rb", buffering=0) as file:
        while file.read(CHUNK_BYTES):
            pass


def scan(list_path: Path) -> None:
    """The first scan of the list."""
    ListFile(list_path, speaker_by_component(2), 0)


def make_tasks(list_path: Path, tasks: int) -> None:
    """Plan, and make the tasks of one of so many machines."""
    plan = plan_of(list_path)
    for _ in plan.tasks(TaskShare(0, tasks).shards(plan.job.num_shards)):
        pass


def write_records(folder: Path, shards: int, utterances: int) -> None:
    """An unfinished job all of whose tasks are done, with shards of no bytes."""
    out = LocalFolder(folder)
    keys = [Utterance(f"A/B/{n}", "B") for n in range(shards)]
    plan = make_plan(keys, ["B"], NoSource(), Layout(shard_bytes=1))
    claim_folder(plan.job, out)
    (folder / "job.json").write_text(json.dumps(plan.job.to_json() | {"num_utterances": shards * utterances}))
    (folder / "records").mkdir()
    blocks, rows = np.zeros(max(1, utterances // 25), BLOCK_DTYPE), np.zeros(utterances, UTTERANCE_DTYPE)
    moments = Moments(utterances * FRAMES, np.zeros(D), np.ones(D))
    for shard in range(shards):
        info = ShardInfo(
            name=shard_name(shard),
            bytes=0,
            digest="0" * 32,
            blocks=len(blocks),
            utterances=utterances,
            frames=moments.count,
        )
        record = ShardRecord(plan.job.identity, info, blocks, rows, moments)
        (folder / info.name).touch()
        (folder / record_name(shard)).write_bytes(record.to_bytes())


def merge_records(folder: Path) -> None:
    """Merge the job."""
    merge(LocalFolder(folder))


def in_own_process(case: Callable[..., object], arguments: tuple[Any, ...]) -> tuple[float, float]:
    """Seconds of a call in a fresh process, and the MB that it took beyond what the imports had."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (case, arguments))


def measured(case: Callable[..., object], arguments: tuple[Any, ...]) -> tuple[float, float]:
    """Called in the process."""
    with tempfile.TemporaryDirectory() as folder:
        write_list(Path(folder) / "list", 1000)
        make_tasks(Path(folder) / "list", 1)  # loads the compiled loops
    before = largest_memory()
    began = time.perf_counter()
    case(*arguments)
    return time.perf_counter() - began, largest_memory() - before


def largest_memory() -> float:
    """The most MB that this process has had in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    main()
