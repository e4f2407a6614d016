"""Keep rows of float32 on the disk until all processes have theirs: a file without a name, which ends with the process."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import make_folder
from spkid_dist.ranks.sharing import Processes
from spkid_dist.scoring.scorefile import pieces

OF_SCORES = "give --scores a file in another folder, or keep fewer speakers by --top"


class RowFile:
    """Rows (width,) float32 by their positions in the results, in an unnamed file in `folder`.

    `remedy` is what messages advise besides to free room.

    Raises:
        InputError: the file can't be made or written, as on a full disk.
    """

    def __init__(self, folder: Path, width: int, remedy: str = OF_SCORES) -> None:
        self._folder = folder
        self._width = width
        self._remedy = remedy
        self._added: list[NDArray[np.int64]] = []
        self._sorted: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object
        except OSError as error:
            raise self._failed(error) from None

    def add(self, positions: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Keep rows (U, width) of the utterances at `positions` (U,), each of which is added once."""
        try:
            self._file.write(np.ascontiguousarray(rows, np.float32).data)
        except OSError as error:
            raise self._failed(error) from None
        self._added.append(positions)

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """The rows of positions [first, last), (last - first, width); 0 where none was added. Nothing is added after that."""
        rows = np.zeros((last - first, self._width), np.float32)
        positions, places = self._order()
        low, high = np.searchsorted(positions, (first, last))
        if low < high:
            kept = np.memmap(self._file, np.float32, "r", shape=(len(positions), self._width))
            rows[positions[low:high] - first] = kept[places[low:high]]
        return rows

    def close(self) -> None:
        """Give the disk's room back."""
        with contextlib.suppress(OSError):  # of what a full disk did not take
            self._file.close()

    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All positions in ascending order, and the places of their rows in the file."""
        if self._sorted is None:
            try:
                self._file.flush()
            except OSError as error:
                raise self._failed(error) from None
            positions = np.concatenate(self._added) if self._added else np.empty(0, np.int64)
            places = np.argsort(positions, kind="stable")
            self._sorted = positions[places], places
        return self._sorted

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder}: the results can't be kept in this folder until all are there: {error.strerror}; free room, "
            f"{self._remedy}"
        )


def rows_beside(path: Path, width: int, processes: Processes, remedy: str = OF_SCORES) -> RowFile:
    """Where this process keeps its rows until all are there: in the folder of `path`, for which they are.

    A process that can't write there, as on another host, keeps them in the system's folder of temporary files.

    Raises:
        InputError: this is the process that writes `path`, and it can't.
    """
    try:
        make_folder(path.parent)
        return RowFile(path.parent, width, remedy)
    except InputError:
        if processes.is_main:
            raise
        return RowFile(Path(tempfile.gettempdir()), width, remedy)


def rows_of_all(rows: RowFile, count: int, width: int, processes: Processes) -> Iterator[NDArray[np.float32]]:
    """All processes' rows together, (`count`, `width`) in pieces; each process takes all pieces.

    Each row is one process's. The sum of the rows' bits with the zeros of the others keeps every bit.
    """
    for first, last in pieces(count, width):
        yield processes.sum(rows.read(first, last).view(np.int32)).view(np.float32)
