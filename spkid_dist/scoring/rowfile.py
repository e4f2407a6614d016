"""Keep rows of float32 on the disk until all processes have theirs: a file without a name, which ends with the process."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError


class RowFile:
    """Rows (width,) float32 by their positions in the results, in an unnamed file in `folder`.

    Raises:
        InputError: the file can't be made or written, as on a full disk.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        self._width = width
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
            f"{self._folder}: the scores can't be kept in this folder until all are there: {error.strerror}; free room, give "
            "--scores a file in another folder, or keep fewer speakers by --top"
        )
