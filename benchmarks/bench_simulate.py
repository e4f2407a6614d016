"""What `spkid simulate` predicts for this machine, against what happens on it, with 1 and with 2 processes.

    python benchmarks/bench_simulate.py [--frames 587000] [--epochs 3] [--processes 1 2]

A synthetic corpus is sharded; its training is predicted with rates that are measured here, and then really launched. Windows a
second are those of `summary.json`, which count the first batch in, so the prediction does; the first batch is that of fresh
processes beside each other, after their imports; the stream's memory is the most that a rank's process holds of its own over
an epoch, pools and two batches (the allocator keeps some 5 to 20 MB more, which count here). The error is measured / predicted,
less 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards import read_list
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_json
from spkid_dist.config.simulate import SimulateConfig
from spkid_dist.measure.synthetic import SyntheticCorpus
from spkid_dist.simulate.clustermodel import predict
from spkid_dist.simulate.command import make_plan
from spkid_dist.simulate.devicerates import STACKED_VALUE_BYTES

MEAN_FRAMES = 250
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no", "--num_machines", "1")
STREAM = """
import gc, json, sys, time
from pathlib import Path
from spkid_dist.dataset import WindowDataset
folder, shuffle_windows, world_size, rank, what = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
def own():
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return 1024 * int(fields[fields.index("Private_Dirty:") + 1])
if what == "memory":  # the compiled loops are loaded first
    next(iter(WindowDataset(folder, shuffle_windows=64, rank=rank, world_size=world_size)))
    gc.collect()
    before = peak = own()
began = time.perf_counter()
data = WindowDataset(folder, shuffle_windows=shuffle_windows, rank=rank, world_size=world_size)
if what == "memory":
    for number, batch in enumerate(data):
        peak = max(peak, own()) if number % 5 == 0 else peak
    data.close()
    print(peak - before)
else:
    next(iter(data))
    print(time.perf_counter() - began)
"""


def main() -> None:
    """Make a corpus, predict, launch, print a table of errors and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--speakers", type=int, default=158)
    parser.add_argument(
        "--shuffle_windows", type=int, default=2**17, help="fewer than the corpus has, so that pools follow"
    )
    parser.add_argument("--epochs", type=int, default=3, help="of a training")
    parser.add_argument("--repeats", type=int, default=3, help="first batches of each kind; the median counts")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, options.speakers, options.frames)
        for processes in options.processes:
            predicted = foretell(folder / "train", processes, options)
            measured = {
                "windows/s": train(folder, processes, options),
                "first batch, s": statistics.median(
                    max(stream(folder, processes, options, "seconds")) for _ in range(options.repeats)
                ),
                "stream, bytes": max(stream(folder, processes, options, "memory")),
            }
            for what, value in measured.items():
                rows[f"{what}, {processes} processes"] = {"predicted": predicted[what], "measured": value}
    for name, row in rows.items():
        error = row["measured"] / row["predicted"] - 1
        print(f"{name:28} predicted {row['predicted']:14,.3f}  measured {row['measured']:14,.3f}  error {error:+.1%}")
    ratios = {name: row["measured"] / row["predicted"] for name, row in rows.items()}
    print_json({"benchmark": "simulate", "rows": rows, "ratios": ratios})


def write_corpus(folder: Path, speakers: int, frames: int) -> None:
    """A sharded corpus to train on, and one of its test utterances."""
    utterances = max(1, frames // (speakers * MEAN_FRAMES))
    corpus = SyntheticCorpus(
        num_speakers=speakers, train_utterances=utterances, test_utterances=1, mean_frames=MEAN_FRAMES
    )
    files = synthetic_files(corpus, folder)
    files.shard(folder / "train")
    replace(files, listed=read_list(folder / "cfg/all.test")).shard(folder / "test")


def foretell(shards: Path, processes: int, options: argparse.Namespace) -> dict[str, float]:
    """The prediction for as many processes of this machine."""
    config = SimulateConfig(shards=str(shards), gpus=processes, shuffle_windows=options.shuffle_windows)
    plan = make_plan(config)
    found = predict(plan)
    batch_bytes = found.rank_windows_per_step * plan.network.in_features * STACKED_VALUE_BYTES
    seconds = options.epochs * found.epoch_seconds + found.first_batch_seconds
    return {
        "windows/s": options.epochs * plan.corpus.num_windows / seconds,
        "first batch, s": found.first_batch_seconds,
        "stream, bytes": found.rank_pool_bytes + 2 * batch_bytes,
    }


def train(folder: Path, processes: int, options: argparse.Namespace) -> float:
    """Windows a second of a training that is launched."""
    launch = () if processes == 1 else (*LAUNCH, "--num_processes", processes, "--main_process_port", "0")
    flags: dict[str, Any] = {"tr_shards": folder / "train", "va_shards": folder / "test", "epoch": options.epochs}
    flags |= {"shuffle_windows": options.shuffle_windows, "save_path": folder / f"ckpt-{processes}"}
    parts = [part for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-W", "ignore", *launch, "-m", "spkid_dist.train", *parts, "--overwrite"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    summary = json.loads((flags["save_path"] / "summary.json").read_text())
    return float(summary["run_windows_per_second"])


def stream(folder: Path, processes: int, options: argparse.Namespace, what: str) -> list[float]:
    """What the streams of all ranks, each in a fresh process, say of `what`; they run beside each other."""
    arguments = [str(folder / "train"), str(options.shuffle_windows), str(processes)]
    running = [
        subprocess.Popen([sys.executable, "-c", STREAM, *arguments, str(rank), what], stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    found = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("a stream has failed")
    return [float(text) for text in found]


if __name__ == "__main__":
    main()
