"""What `benchmarks/gpu.sh` needs beside the project's own commands: the machine, a corpus, and the table of results.

python benchmarks/gpu_results.py facts | corpus FOLDER --num_features D | report FOLDER
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shards import read_list
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import machine
from spkid_dist.bench.train import CACHED, STREAMED
from spkid_dist.synthetic import SyntheticCorpus

SPEAKERS, MEAN_FRAMES, WINDOWS, IN_FRAMES = 157, 250, 590_000, 21
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv"]


class Asked(NamedTuple):
    """A figure that is asked for, and whether the one that was found is enough."""

    what: str
    found: str
    asked: str
    reached: bool


def main() -> None:
    """Do one of the three; ends with 1 where a figure falls short or is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["facts", "corpus", "report"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--num_features", type=int, default=20)
    options = parser.parse_args()
    if options.what == "facts":
        print(facts())
    elif options.what == "corpus":
        make_corpus(options.folder, options.num_features)
    else:
        sys.exit(report(options.folder))


def facts() -> str:
    """GPU, driver, versions and commit, a line each."""
    lines = [subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]]
    lines += [f"{name}: {value}" for name, value in machine().items()]
    lines += [f"cuda: {torch.version.cuda}", f"date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"]
    return "\n".join(lines)


def make_corpus(folder: Path, num_features: int) -> None:
    """Training and validation shards of about WINDOWS windows, in `train` and `test` below `folder`."""
    each = WINDOWS // (SPEAKERS * (MEAN_FRAMES - IN_FRAMES + 1))
    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS,
        train_utterances=each,
        test_utterances=1,
        mean_frames=MEAN_FRAMES,
        num_features=num_features,
    )
    files = synthetic_files(corpus, folder)
    files.shard(folder / "train")
    replace(files, listed=read_list(folder / "cfg/all.test")).shard(folder / "test")


def report(folder: Path) -> int:
    """Write `results.md` from the steps' logs; returns 1 where a figure falls short or is missing."""
    asked = [*_trainings(folder), *_epochs(folder)]
    lines = ["# On a GPU", "", (folder / "facts.log").read_text().replace("\n", "  \n"), ""]
    lines += ["| figure | found | asked | reached |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.found} | {row.asked} | {'yes' if row.reached else '**no**'} |" for row in asked]
    for name in ("limits", "stream"):
        lines += ["", f"## spkid bench {name}", "", "```", *_table(folder / f"{name}.log"), "```"]
    text = "\n".join([*lines, ""])
    (folder / "results.md").write_text(text)
    print(text)
    return int(not all(row.reached for row in asked))


def _trainings(folder: Path) -> Iterator[Asked]:
    for path in sorted(folder.glob("train-*.log")):
        _, features, size, precision, engine = path.stem.split("-")
        what = f"{engine}, {precision}, batch {int(size):,}, D = {features}"
        result = _last_json(path)
        if result is None:
            yield Asked(what, f"failed, see {path.name}", "", False)
            continue
        rows = {row["name"]: row for row in result["rows"]}
        rate, share = rows[STREAMED]["rate"], rows[STREAMED]["share"]
        least = 0.0 if engine == "eager" else 10e6 if size == "1000" else 100e6
        asked = f"{least / 1e6:.0f} M" if least else "to compare"
        yield Asked(f"windows/s: {what}", f"{rate / 1e6:.1f} M", asked, rate >= least)
        yield Asked(f"not input bound: {what}", f"{share:.1%} of {CACHED}", "95 %", engine == "eager" or share >= 0.95)


def _epochs(folder: Path) -> Iterator[Asked]:
    losses = {}
    for engine in ("eager", "graph"):
        saved = folder / f"epochs-{engine}"
        what = f"20 epochs at batch 1,000, {engine}"
        if not (saved / "summary.json").exists():
            yield Asked(what, f"failed, see epochs-{engine}.log", "", False)
            continue
        summary = json.loads((saved / "summary.json").read_text())
        seconds = summary["run_training_seconds"]
        more = f"{seconds:.2f} s, validation {summary['run_validation_seconds']:.2f} s"
        yield Asked(what, more, "1.5 s" if engine == "graph" else "to compare", engine == "eager" or seconds <= 1.5)
        losses[engine] = json.loads((saved / "train_stats.json").read_text())["tr_loss"][0]
    if len(losses) == 2:
        off = abs(losses["graph"] / losses["eager"] - 1)
        yield Asked("first epoch's loss, graph against eager", f"{off:.1e}", "1e-3", off <= 1e-3)


def _last_json(path: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return None
    return result


def _table(path: Path) -> list[str]:
    return path.read_text().splitlines()[:-1]


if __name__ == "__main__":
    main()
