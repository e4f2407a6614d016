"""Time cases in turn, give medians with their spread, and name the machine that they ran on."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import plain_json
from shards.resources import available_cpus
from spkid_dist.process.versions import installed_version

PACKAGES = ("spkid-dist", "torch", "accelerate", "numpy", "numba", "webdataset")


@dataclass(frozen=True)
class Timing:
    """One counted run of a case: its seconds, and what the case returned."""

    seconds: float
    result: Any


def runs_in_turn(
    cases: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[Timing]]:
    """Each case's counted runs, in turn (A B C A B C ...) after a warm-up each, so that a drift meets all alike.

    `before` is called before each run, and not timed.
    """
    runs: dict[str, list[Timing]] = {name: [] for name in cases}
    for round_number in range(repeats + 1):
        for name, case in cases.items():
            before()
            began = time.perf_counter()
            result = case()
            run = Timing(time.perf_counter() - began, result)
            if round_number:
                runs[name].append(run)
    return runs


def seconds_in_turn(
    cases: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """The seconds of `runs_in_turn`."""
    return {name: [run.seconds for run in runs] for name, runs in runs_in_turn(cases, repeats, before).items()}


def ratio_by_rounds(numerator: list[float], denominator: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """Processor, accelerator, versions and commit; the commit is None where this is no clone of the sources."""
    import torch

    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": available_cpus(),
        "device": device,
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": find_commit(Path(__file__).parent),
    } | {name: installed_version(name) for name in PACKAGES}


def find_commit(folder: Path) -> str | None:
    """The commit of the clone that this file in `folder` belongs to; ``-dirty`` where tracked files were changed."""
    own = ("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie within a foreign clone
    for arguments in (own, ("describe", "--always", "--dirty", "--exclude", "*")):
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=folder)
        except OSError:  # no git on this machine
            return None
        if done.returncode:
            return None
    return done.stdout.strip()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def print_result(rows: list[tuple[str, list[float], float]], result: dict[str, Any], unit: str) -> None:
    """Print a line a row (name, seconds, amount), then `result` and the machine as the last line, JSON."""
    for name, seconds, amount in rows:
        rates = [amount / second for second in seconds]
        low, middle, high = (f"{value:,.3g}" for value in spread(rates).values())
        print(f"{name:32} {middle:>10} {unit} ({low} to {high})")
    print_json(result)


def print_json(result: dict[str, Any]) -> None:
    """Print `result` and the machine as the last line."""
    print(json.dumps(plain_json(result | {"machine": machine()})))
