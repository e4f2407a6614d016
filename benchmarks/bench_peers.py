"""Streaming shuffled context windows, by this project and by what a user would pick instead: rates, writing, bytes on disk.

    python benchmarks/bench_peers.py [--frames 587000] [--record_frames 200000] [--repeats 5]

The same work for all: batches of 1,000 x (21 * 20) float32 in a shuffled order, 2 torch threads, data in the page cache. Each
system is set up as its documentation recommends, with 0, 1 and 2 workers (`benchmarks/peers/`). Systems that keep a record a
window write each frame 21 times; they get the first utterances of the corpus, --record_frames in all: how fast a record is
read does not hang on how many there are. A run of theirs is --peer_batches batches; loaders run on from one to the next, so
that their start is not counted, and what their workers fetched ahead in between (2 batches each) is counted for them. Each
run waits until the workers of the others are at rest.
Those that are not installed are named in the table.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from peers.corpus import Corpus, read_corpus
from peers.peer import Format, Peer
from peers.registry import PEERS
from peers.rows import open_rows, take_case, wait_for_workers, write_timed

from spkid_dist.bench.corpus import Files, synthetic_files
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.stream import stream_case
from spkid_dist.dataset import WindowDataset
from spkid_dist.measure.synthetic import SyntheticCorpus

C, B, D = 21, 1000, 20
SPEAKERS, MEAN_FRAMES = 20, 250
WORKERS = (0, 1, 2)
OURS = "spkid-dist"


def main() -> None:
    """Make a corpus, write it in every format, time the ways to stream it, print tables and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--record_frames", type=int, default=200_000, help="for systems with a record a window, about")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way")
    parser.add_argument("--peer_batches", type=int, default=60, help="batches of a run of the other systems")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="numbers of workers to try")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Write and time all ways in `folder`."""
    files = make_files(folder, options.frames)
    whole = read_corpus(folder, C)
    part = first_utterances(whole, options.record_frames)

    def corpus_of(peer: Peer) -> Corpus:
        return part if peer.window_records else whole

    unavailable = {peer.name: reason for peer in PEERS if (reason := peer.unavailable) is not None}
    present = [peer for peer in PEERS if peer.name not in unavailable]
    ours = Format(name="shards", write=lambda _, out: files.shard(out), window_records=False)
    written = {OURS: write_timed(ours, whole, folder)}
    for peer in present:
        if peer.format is not None and peer.format.name not in written:
            written[peer.format.name] = write_timed(peer.format, corpus_of(peer), folder)
    dataset = WindowDataset(folder / "shards", in_frames=C, batch_size=B)
    batches = {OURS: len(dataset)}
    cases: dict[str, Callable[[], object]] = {OURS: stream_case(dataset)}
    for peer in present:
        for row, loader in open_rows(peer, corpus_of(peer), folder, B, options.workers):
            cases[row], batches[row] = take_case(loader, options.peer_batches), options.peer_batches
    seconds = seconds_in_turn(cases, options.repeats, before=wait_for_workers)
    report(seconds, batches, written, unavailable, whole.num_windows)


def make_files(folder: Path, frames: int) -> Files:
    """A synthetic corpus of about so many frames, written to `folder` as feature files."""
    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS,
        train_utterances=max(1, frames // (SPEAKERS * MEAN_FRAMES)),
        test_utterances=0,
        mean_frames=MEAN_FRAMES,
    )
    return synthetic_files(corpus, folder)


def first_utterances(corpus: Corpus, frames: int) -> Corpus:
    """As many utterances as have about so many frames."""
    count = max(1, frames // MEAN_FRAMES)
    return Corpus(
        keys=corpus.keys[:count],
        utterances=corpus.utterances[:count],
        labels=corpus.labels[:count],
        in_frames=corpus.in_frames,
    )


def versions() -> dict[str, str]:
    """The versions of the systems that are installed, besides those that the machine's facts have."""
    found = {}
    for name in ("litdata", "datasets", "mosaicml-streaming"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def report(
    seconds: dict[str, list[float]],
    batches: dict[str, int],
    written: dict[str, dict[str, float]],
    unavailable: dict[str, str],
    windows: int,
) -> None:
    """Print what was written, the rates, who is missing, and the JSON line."""
    for name, row in written.items():
        per_window = row["bytes"] / row["windows"]
        print(f"{name:36} written in {row['seconds']:6.2f} s, {row['windows']:,} windows, {per_window:,.0f} bytes each")
    for name, reason in unavailable.items():
        print(f"{name:36} {reason}")
    per_batch = {name: [second / batches[name] for second in values] for name, values in seconds.items()}
    ratios = {
        f"{OURS}, times {name}": ratio_by_rounds(values, per_batch[OURS])
        for name, values in per_batch.items()
        if name != OURS
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f}")
    result: dict[str, Any] = {
        "benchmark": "peers",
        "windows": windows,
        "seconds_per_batch": per_batch,
        "written": written,
        "unavailable": unavailable,
        "versions": versions(),
        "ratios": ratios,
    }
    print_result([(name, values, batches[name] * B / 1e3) for name, values in seconds.items()], result, "thousand/s")


if __name__ == "__main__":
    main()
