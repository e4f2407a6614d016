"""Streaming shuffled context windows against copying the same bytes, and against what a user would pick instead.

    python benchmarks/bench_stream.py [--frames 587000] [--repeats 5]

Batches of B x (C*D) float32, all data in the page cache, 2 torch threads. The limit is copying a batch's bytes from a large
buffer into a tensor made anew for each batch, as the stream must. Rows: ours with the dataset resident (it fits the pools)
and with pools a twentieth of it; torch's DataLoader over windows of frames in memory, with 0, 1 and 2 workers;
webdataset with a record an utterance, windows made in a generator, and a shuffle of 50,000.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

from shards.sources.fmatrix import read_fmatrix
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.stream import copy_case, stream_case
from spkid_dist.dataset import WindowDataset
from spkid_dist.synthetic import SyntheticCorpus

C, B, D = 21, 1000, 20
SPEAKERS, MEAN_FRAMES = 20, 250


class MemoryWindows(Dataset[tuple[torch.Tensor, int]]):
    """The map-style dataset that a plain program has: all frames in memory, a window at a time."""

    def __init__(self, utterances: list[np.ndarray], labels: list[int]) -> None:
        self.frames = torch.from_numpy(np.concatenate(utterances))
        self.starts, self.labels, base = [], [], 0
        for frames, label in zip(utterances, labels, strict=True):
            self.starts += range(base, base + len(frames) - C + 1)
            self.labels += [label] * (len(frames) - C + 1)
            base += len(frames)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        start = self.starts[index]
        return self.frames[start : start + C].reshape(-1), self.labels[index]


def main() -> None:
    """Make a corpus, time the ways to stream it, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way")
    parser.add_argument("--peer_batches", type=int, default=60, help="batches of a run of the slow ways")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.frames // (SPEAKERS * MEAN_FRAMES), options.repeats, options.peer_batches)


def run(folder: Path, utterances_of_speaker: int, repeats: int, peer_batches: int) -> None:
    """Time all ways on a corpus made in `folder`."""
    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS, train_utterances=utterances_of_speaker, test_utterances=0, mean_frames=MEAN_FRAMES
    )
    synthetic_files(corpus, folder).shard(folder / "shards")
    windows = len(WindowDataset(folder / "shards", in_frames=C)) * B
    batches = {"limit: copying the bytes": windows // B} | dict.fromkeys(("resident", "pools"), windows // B)
    cases: dict[str, Callable[[], object]] = {
        "limit: copying the bytes": copy_case(windows // B, B, C * D, fresh=True),
        "resident": stream_case(stream(folder / "shards", windows)),
        "pools": stream_case(stream(folder / "shards", windows // 20)),
    }
    for name, loader in peers(folder):
        cases[name] = take_case(loader, peer_batches)
        batches[name] = peer_batches
    seconds = seconds_in_turn(cases, repeats)
    rows = [(name, values, batches[name] * B / 1e3) for name, values in seconds.items()]
    per_batch = {name: [second / batches[name] for second in values] for name, values in seconds.items()}
    best_peer = min(
        (name for name in cases if name.startswith(("DataLoader", "webdataset"))), key=lambda n: sum(per_batch[n])
    )
    ratios = {}
    for ours in ("resident", "pools"):
        ratios[f"{ours}, of the limit"] = ratio_by_rounds(per_batch["limit: copying the bytes"], per_batch[ours])
        ratios[f"{ours}, times {best_peer}"] = ratio_by_rounds(per_batch[best_peer], per_batch[ours])
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print_result(rows, {"benchmark": "stream", "windows": windows, "seconds": seconds, "ratios": ratios}, "thousand/s")


def stream(shards: Path, shuffle_windows: int) -> WindowDataset:
    """Ours."""
    return WindowDataset(shards, in_frames=C, batch_size=B, shuffle_windows=shuffle_windows)


def take_case(loader: Callable[[], Iterator[object]], batches: int) -> Callable[[], object]:
    """The first batches of a loader; its start and its workers' are left out by running on."""
    iterator = loader()

    def take() -> None:
        nonlocal iterator
        for _ in range(batches):
            try:
                next(iterator)
            except StopIteration:
                iterator = loader()
                next(iterator)

    return take


def peers(folder: Path) -> Iterator[tuple[str, Callable[[], Iterator[object]]]]:
    """What a user would pick instead, set up as its documentation recommends."""
    keys = (folder / "cfg/all.train").read_text().split()
    utterances = [read_fmatrix(f"{folder}/mcp/{key}.mcp") for key in keys]
    labels = [int(key.split("/")[1][3:]) for key in keys]
    memory = MemoryWindows(utterances, labels)
    for workers in (0, 1, 2):
        loader = DataLoader(memory, batch_size=B, shuffle=True, num_workers=workers)
        yield f"DataLoader, {workers} workers", lambda loader=loader: iter(loader)
    (folder / "wds").mkdir()
    with webdataset.ShardWriter(str(folder / "wds/%06d.tar"), maxcount=max(1, len(keys) // 8), verbose=0) as writer:
        for key, frames, label in zip(keys, utterances, labels, strict=True):
            writer.write({"__key__": key.replace("/", "_"), "npy": frames, "cls": label})
    urls = sorted(str(path) for path in (folder / "wds").glob("*.tar"))
    for workers in (0, 1, 2):
        dataset = webdataset.WebDataset(urls, shardshuffle=100).decode().compose(split_windows).shuffle(50_000)
        batched = dataset.batched(B)
        loader = webdataset.WebLoader(batched, batch_size=None, num_workers=workers)
        yield f"webdataset, {workers} workers", lambda loader=loader: iter(loader)


def split_windows(samples: Iterator[dict[str, object]]) -> Iterator[tuple[np.ndarray, int]]:
    """All windows of utterance records, one at a time."""
    for sample in samples:
        frames, label = sample["npy"], sample["cls"]
        for start in range(len(frames) - C + 1):
            yield frames[start : start + C].reshape(-1), label


if __name__ == "__main__":
    main()
