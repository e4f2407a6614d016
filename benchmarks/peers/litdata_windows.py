"""litdata: an item a window.

As its documentation has it (https://github.com/Lightning-AI/litdata, "Optimize data" and "Train"): `optimize` with a function
that yields the samples of an input, chunks of 64 MB; `StreamingDataset(..., shuffle=True)` and `StreamingDataLoader`.
``drop_last``, which the page recommends for ranks that must stay in step, would drop windows; one process does not need it.
litdata declares torchvision as a requirement, but imports it for images and videos only.
"""

import importlib
import multiprocessing
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from peers.corpus import Corpus, split_utterance
from peers.peer import Batch, Format, Peer

Utterance = tuple[torch.Tensor, int]


def write(corpus: Corpus, folder: Path) -> None:
    """Chunks of windows, by two workers."""
    import litdata

    inputs = list(zip(map(torch.tensor, corpus.utterances), corpus.labels, strict=True))
    start_method = multiprocessing.get_start_method()
    litdata.optimize(
        fn=partial(windows_of, in_frames=corpus.in_frames),
        inputs=inputs,
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=2,
        verbose=False,
    )
    multiprocessing.set_start_method(start_method, force=True)  # which `optimize` sets for the whole process


def windows_of(utterance: Utterance, in_frames: int) -> Iterator[Utterance]:
    """The samples of an utterance: windows (C*D,) float32 and its class."""
    frames, label = utterance
    for window in split_utterance(frames.numpy(), in_frames):
        yield torch.from_numpy(window.copy()), label


def loader(folder: Path, _corpus: Corpus, batch_size: int, workers: int) -> Iterable[Batch]:
    """All windows in litdata's order: chunks shuffled, and windows within."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)


PEERS = (
    Peer(
        name="litdata, windows",
        imports=partial(importlib.import_module, "litdata"),
        format=Format(name="litdata-windows", write=write, window_records=True),
        loader=loader,
    ),
)
