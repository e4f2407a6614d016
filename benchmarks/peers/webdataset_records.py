"""webdataset, in two ways: a record an utterance with its windows made in a generator, and a record a window.

As its documentation has it: `ShardWriter` makes the shards; short pieces of long records are cut by a generator given to
`compose` and shuffled after it (https://webdataset.github.io/webdataset/FAQ/, on sequences of video clips); where records are
the samples, they are shuffled before they are decoded (same page, issue 439); batches are made in the workers and loaded
by `WebLoader` with ``batch_size=None`` (https://webdataset.github.io/webdataset/sharding/). That page also shuffles once more
between workers, sample by sample, which costs and is left out here. Windows are shuffled in a buffer of 50,000.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import webdataset

from peers.corpus import Corpus, split_utterance
from peers.peer import Batch, Format, Peer

SHARDS = 8  # at least one for each worker
SHUFFLED_SHARDS, SHUFFLED_WINDOWS = 100, 50_000


def write_utterances(corpus: Corpus, folder: Path) -> None:
    """A record an utterance."""
    samples = zip(corpus.keys, corpus.utterances, corpus.labels, strict=True)
    records = ({"__key__": key.replace("/", "_"), "npy": frames, "cls": label} for key, frames, label in samples)
    _write(records, len(corpus.keys), folder)


def write_windows(corpus: Corpus, folder: Path) -> None:
    """A record a window."""
    windows = enumerate(corpus.windows())
    records = ({"__key__": f"{number:012}", "npy": window, "cls": label} for number, (window, label) in windows)
    _write(records, corpus.num_windows, folder)


def _write(records: Iterator[dict[str, Any]], count: int, folder: Path) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-count // SHARDS), verbose=0) as writer:
        for record in records:
            writer.write(record)


def split_windows(samples: Iterator[dict[str, Any]], in_frames: int) -> Iterator[tuple[Any, int]]:
    """The windows of utterance records, one at a time."""
    for sample in samples:
        for window in split_utterance(sample["npy"], in_frames):
            yield window, sample["cls"]


def utterance_records(folder: Path, corpus: Corpus) -> webdataset.WebDataset:
    """Shuffled windows of utterance records."""
    splitter = partial(split_windows, in_frames=corpus.in_frames)
    return _open(folder).decode().compose(splitter).shuffle(SHUFFLED_WINDOWS)


def window_records(folder: Path, _corpus: Corpus) -> webdataset.WebDataset:
    """Shuffled window records."""
    return _open(folder).shuffle(SHUFFLED_WINDOWS).decode().to_tuple("npy", "cls")


def _open(folder: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=SHUFFLED_SHARDS)


def loader(
    windows: Callable[[Path, Corpus], webdataset.WebDataset],
    folder: Path,
    corpus: Corpus,
    batch_size: int,
    workers: int,
) -> Iterable[Batch]:
    """All windows, in batches made by the workers."""
    batches = windows(folder, corpus).batched(batch_size)
    return webdataset.WebLoader(batches, batch_size=None, num_workers=workers)


PEERS = (
    Peer(
        name="webdataset, utterances",
        format=Format(name="webdataset-utterances", write=write_utterances, window_records=False),
        loader=partial(loader, utterance_records),
    ),
    Peer(
        name="webdataset, windows",
        format=Format(name="webdataset-windows", write=write_windows, window_records=True),
        loader=partial(loader, window_records),
    ),
)
