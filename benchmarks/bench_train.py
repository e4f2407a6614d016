"""Training from the stream against the same steps on one cached batch, and against a plain training program.

    python benchmarks/bench_train.py [--frames 587000] [--epoch 8] [--repeats 5]

All on a CPU with 2 threads, data in the page cache, the classic network with the defaults of `spkid train`:
420-100-100-100-speakers, batches of 1,000, Adam. Each run is a process of its own, in turn:

- `spkid train` as users run it, in fp32 and bf16: the rate of its summary, over all of its training steps, log lines included,
  validation and start left out; and the share of that time that it waited for data. Asked: 0.95 of the cached batch's
  rate or more, waiting less than 3 %.
- the same step on one batch that is in memory (`cached_step.py`), in either precision.
- the plain program (`peers/plain_program.py`), in fp32: torch's DataLoader with one worker and the classic loop. Asked: 3.5
  times its rate in fp32, 5 times in bf16.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_json, ratio_by_rounds, spread
from spkid_dist.measure.synthetic import SyntheticCorpus

HERE = Path(__file__).parent
SPEAKERS, MEAN_FRAMES, D = 157, 250, 20
PRECISIONS = {"fp32": "no", "bf16": "bf16"}
ASKED_OF_CACHED, ASKED_WAITING = 0.95, 0.03
ASKED_TIMES_PLAIN = {"fp32": 3.5, "bf16": 5.0}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run: windows a second, and the share of its time spent waiting for data where that is known."""

    rate: float
    waiting: float | None = None


def main() -> None:
    """Make a corpus, train on it in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--speakers", type=int, default=SPEAKERS, help="of the corpus")
    parser.add_argument("--epoch", type=int, default=8, help="epochs of a run of ours")
    parser.add_argument("--batches", type=int, default=1000, help="of a run on the cached batch")
    parser.add_argument("--plain_batches", type=int, default=200, help="of a run of the plain program")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of ours")
    parser.add_argument("--threads", type=int, default=2, help="of torch, in each process")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), options)
        runs: dict[str, list[Training]] = {name: [] for name in cases}
        for _ in range(options.repeats):
            for name, case in cases.items():
                runs[name].append(case())
    report(runs, options.precision)


def make_corpora(folder: Path, frames: int, speakers: int) -> None:
    """Write and shard a training set of about `frames` frames, `tr`, and a small validation set, `va`."""
    utterances = max(1, frames // (speakers * MEAN_FRAMES))
    for name, count in (("tr", utterances), ("va", 1)):
        corpus = SyntheticCorpus(
            num_speakers=speakers,
            train_utterances=count,
            test_utterances=0,
            mean_frames=MEAN_FRAMES,
            num_features=D,
        )
        synthetic_files(corpus, folder / name).shard(folder / name / "shards")


def make_cases(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], Training]]:
    """What is run in turn, on corpora made in `folder`."""
    make_corpora(folder, options.frames, options.speakers)
    # Their processes take the numbers of threads from here.
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "ACCELERATE_USE_CPU": "true"}
    train(folder, "va", 1, "no")  # the compiled loops are on the disk now
    cases: dict[str, Callable[[], Training]] = {}
    for precision in options.precision:
        mixed = PRECISIONS[precision]
        cases[f"ours, {precision}"] = partial(train, folder, "tr", options.epoch, mixed)
        cases[f"cached step, {precision}"] = partial(
            program, "cached_step.py", folder / "tr/shards", "--batches", options.batches, "--mixed_precision", mixed
        )
    plain = partial(program, "peers/plain_program.py", folder / "tr", "--batches", options.plain_batches)
    return cases | {"plain program, fp32": plain}


def train(folder: Path, data: str, epochs: int, mixed_precision: str) -> Training:
    """`spkid train` with its defaults."""
    save_path = folder / "ckpt"
    shutil.rmtree(save_path, ignore_errors=True)
    shards = ("--tr_shards", folder / data / "shards", "--va_shards", folder / "va/shards")
    more = ("--epoch", epochs, "--patience", epochs, "--mixed_precision", mixed_precision, "--save_path", save_path)
    run_python("-m", "spkid_dist.train", *shards, *more)
    summary = json.loads((save_path / "summary.json").read_text())
    return Training(rate=summary["run_windows_per_second"], waiting=summary["run_waiting_share"])


def program(name: str, *arguments: object) -> Training:
    """A program beside this one that ends in its windows and seconds."""
    result = json.loads(run_python(HERE / name, *arguments).splitlines()[-1])
    return Training(rate=result["windows"] / result["seconds"])


def run_python(*arguments: object) -> str:
    """What a process of Python prints."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def report(runs: dict[str, list[Training]], precisions: list[str]) -> None:
    """Print rates, what is asked, and the JSON line."""
    rates = {name: [run.rate for run in of_case] for name, of_case in runs.items()}
    waiting = {
        name: [run.waiting for run in of_case if run.waiting is not None]
        for name, of_case in runs.items()
        if name.startswith("ours")
    }
    for name, values in rates.items():
        low, middle, high = (f"{value / 1e3:,.1f}" for value in spread(values).values())
        print(f"{name:24} {middle:>8} thousand windows/s ({low} to {high})")
    ratios: dict[str, float] = {}
    for precision in precisions:
        ours = rates[f"ours, {precision}"]
        of_cached = ratio_by_rounds(ours, rates[f"cached step, {precision}"])
        times_plain = ratio_by_rounds(ours, rates["plain program, fp32"])
        waited = statistics.median(waiting[f"ours, {precision}"])
        ratios[f"ours, {precision}, of the cached step"] = of_cached
        ratios[f"ours, {precision}, times the plain program"] = times_plain
        print(
            f"{precision}: {of_cached:.3f} of the cached step (asked: {ASKED_OF_CACHED}), waiting {waited:.1%} "
            f"(asked: below {ASKED_WAITING:.0%}), {times_plain:.2f} times the plain program "
            f"(asked: {ASKED_TIMES_PLAIN[precision]})"
        )
    print_json({"benchmark": "train", "rates": rates, "waiting": waiting, "ratios": ratios})


if __name__ == "__main__":
    main()
