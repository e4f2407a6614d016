"""What the benchmarks share: runs in turn, medians with their spread, and the machine they ran on."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards import FmatrixSource, Layout, convert, find_speakers, make_plan, read_list


def seconds_in_turn(
    cases: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each case, run in turn (A B C A B C ...) after a warm-up each, so that a drift meets all alike.

    `before` is called before each run, and not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(repeats + 1):
        for name, case in cases.items():
            before()
            began = time.perf_counter()
            case()
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio_by_rounds(numerator: list[float], denominator: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def shard_corpus(
    folder: Path, out: Path, *, executor: Executor | None = None, shard_bytes: int = Layout().shard_bytes
) -> None:
    """Shard the training list of a synthetic corpus in `folder` into `out`, by this process or an executor's."""
    list_path = folder / "cfg/all.train"
    utterances = read_list(list_path)
    source = FmatrixSource(folder / "mcp", "mcp")
    speakers = find_speakers(list_path, utterances, folder / "cfg/spk2idx.json")
    plan = make_plan(utterances, speakers, source, Layout(shard_bytes=shard_bytes))
    convert(plan, source, out, executor=executor, workers=1 if executor is None else 2)


def machine() -> dict[str, Any]:
    """Processor, versions and commit."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    versions = {name: version(name) for name in ("numpy", "numba", "torch", "webdataset")}
    return {"cpu": cpu, "cores": _cores(), "python": platform.python_version(), "commit": commit} | versions


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_result(rows: list[tuple[str, list[float], float]], result: dict[str, Any], unit: str) -> None:
    """Print a line a row (name, seconds, amount), then `result` and the machine as the last line, JSON."""
    for name, seconds, amount in rows:
        rates = [amount / second for second in seconds]
        low, middle, high = (f"{value:,.3g}" for value in spread(rates).values())
        print(f"{name:32} {middle:>10} {unit} ({low} to {high})")
    print_json(result)


def print_json(result: dict[str, Any]) -> None:
    """Print `result` and the machine as the last line."""
    print(json.dumps(result | {"machine": machine()}))
