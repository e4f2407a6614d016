"""What `benchmarks/gpu.sh` does: a corpus, the steps in the order of their importance within a time, and the table.

    python benchmarks/gpu_results.py run FOLDER [--seconds 480] [--toy]

Each step is a program with a log of its own in FOLDER; one that fails, or for which no time is left, is a row that says so.
Writes `gpu.json`, every figure with the command that shows it, and `results.md`. With --toy every step runs at a tiny size on a
CPU, so that the script cannot rot; its results are not kept.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shards import read_list
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import machine
from spkid_dist.measure.synthetic import SyntheticCorpus

HERE = Path(__file__).parent
IN_FRAMES = 21
NVIDIA_SMI = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"]
SMALL, LARGE = "157 speakers, D = 20", "5,994 speakers, D = 80"
THIS, ENGINES, PEERS = "benchmarks/gpu_results.py", "benchmarks/gpu_engines.py", "benchmarks/gpu_peers.py"
EPOCHS = 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A program: its name, its arguments after the interpreter, and the seconds that it may take."""

    name: str
    arguments: list[str]
    seconds: int


@dataclass
class Campaign:
    """The steps of a run, and what came of each."""

    folder: Path
    toy: bool
    ends: float
    outcomes: dict[str, Row] = field(default_factory=dict)

    def run(self, step: Step) -> None:
        """Run a step, or note that no time is left for it."""
        command = " ".join(["python", *map(shlex.quote, step.arguments)])
        outcome: Row = {"command": command.replace(str(self.folder), "OUT")}
        self.outcomes[step.name] = outcome
        left = self.ends - time.monotonic()
        if left < min(step.seconds, 15):
            outcome["failed"] = "no time was left"
            print(f"{step.name}: left out, no time is left", flush=True)
            return
        began = time.monotonic()
        with (self.folder / f"{step.name}.log").open("w") as log:
            try:
                done = subprocess.run(
                    [sys.executable, *step.arguments], stdout=log, stderr=subprocess.STDOUT, check=False,
                    timeout=min(step.seconds, left), cwd=HERE.parent, env=environment(self.toy),
                )  # fmt: skip
                if done.returncode:
                    outcome["failed"] = f"ended with {done.returncode}"
            except subprocess.TimeoutExpired:
                outcome["failed"] = "took too long"
        outcome["seconds"] = round(time.monotonic() - began, 1)
        print(f"{step.name}: {outcome.get('failed', 'done')} after {outcome['seconds']} s", flush=True)

    def rows(self, name: str) -> list[Row]:
        """The JSON lines of a step's log, whether or not the step came to its end."""
        path = self.folder / f"{name}.log"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return found


def environment(toy: bool) -> dict[str, str]:
    """Of the steps: toy ones are told to use a CPU, and one thread."""
    if not toy:
        return dict(os.environ)
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Run all; ends with 1 where a step failed or a figure falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "corpus"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--toy", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--num_features", type=int, default=20)
    parser.add_argument("--speakers", type=int, default=157)
    parser.add_argument("--frames", type=int, default=640_000)
    options = parser.parse_args()
    if options.what == "corpus":
        make_corpus(options.folder, options.num_features, options.speakers, options.frames)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(options.folder.resolve(), options.toy, time.monotonic() + options.seconds)
    for step in steps(campaign.folder, options.toy):
        campaign.run(step)
    result = collect(campaign)
    (campaign.folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    (campaign.folder / "results.md").write_text(text)
    print(text)
    sys.exit(int(not all(row["reached"] for row in result["asked"])))


def make_corpus(folder: Path, num_features: int, speakers: int, frames: int) -> None:
    """Training and validation shards, in `train` and `test` below `folder`."""
    mean_frames = max(24, min(250, frames // speakers // 2))
    corpus = SyntheticCorpus(
        num_speakers=speakers,
        train_utterances=max(1, frames // (speakers * mean_frames)),
        test_utterances=1,
        mean_frames=mean_frames,
        num_features=num_features,
    )
    files = synthetic_files(corpus, folder)
    files.shard(folder / "train")
    replace(files, listed=read_list(folder / "cfg/all.test")).shard(folder / "test")


def steps(out: Path, toy: bool) -> Iterator[Step]:
    """All steps, the most important first.

    Not the whole product of engines, formats and sizes: the fused and the graph engine in all formats at the batch sizes that
    figures are asked for, the eager one where a plain loop stands beside it, and wide layers and many speakers at one size.
    """
    small, large = out / "corpus-small", out / "corpus-large"
    yield from small_steps(small, toy)
    for engine in ("auto", "graph"):
        yield Step(f"epochs-{engine}", [
            "-m", "spkid_dist.train", "--tr_shards", str(small / "train"), "--va_shards", str(small / "test"), "--epoch",
            str(2 if toy else EPOCHS), "--patience", str(EPOCHS), "--log_freq", "1000", "--engine", engine, "--save_path",
            str(out / f"epochs-{engine}"), "--overwrite",
        ], 60)  # fmt: skip
    yield Step("stream", [ENGINES, "stream", str(small / "train"), "--seconds", "0.05" if toy else "1"], 40)
    yield from large_steps(large, toy)
    bench = ["-m", "spkid_dist", "bench"]
    limits = ["limits", "--shards", str(small / "train"), "--repeats", "1", "--buffer_bytes", "64000000"]
    yield Step("limits", [*bench, *limits], 60)
    yield Step("score", [*bench, "score", "--shards", str(small / "test"), "--repeats", "1"], 60)
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/stream/test_ring.py", "tests/train/test_fused.py"]
    tests += ["tests/train/test_deviceengine.py"]
    yield Step("tests", [*tests, *(["-k", "table"] if toy else ["--gpu", "-m", "gpu or device", "tests"])], 120)


def small_steps(small: Path, toy: bool) -> Iterator[Step]:
    """The classic network on few speakers: the engines, and what a user would write by hand."""
    few = ["--frames", "3000"] if toy else []
    yield Step("corpus-small", [THIS, "corpus", str(small), *few, *(["--speakers", "5"] if toy else [])], 60)
    formats = ["fp32"] if toy else ["fp32", "tf32", "bf16"]
    sizes = [16] if toy else [1000, 65_536, 8192]
    cases = [f"{engine}:{kind}:{size}:100" for size in sizes for kind in formats for engine in ("fused", "graph")]
    cases += [f"eager:fp32:{sizes[0]}:100", f"fused:bf16:{sizes[-1]}:512", f"graph:bf16:{sizes[-1]}:512"]
    if toy:  # kernels are interpreted
        cases = [f"{engine}:fp32:16:16" for engine in ("fused", "graph", "eager")]
    yield Step("engines-small", engine_task(small, cases, toy), 150)
    for size in sizes[:2]:
        for kind in formats:
            task = ["--batch_size", str(size), "--precision", kind, "--seconds", "0.02" if toy else "1"]
            only = ["plain", "graphs"] if toy else ["plain", "graphs", "compiled"]
            if size == sizes[0] and kind == "fp32":
                only = ["loader-0", *only] if toy else ["loader-0", "loader-8", *only]
            yield Step(f"peers-small-{size}-{kind}", [PEERS, *task, *few, "--only", *only], 60)


def large_steps(large: Path, toy: bool) -> Iterator[Step]:
    """Wide layers, many features and many speakers, at one batch size."""
    few = ["--frames", "3000"] if toy else []
    corpus = ["--num_features", "80", "--speakers", "11" if toy else "5994", *(few or ["--frames", "720000"])]
    yield Step("corpus-large", [THIS, "corpus", str(large), *corpus], 90)
    wide = ["fp32"] if toy else ["bf16", "tf32", "fp32"]
    size, hsize = (16, 32) if toy else (8192, 512)
    both = ("graph",) if toy else ("fused", "graph")
    cases = [f"{engine}:{kind}:{size}:{hsize}" for kind in wide for engine in both]
    yield Step("engines-large", engine_task(large, cases, toy), 90)
    task = ["--batch_size", str(size), "--num_features", "80", "--hsize", str(hsize), "--speakers", "5994"]
    task += ["--precision", wide[0], "--seconds", "0.02" if toy else "1", *few]
    only = ["plain", "graphs"] if toy else ["plain", "graphs", "compiled"]
    yield Step(f"peers-large-{size}-{wide[0]}", [PEERS, *task, "--only", *only], 60)


def engine_task(corpus: Path, cases: Sequence[str], toy: bool) -> list[str]:
    """The command that times the training steps of engines: ENGINE:PRECISION:BATCH:HSIZE each."""
    return [ENGINES, "steps", str(corpus / "train"), "--seconds", "0.02" if toy else "0.6", "--cases", *cases]


def collect(campaign: Campaign) -> Row:
    """All that was found, with the commands; a missing figure is None, and is not reached."""
    result: Row = {
        "card": card(campaign.toy),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": machine() | {"cuda": torch.version.cuda},
        "toy": campaign.toy,
        "steps": campaign.outcomes,
        "engines": [row | {"data": SMALL} for row in campaign.rows("engines-small")]
        + [row | {"data": LARGE} for row in campaign.rows("engines-large")],
        "peers": [
            row | {"data": SMALL if "small" in name else LARGE}
            for name in campaign.outcomes
            if name.startswith("peers-")
            for line in campaign.rows(name)
            for row in line["rows"]
        ],
        "stream": campaign.rows("stream"),
        "limits": [row for line in campaign.rows("limits") for row in line.get("rows", [])],
        "score": [row for line in campaign.rows("score") for row in line.get("rows", [])],
        "epochs": {name: summary(campaign.folder / f"epochs-{name}") for name in ("auto", "graph")},
    }
    result["asked"] = list(asked(result))
    return result


def card(toy: bool) -> str:
    """The GPU, its driver, memory and clock; or that it is a CPU."""
    if toy or not torch.cuda.is_available():
        return "no GPU"
    return subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]


def summary(folder: Path) -> Row | None:
    """A training's summary, with the loss of the first epoch; None where it did not end."""
    if not (folder / "summary.json").exists():
        return None
    found: Row = json.loads((folder / "summary.json").read_text())
    return found | {"first_loss": json.loads((folder / "train_stats.json").read_text())["tr_loss"][0]}


def asked(result: Row) -> Iterator[Row]:
    """The figures that are asked for: what was found, and whether it is enough."""

    def engine(name: str, size: int, data: str = SMALL, what: str = "streamed", **more: Any) -> float | None:
        wanted = {"engine": name, "batch_size": size, "data": data} | more
        return largest(row.get(what) for row in result["engines"] if wanted.items() <= row.items())

    def peer(size: int, names: tuple[str, ...], data: str = SMALL, **more: Any) -> float | None:
        wanted = {"batch_size": size, "data": data} | more
        rows = [row for row in result["peers"] if wanted.items() <= row.items() and row["name"] in names]
        return largest(row.get("windows_per_second") for row in rows)

    every = ("plain", "graphs", "compiled")
    yield at_least("fused, batch 1,000", engine("fused", 1000), 25e6)
    yield times("fused, batch 1,000, times the best plain torch program", engine("fused", 1000), peer(1000, every), 4.0)
    for kind, rate in (("bf16", 200e6), ("fp32", 120e6)):
        found = engine("fused", 65_536, precision=kind, hsize=100)
        yield at_least(f"fused, batch 65,536, {kind}", found, rate)
        best = peer(65_536, every, precision=kind)
        yield times(f"fused, batch 65,536, {kind}, times the best plain torch program", found, best, 2.0)
    yield at_least("graph, batch 1,000, fp32", engine("graph", 1000, precision="fp32"), 5e6)
    in_graphs = peer(1000, ("graphs",), precision="fp32")
    yield times(
        "graph, batch 1,000, fp32, times plain torch in graphs", engine("graph", 1000, precision="fp32"), in_graphs, 1.0
    )
    wide = engine("fused", 8192, LARGE, precision="bf16")
    yield times(f"{LARGE}, batch 8,192, bf16, times torch compiled", wide, peer(8192, ("compiled",), LARGE), 1.5)
    plain = peer(1000, ("plain",), precision="fp32")
    yield times("eager, batch 1,000, fp32, times a plain torch loop", engine("eager", 1000), plain, 1.0)
    shares = [row["streamed"] / row["cached"] for row in result["engines"] if row.get("cached")]
    yield at_least("least share of the cached batch's rate, of all engines", min(shares, default=None), 0.97)
    waiting = largest(row.get("waiting") for row in result["engines"])
    yield at_most("largest share of waiting for data, of all engines", waiting, 0.01)
    pools = largest(row["windows_per_second"] for row in result["stream"] if row["stream"] == "pools")
    yield at_least("stream to the device, pools of a twentieth of the data", pools, 60e6)
    run = result["epochs"]["auto"]
    took = None if run is None else run["run_training_seconds"] + run["run_validation_seconds"]
    yield at_most(f"seconds of {EPOCHS} epochs at batch 1,000, validation included", took, 1.5)


def largest(values: Iterator[float | None]) -> float | None:
    """The largest of the values that are there; None where none is."""
    return max((value for value in values if value is not None), default=None)


def at_least(what: str, found: float | None, wanted: float) -> Row:
    """A figure that is to be large."""
    return {
        "what": what,
        "found": found,
        "asked": f"≥ {readable(wanted)}",
        "reached": found is not None and found >= wanted,
    }


def at_most(what: str, found: float | None, wanted: float) -> Row:
    """A figure that is to be small."""
    return {
        "what": what,
        "found": found,
        "asked": f"≤ {readable(wanted)}",
        "reached": found is not None and found <= wanted,
    }


def times(what: str, found: float | None, other: float | None, wanted: float) -> Row:
    """The ratio of two figures, which is to be large."""
    return at_least(what, None if found is None or not other else found / other, wanted)


def readable(value: float | None) -> str:
    """A rate in millions, or a number as it is."""
    if value is None:
        return "missing"
    return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(result: Row) -> str:
    """What was found, as Markdown."""
    lines = [f"{result['card']}; torch {result['machine']['torch']}; {result['date']}", ""]
    lines += ["| figure | found | asked |", "|---|---|---|"]
    lines += [
        f"| {row['what']} | {readable(row['found'])}{'' if row['reached'] else ' (not reached)'} | {row['asked']} |"
        for row in result["asked"]
    ]
    lines += ["", "| million windows/s | batch | format | from the stream | on one batch |", "|---|---|---|---|---|"]
    for row in result["engines"]:
        name = f"`--engine {row['engine']}`, {row['data']}, {row['hsize']} units"
        rates = f"{readable(row.get('streamed'))} | {readable(row.get('cached'))}"
        lines.append(f"| {name} | {row['batch_size']:,} | {row['precision']} | {row.get('error', rates)} |")
    for row in result["peers"]:
        rate = readable(row.get("windows_per_second"))
        lines.append(
            f"| {row['name']}, {row['data']} | {row['batch_size']:,} | {row['precision']} | | {row.get('error', rate)} |"
        )
    lines += ["", "| stream to the device | batch | windows/s |", "|---|---|---|"]
    lines += [
        f"| {row['stream']}, {row['shuffle_windows']:,} windows shuffled | {row['batch_size']:,} | "
        f"{readable(row['windows_per_second'])} |"
        for row in result["stream"]
    ]
    failed = [f"- {name}: {step['failed']}" for name, step in result["steps"].items() if "failed" in step]
    lines += ["", *(["Steps that failed or were left out:", "", *failed] if failed else ["No step failed."]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
