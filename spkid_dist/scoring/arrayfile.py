"""Read arrays from files of NumPy that somebody else may have written: nothing is allocated on a header's word.

`numpy.load` allocates what a header asks for before it looks at the file. Here the header is compared with the size of the
array's bytes first: those of a `.npy` file, or of the member of a `.npz` file. A member may be packed; then its size is what
the archive's directory says, and an array of numbers is refused that was packed more tightly than numbers ever are.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.files import open_regular

MOST_HEADER_BYTES = 10_000  # numpy's own limit: Python's parser is not safe on more
MOST_PACKED = 200  # times that numbers may be packed
FREE_BYTES = 2**24  # up to which nobody asks how numbers were packed
PIECE_BYTES = 2**24  # of texts that are in memory at a time
MOST_TEXTS = 2**30
NUMBERS = "fiub"


class ArrayArchive:
    """The arrays of a `.npz` file, by their names; raises ValueError and what `zipfile` raises where the file is damaged."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return name in self._members

    def array(self, name: str) -> NDArray[Any]:
        """An array of numbers."""
        member = self._member(name)
        if member.file_size > max(FREE_BYTES, MOST_PACKED * member.compress_size):
            raise ValueError(f"{name} is said to be packed from {member.file_size} bytes to {member.compress_size}")
        with self._archive.open(member) as file:
            return read_numbers(file, member.file_size, name)

    def text(self, name: str) -> str:
        """A single text."""
        (text,) = self.texts(name, 1, shape=())
        return text

    def texts(self, name: str, most: int = MOST_TEXTS, shape: tuple[int, ...] | None = None) -> list[str]:
        """An array of texts, of which there are `most` at most. Their width is that of the longest, and most of it is zeros."""
        member = self._member(name)
        with self._archive.open(member) as file:
            dtype, _, found = _read_header(file, member.file_size, name)
            if dtype.kind != "U" or (len(found) != 1 if shape is None else found != shape):
                raise ValueError(f"{name} is {dtype} of shape {found}, expected a list of text")
            count = math.prod(found)
            if count > most:
                raise ValueError(f"{name} has {count} texts, expected at most {most}")
            rows = max(1, PIECE_BYTES // max(dtype.itemsize, 1))
            if dtype.itemsize > PIECE_BYTES:
                raise ValueError(f"{name} has texts of {dtype.itemsize // 4} characters")
            texts: list[str] = []
            for first in range(0, count, rows):
                size = min(rows, count - first)
                texts += np.frombuffer(_read_exactly(file, size * dtype.itemsize, name), dtype, size).tolist()
            return texts

    def number(self, name: str) -> Any:
        """A single number."""
        array = self.array(name)
        if array.shape:
            raise ValueError(f"{name} is of shape {array.shape}, expected a number")
        return array.item()

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise ValueError(f"it has no array {name!r}")
        return self._members[name]


@contextmanager
def open_npz(path: Path) -> Iterator[ArrayArchive]:
    """The arrays of a `.npz` file.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is no zip archive, or a damaged one.
    """
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    archive.open(member).close()  # which compares its name: a wrong one would pass for an array less
                yield ArrayArchive(archive)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise ValueError(f"not a sound .npz file: {error}") from None


def read_npy(path: Path) -> NDArray[Any]:
    """The array of numbers in a `.npy` file.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is no such file, or a damaged one.
    """
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        return read_numbers(file, os.fstat(raw.fileno()).st_size, path.name)


def read_numbers(file: IO[bytes], size: int, what: str) -> NDArray[Any]:
    """The array of numbers in a file, or a member of an archive, of `size` bytes; `what` it is, is for messages.

    Raises:
        ValueError: it is no array of numbers, or its header and its size disagree.
    """
    dtype, in_columns, shape = _read_header(file, size, what)
    if dtype.kind not in NUMBERS:
        raise ValueError(f"{what} is {dtype} of shape {shape}, expected numbers")
    array = np.frombuffer(_read_exactly(file, math.prod(shape) * dtype.itemsize, what), dtype)
    return array.reshape(shape, order="F" if in_columns else "C").astype(dtype.newbyteorder("="), copy=False)


def _read_header(file: IO[bytes], size: int, what: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """Type, whether the values lie column by column, and shape, which together with the header make `size` bytes."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"{what} has a header of version {version}")
    shape, in_columns, dtype = read(file, max_header_size=MOST_HEADER_BYTES)
    if dtype.hasobject:
        raise ValueError(f"{what} is {dtype} of shape {shape}, expected numbers or text")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or expected != size:
        raise ValueError(f"{what} is {dtype} of shape {shape}, which makes {expected} bytes, but it has {size}")
    return dtype, in_columns, shape


def _read_exactly(file: IO[bytes], size: int, what: str) -> bytearray:
    """As many bytes; what is not there is not allocated."""
    data = bytearray()
    while len(data) < size:
        part = file.read(min(PIECE_BYTES, size - len(data)))
        if not part:
            raise ValueError(f"{what} is truncated: {len(data)} of {size} bytes")
        data += part
    return data
