"""Unpack an array of a ``.npz`` file piece by piece: a packed file may be a thousand times as large as it looks."""

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from shards.errors import InputError

ZIP_MAGIC = b"PK"
MEMBER = "frames"
PIECE_BYTES = 2**20  # unpacked at a time; also the largest directory, of thousands of arrays
MOST_DEFLATED = 1032  # the most that a byte of DEFLATE stands for: 258 bytes by 2 bits, RFC 1951
# NotImplementedError: another compression; RuntimeError: encrypted; the others: damage in various places
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    EOFError,
    struct.error,
)


class ArrayMember:
    """An array in an open archive: its `size` as the directory says, and `where` it is, for messages."""

    def __init__(self, file: IO[bytes], size: int, where: str) -> None:
        self.size = size
        self.where = where
        self._file = file

    def read(self, most_bytes: int) -> bytes:
        """The next bytes, fewer only at the end."""
        parts, left = [], most_bytes
        while left and (part := self._file.read(min(left, PIECE_BYTES))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def rest(self, head: bytes) -> bytearray:
        """All bytes, `size` of them; `head` are those that were read.

        Raises:
            ValueError: there are fewer.
        """
        data = bytearray(head)
        while part := self._file.read(PIECE_BYTES):  # at the end the checksum is compared
            data += part
        if len(data) != self.size:
            raise ValueError(f"{len(data)} of {self.size} bytes are there")
        return data


class _InPieces(io.BytesIO):
    """A file of which no more than a piece is read at a time: the archive's directory would be read, and kept, at once."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes; ValueError where those are too many at a time."""
        left = self._size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > PIECE_BYTES:
            raise ValueError(f"its directory has {wanted} bytes, expected at most {PIECE_BYTES}")
        return super().read(wanted)


@contextlib.contextmanager
def open_array(data: bytes, path: str) -> Iterator[ArrayMember]:
    """Open the array of a .npz file that is to be read: the only one, or the one named ``frames``; `path` is for messages.

    Raises:
        InputError: it is no sound zip archive of arrays, also where that is found while the array is read; or which array
            to read is not clear.
    """
    try:
        with zipfile.ZipFile(_InPieces(data)) as archive:
            entry = archive.getinfo(_choose_member(archive.namelist(), path))
            most = entry.compress_size
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                most = MOST_DEFLATED * entry.compress_size
            elif entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is packed in another way than numpy.savez_compressed does")
            if entry.compress_size > len(data) or entry.file_size > most:
                raise ValueError(f"its {entry.compress_size} packed bytes can't hold {entry.file_size}")
            with archive.open(entry) as file:
                yield ArrayMember(file, entry.file_size, f"{path}, member {entry.filename}")
    except DAMAGED as error:
        raise InputError(f"{path}: not a sound .npz file: {error}; save the array again") from None


def _choose_member(names: list[str], path: str) -> str:
    arrays = [name for name in names if name.endswith(".npy")]
    if f"{MEMBER}.npy" in arrays:
        return f"{MEMBER}.npy"
    if len(arrays) != 1:
        raise InputError(
            f"{path}: it holds {len(arrays)} arrays ({', '.join(name[:-4] for name in arrays[:5])}); expected one, or one "
            f"of the name {MEMBER}: numpy.savez(path, {MEMBER}=array)"
        )
    return arrays[0]
