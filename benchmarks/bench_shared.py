"""Trainings beside other programs: how many threads are best on CPUs that others use.

    python benchmarks/bench_shared.py [--busy 0 1 2] [--frames 300000] [--epoch 2] [--repeats 3]

Each run is `spkid train` as users run it, in a process of its own, beside so many programs that do nothing but use a CPU each:

- as it is: the training counts the free CPUs while it starts, and takes no more threads; they spin shortly while they wait.
- all threads: one per CPU (OMP_NUM_THREADS), which spin shortly.
- one thread.
- waiting asleep: all threads, which do not spin (OMP_WAIT_POLICY=PASSIVE).
- waiting as OpenMP does: all threads, which spin for milliseconds (GOMP_SPINCOUNT=300000, its own default).

The last line is JSON: windows per second over the training steps, and their ratios to "waiting as OpenMP does" and to the best
of a round.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_train import SPEAKERS, make_corpora

from shards.resources import available_cpus
from spkid_dist.bench.measure import print_json, ratio_by_rounds, spread

AS_IT_IS, AS_OPENMP = "as it is", "waiting as OpenMP does"


def settings() -> dict[str, dict[str, str]]:
    """The environment of each kind of run."""
    all_threads = {"OMP_NUM_THREADS": str(available_cpus())}
    return {
        AS_IT_IS: {},
        "all threads": all_threads,
        "one thread": {"OMP_NUM_THREADS": "1"},
        "waiting asleep": all_threads | {"OMP_WAIT_POLICY": "PASSIVE"},
        AS_OPENMP: all_threads | {"GOMP_SPINCOUNT": "300000"},
    }


@contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many programs use a CPU each meanwhile."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def train(folder: Path, epochs: int, environment: dict[str, str]) -> float:
    """Windows per second of a training's steps."""
    save_path = folder / "ckpt"
    shutil.rmtree(save_path, ignore_errors=True)
    shards = ("--tr_shards", folder / "tr/shards", "--va_shards", folder / "va/shards")
    command = [sys.executable, "-m", "spkid_dist.train", *shards, "--epoch", epochs, "--save_path", save_path]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    subprocess.run(
        [str(part) for part in command],
        env=clean | {"ACCELERATE_USE_CPU": "true"} | environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return float(json.loads((save_path / "summary.json").read_text())["run_windows_per_second"])


def main() -> None:
    """Make a corpus, train on it in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="programs beside the training")
    parser.add_argument("--frames", type=int, default=300_000, help="frames of the corpus, about")
    parser.add_argument("--speakers", type=int, default=SPEAKERS, help="speakers of the corpus")
    parser.add_argument("--epoch", type=int, default=2, help="epochs per run")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpora(folder, options.frames, options.speakers)
        rates = measure(folder, options)
    report(rates)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Number of busy programs -> kind of run -> windows per second of each round."""
    rates: dict[str, dict[str, list[float]]] = {}
    for busy in options.busy:
        of_kind = rates[str(busy)] = {kind: [] for kind in settings()}
        for _ in range(options.repeats):
            for kind, environment in settings().items():
                with busy_programs(busy):
                    of_kind[kind].append(train(folder, options.epoch, environment))
    return rates


def report(rates: dict[str, dict[str, list[float]]]) -> None:
    """Print rates, and the JSON line."""
    ratios: dict[str, float] = {}
    for busy, of_kind in rates.items():
        for kind, values in of_kind.items():
            low, middle, high = (f"{value / 1e3:,.1f}" for value in spread(values).values())
            print(f"{busy} busy programs, {kind:22} {middle:>8} thousand windows/s ({low} to {high})")
        best = [max(values) for values in zip(*of_kind.values(), strict=True)]
        ratios[f"{busy} busy: as it is, times waiting as OpenMP does"] = ratio_by_rounds(
            of_kind[AS_IT_IS], of_kind[AS_OPENMP]
        )
        ratios[f"{busy} busy: as it is, of the best"] = ratio_by_rounds(of_kind[AS_IT_IS], best)
    print_json({"benchmark": "shared", "rates": rates, "ratios": ratios})


if __name__ == "__main__":
    main()
