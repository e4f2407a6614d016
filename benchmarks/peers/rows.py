"""What a benchmark does with a system: write its format once, take batches of its loaders, wait for its workers to rest."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from peers.corpus import Corpus
from peers.peer import Batch, Format, Peer, bytes_on_disk

REST_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 60.0


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
    iterator: Iterator[Batch] = iter(())

    def take() -> None:
        nonlocal iterator
        for _ in range(batches):
            if next(iterator, None) is None:
                iterator = iter(loader)
                next(iterator)

    return take


def wait_for_workers() -> None:
    """Wait until no process that this one started computes: workers fetch ahead after their turn, into that of the next."""
    deadline, before = time.perf_counter() + LONGEST_WAIT_SECONDS, -1.0
    while (seconds := _cpu_seconds_of_children()) != before and time.perf_counter() < deadline:
        before = seconds
        time.sleep(REST_SECONDS)


def _cpu_seconds_of_children() -> float:
    """CPU time of the living children so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system
    return total
