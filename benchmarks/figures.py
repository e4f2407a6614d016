"""Measure all that is asked of the project's speed by one command, and write the tables and the picture of it.

    python benchmarks/figures.py [--only shard train] [--render]

Runs the benchmarks one after the other, keeps the JSON line of each in `benchmarks/results`, and writes the tables between the
marks in docs/explanation/measurements.md and README.md, and docs/pictures/speed.svg. `--render` only writes these, from the
results that are there. Every figure is a ratio of one run, or
seconds and bytes asked for as such. Ends with 1 where a benchmark failed; a figure that falls short stays in the table, and so
does a system that is faster. The comparison of systems (peers) needs the environment that `make bench-peers` sets up.
"""

import argparse
import datetime
import json
import operator
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gpu_results

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/explanation/measurements.md"
THREATS = HERE.parent / "docs/explanation/threat-model.md"
README = HERE.parent / "README.md"
PICTURE = HERE.parent / "docs/pictures/speed.svg"
BEGIN, END = "<!-- figures: written by benchmarks/figures.py -->", "<!-- end of figures -->"
BEGIN_FAULTS, END_FAULTS = "<!-- faults: written by benchmarks/figures.py -->", "<!-- end of faults -->"
FAULTS = "faults"  # by tests/faults/campaign.py
PEERS = "peers"
PEERS_PYTHON = HERE.parent / ".venv-peers/bin/python"
BATCH = 1000  # windows, of bench_peers.py
BEFORE_GPU_RESULTS = """\
On a GPU, `--engine fused` and the present `--engine graph` have not been timed yet; `benchmarks/gpu.sh OUT` does it in
8 minutes. The known values are from an older graph engine, on one H200 (torch 2.11, 2026-11; C = 21, D = 20, 157 speakers,
float32), in million windows/s:

| | batch 1,000 | batch 65,536 |
|---|---|---|
| plain torch, 20 steps in one CUDA graph, network and loss compiled | 5.7 | |
| plain torch, 20 steps in one CUDA graph | 4.8 | 43.5 |
| the graph engine of then, from the stream | 3.0 | 28.4 |
| a plain torch loop on one batch | 0.57 | |
| the eager engine of then | 0.4 | |
| a DataLoader program, 8 workers | 0.28 | |"""
Result = dict[str, Any]


class Figure(NamedTuple):
    """A figure of a benchmark's JSON line: what it is, where it stands, and what is asked (None: nothing)."""

    benchmark: str
    what: str
    find: Callable[[Result], float]
    asked: tuple[str, float] | None
    style: str = "{:.2f}"


def ratio(*words: str) -> Callable[[Result], float]:
    """The one ratio whose name has all `words`."""

    def find(result: Result) -> float:
        (value,) = (value for name, value in result["ratios"].items() if all(word in name for word in words))
        return float(value)

    return find


def median(*path: str) -> Callable[[Result], float]:
    """The median of the values at `path`."""

    def find(result: Result) -> float:
        values: Any = result
        for name in path:
            values = values[name]
        return float(sorted(values)[len(values) // 2])

    return find


def utterances_of_uniform(result: Result) -> float:
    """Utterances in a batch of the default pools, of those in a batch of a uniform permutation."""
    rows = list(result["rows"].values())
    return float(rows[-1]["utterances"] / rows[0]["utterances"])


def largest_ratio(result: Result) -> float:
    """The largest of all ratios."""
    return float(max(result["ratios"].values()))


def of_shards(what: str) -> Callable[[Result], float]:
    """Seconds or MB with the fewest shards."""
    return lambda result: float(next(iter(result["rows"].values()))[what])


SECONDS, PERCENT, MB = "{:.2f} s", "{:.1%}", "{:.0f} MB"
FIGURES = (
    Figure("shard", "Sharding rate, 2 workers (share of `tar cf`)", ratio("2 workers", "of tar"), (">=", 0.5)),
    Figure("shard", "Sharding rate, 1 process (share of `tar cf`)", ratio("1 process", "of tar"), (">=", 0.5)),
    Figure(
        "shard", "Sharding rate, 2 workers (times webdataset's ShardWriter)", ratio("2 workers", "times"), (">=", 5.0)
    ),
    Figure("shard_memory", "Memory of sharding 5 GB (times that of 500 MB)", ratio("1 workers"), ("<=", 1.2)),
    Figure(
        "stream",
        "Streaming rate, dataset in memory (share of memory copy)",
        ratio("resident", "of the limit"),
        (">=", 0.7),
    ),
    Figure(
        "stream",
        "Streaming rate, dataset in memory (times the best other)",
        ratio("resident", "times"),
        (">=", 15.0),
    ),
    Figure(
        "stream",
        "Streaming rate, pools of a twentieth (share of memory copy)",
        ratio("pools", "of the limit"),
        None,
    ),
    Figure(
        "stream",
        "Streaming rate, pools of a twentieth (times the best other)",
        ratio("pools", "times"),
        (">=", 15.0),
    ),
    Figure("shuffle", "Utterances per batch (share of a uniform permutation's)", utterances_of_uniform, None),
    Figure(
        "resume",
        "Time to the first batch, after the imports",
        median("seconds", "from the start"),
        ("<=", 1.0),
        SECONDS,
    ),
    Figure("resume", "Time to resume at any place, at most (times that of a start)", largest_ratio, None),
    Figure(
        "train",
        "Training rate, fp32 (share of the same steps on a cached batch)",
        ratio("fp32", "cached"),
        (">=", 0.95),
    ),
    Figure("train", "Time waiting for data, fp32", median("waiting", "ours, fp32"), ("<=", 0.03), PERCENT),
    Figure("train", "Training rate, fp32 (times a plain DataLoader program)", ratio("fp32", "plain"), (">=", 3.5)),
    Figure(
        "train",
        "Training rate, bf16 (share of the same steps on a cached batch)",
        ratio("bf16", "cached"),
        (">=", 0.95),
    ),
    Figure("train", "Time waiting for data, bf16", median("waiting", "ours, bf16"), ("<=", 0.03), PERCENT),
    Figure("train", "Training rate, bf16 (times a plain DataLoader program)", ratio("bf16", "plain"), (">=", 5.0)),
    Figure(
        "score",
        "Scoring rate from files (times a loop over single utterances)",
        ratio("files", "plain loop"),
        (">=", 5.0),
    ),
    Figure(
        "score", "Scoring rate from files (times a loop that stacks by a view)", ratio("files", "careful loop"), None
    ),
    Figure("score", "Scoring rate from shards (share of the network alone)", ratio("shards", "network alone"), None),
    Figure(
        "order",
        "Time to plan 10^12 windows for one of 4,096 ranks, and to seek",
        of_shards("seconds"),
        ("<=", 1.0),
        "{:.3f} s",
    ),
    Figure("order", "Memory of that plan, beyond the imports", of_shards("megabytes"), ("<=", 200.0), MB),
    Figure(
        "simulate", "Training rate of 1 process (share of what `spkid simulate` predicts)", ratio("windows/s, 1"), None
    ),
    Figure("simulate", "Training rate of 2 processes (share of the prediction)", ratio("windows/s, 2"), None),
    Figure("simulate", "Time to the first batch (times the prediction)", ratio("first batch, s, 1"), None),
    Figure("simulate", "Memory of the stream (times the prediction)", ratio("stream, bytes, 1"), None),
)
FAULT_PARTS = {
    "inputs": "bad inputs",
    "flips": "flipped bits",
    "kills": "kills at random moments",
    "races": "races",
    "disks": "full disks",
    "servers": "lying servers",
}
IN_README = {
    ("shard", "Sharding rate, 2 workers (share of `tar cf`)"),
    ("stream", "Streaming rate, dataset in memory (times the best other)"),
    ("stream", "Streaming rate, dataset in memory (share of memory copy)"),
    ("train", "Training rate, fp32 (times a plain DataLoader program)"),
    ("train", "Training rate, fp32 (share of the same steps on a cached batch)"),
    ("resume", "Time to resume at any place, at most (times that of a start)"),
}
COMPARE = {">=": operator.ge, "<=": operator.le}


def main() -> None:
    """Run what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(figure.benchmark for figure in FIGURES))
    here = [*names, PEERS] if PEERS_PYTHON.exists() else names
    parser.add_argument(
        "--only", nargs="+", choices=[*names, PEERS], default=here, help="run these; the others' results stay"
    )
    parser.add_argument("--render", action="store_true", help="run nothing, write the table")
    options = parser.parse_args()
    failed = [] if options.render else [name for name in options.only if not run(name)]
    write_between_marks(PAGE, f"{table(FIGURES)}\n{peers_table()}{gpu_table()}")
    write_between_marks(README, table([figure for figure in FIGURES if (figure.benchmark, figure.what) in IN_README]))
    write_between_marks(README, faults_sentence(), BEGIN_FAULTS, END_FAULTS)
    write_between_marks(THREATS, faults_table(), BEGIN_FAULTS, END_FAULTS)
    draw_speed()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def write_between_marks(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `text` between the marks of a page. Ends with 1 where it has no marks."""
    head, _, rest = path.read_text().partition(begin)
    _, mark, tail = rest.partition(end)
    if not mark:
        sys.exit(f"{path}: has no marks {begin} and {end} in this order")
    path.write_text(f"{head}{begin}\n{text}{end}{tail}")


def run(name: str) -> bool:
    """Run a benchmark at its default size and keep its JSON line."""
    began = time.monotonic()
    done = subprocess.run(
        [PEERS_PYTHON if name == PEERS else sys.executable, "-W", "ignore", HERE / f"bench_{name}.py"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout, f"{name}: {time.monotonic() - began:.0f} s, exit code {done.returncode}", sep="", flush=True)
    if done.returncode:
        return False
    result = json.loads(done.stdout.splitlines()[-1]) | {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return True


def table(figures: Sequence[Figure]) -> str:
    """The table of those figures whose results are there."""
    lines = ["", "| what | found | asked | benchmark |", "|---|---|---|---|"]
    machines = {}
    for figure in figures:
        path = RESULTS / f"{figure.benchmark}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        value = figure.find(result)
        found, asked = figure.style.format(value), ""
        if figure.asked is not None:
            sign, bound = figure.asked
            asked = f"{'≥' if sign == '>=' else '≤'} {figure.style.format(bound)}"
            if not COMPARE[sign](value, bound):
                found, asked = f"**{found}**", f"{asked}, short"
        lines.append(f"| {figure.what} | {found} | {asked} | `bench_{figure.benchmark}.py` |")
        machines[machine_of(result)] = None
    return "\n".join([*lines, "", f"(Medians, data in the page cache. {' and '.join(machines)}.)", ""])


def machine_of(result: Result) -> str:
    """On what a result was measured, and when."""
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}; {result['date']}"


def gpu_table() -> str:
    """What `benchmarks/gpu.sh` found; without its results, what is known."""
    path = RESULTS / "gpu.json"
    if not path.exists():
        return f"{BEFORE_GPU_RESULTS}\n\n"
    return f"On a GPU (`benchmarks/gpu.sh`):\n\n{gpu_results.table(json.loads(path.read_text()))}\n"


def faults_sentence() -> str:
    """What `make faults` found, in two lines; nothing where it has not run."""
    path = RESULTS / f"{FAULTS}.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    counts = ", ".join(f"{part['cases']:,} {FAULT_PARTS[name]}" for name, part in result["parts"].items())
    fell = sum(part["fell"] for part in result["parts"].values())
    memory = max(part["peak_megabytes"] for part in result["parts"].values())
    return (
        f"Under attack by {counts} (`make faults`; {result['date']}): {fell} cases fell, at most {memory} MB of memory.\n"
        "A case falls by a traceback, a signal, a hang, a wrong result or files left behind: [how it is tested]"
        "(docs/explanation/threat-model.md#how-it-is-tested).\n"
    )


def faults_table() -> str:
    """What `make faults` found: cases of each part, and how many fell; nothing where it has not run."""
    path = RESULTS / f"{FAULTS}.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    lines = ["", "| attack | cases | fell | longest | most memory |", "|---|---|---|---|---|"]
    for name, part in result["parts"].items():
        fell = f"**{part['fell']}**" if part["fell"] else "0"
        longest, memory = f"{part['longest_seconds']:.0f} s", f"{part['peak_megabytes']} MB"
        lines.append(f"| {FAULT_PARTS[name]} | {part['cases']:,} | {fell} | {longest} | {memory} |")
    return "\n".join([*lines, "", f"(`make faults`, seed {result['seed']}; {result['date']}.)", ""])


def peers_table() -> str:
    """The table of all systems' rates, from the fastest on; nothing where they were not measured."""
    path = RESULTS / f"{PEERS}.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    lines = ["Streaming shuffled windows, as each system's documentation recommends it (`bench_peers.py`):", ""]
    lines += ["| system | thousand windows/s | spkid-dist, times it |", "|---|---|---|"]
    times = {name.split(", times ")[1]: f"{value:,.1f}" for name, value in result["ratios"].items()}
    seconds = {name: statistics.median(values) for name, values in result["seconds_per_batch"].items()}
    for name in sorted(seconds, key=seconds.__getitem__):
        lines.append(f"| {name} | {BATCH / seconds[name] / 1e3:,.1f} | {times.get(name, '')} |")
    lines += [f"| {name} | {reason} | |" for name, reason in result["unavailable"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"({versions}; {machine_of(result)}.)", "", ""])


def draw_speed() -> None:
    """Draw each system's best rate of streaming shuffled windows as a bar; nothing where they were not measured."""
    path = RESULTS / f"{PEERS}.json"
    if not path.exists():
        return
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    best: dict[str, float] = {}
    for name, values in json.loads(path.read_text())["seconds_per_batch"].items():
        system = ", ".join(part for part in name.split(", ") if "worker" not in part)
        best[system] = max(best.get(system, 0.0), BATCH / statistics.median(values))
    names = sorted(best, key=best.__getitem__)
    with rc_context({"svg.hashsalt": "speed", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawing = Drawing(figsize=(8, 3.2), layout="constrained")
        axes = drawing.subplots()
        colors = ["#00796b" if name == "spkid-dist" else "#90a4ae" for name in names]
        bars = axes.barh(names, [best[name] for name in names], color=colors)
        axes.bar_label(bars, [f" {best[name] / 1e3:,.0f}" for name in names])
        axes.set(xscale="log", xlim=(1e3, 3e7), title="Shuffled context windows per second, in thousands (log scale)")
        axes.spines[["top", "right"]].set_visible(False)
        drawing.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
