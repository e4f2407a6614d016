"""torch's DataLoader over a map-style dataset: all frames in memory, a window an item.

As torch's documentation has it (https://docs.pytorch.org/docs/stable/data.html, "Map-style datasets" and "Loading Batched and
Non-Batched Data"): `__len__`, `__getitem__`, ``shuffle=True``, the default collation. Nothing is written: it reads
the feature files when it starts, and needs memory for all of them. An item is a view of the frames; the batch is the one copy.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from peers.corpus import Corpus
from peers.peer import Batch, Peer


class MemoryWindows(Dataset[tuple[torch.Tensor, int]]):
    """The map-style dataset that a plain program has: all frames in memory, a window (C*D,) at a time."""

    def __init__(self, corpus: Corpus) -> None:
        self.frames = torch.from_numpy(np.concatenate(corpus.utterances))
        self.in_frames = corpus.in_frames
        self.starts: list[int] = []
        self.labels: list[int] = []
        base = 0
        for frames, label in zip(corpus.utterances, corpus.labels, strict=True):
            count = max(0, len(frames) - corpus.in_frames + 1)
            self.starts += range(base, base + count)
            self.labels += [label] * count
            base += len(frames)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        start = self.starts[index]
        return self.frames[start : start + self.in_frames].reshape(-1), self.labels[index]


def loader(_folder: Path, corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """All windows, in a new order each epoch."""
    return DataLoader(MemoryWindows(corpus), batch_size=batch_size, shuffle=True, num_workers=workers)


PEERS = (Peer(name="DataLoader", format=None, loader=loader),)
