"""What a benchmark does with a system: write its format once, and take batches of its loaders."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from peers.corpus import Corpus
from peers.peer import Batch, Format, Peer, bytes_on_disk


def write_timed(form: Format, corpus: Corpus, folder: Path) -> dict[str, float]:
    """Write the corpus into `folder`, below the format's name: seconds, windows, bytes on disk."""
    began = time.perf_counter()
    form.write(corpus, folder / form.name)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "windows": corpus.num_windows, "bytes": bytes_on_disk(folder / form.name)}


def open_rows(
    peer: Peer, corpus: Corpus, folder: Path, batch_size: int, workers: Sequence[int]
) -> Iterator[tuple[str, Iterable[Batch]]]:
    """A peer's rows, one for each number of workers, with their loaders; its format was written in `folder`."""
    place = folder if peer.format is None else folder / peer.format.name
    for count in workers:
        yield peer.row(count), peer.loader(place, corpus, batch_size, count)


def take_case(loader: Iterable[Batch], batches: int) -> Callable[[], object]:
    """The next batches of a loader, epoch after epoch: its start and its workers' fall into the first call."""
    iterator = iter(())

    def take() -> None:
        nonlocal iterator
        for _ in range(batches):
            if next(iterator, None) is None:
                iterator = iter(loader)
                next(iterator)

    return take
