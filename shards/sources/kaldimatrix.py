"""Decode Kaldi's matrices, out of archives or as bytes: what a header says is held against what is there first.

kaldiio decodes them: it would itself run commands that an scp line names, and unpickle what an archive holds, so it is given
bytes alone. The format: kaldi-asr.org/doc/io.html, src/matrix/compressed-matrix.h.
"""

import gzip
import io
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.extras import import_extra
from shards.files import open_regular
from shards.sources.float32 import to_float32
from shards.sources.kaldiscp import SCP_NAME, ArkEntry
from shards.sources.kalditext import is_text, parse_text_matrix, read_text_matrix
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

BINARY = b"\0B"
HEAD_BYTES = 22  # of the longest header
GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 2**24
MOST_BYTES = 2**62


def read_matrix(entry: ArkEntry, limit: UtteranceLimit) -> NDArray[np.float32]:
    """The whole matrix (T, D) at `entry`, as float32; its header must ask for what is there, and within the limit.

    Raises:
        InputError: the archive is missing or truncated, or has no matrix there; or as `parse_matrix`.
    """
    return parse_matrix(_matrix_data(entry, limit, _MATRICES), entry.where, limit)


def _matrix_data(entry: ArkEntry, limit: UtteranceLimit, layouts: dict[bytes, "_Layout"]) -> bytes:
    where = entry.where
    try:
        with open_regular(entry.ark) as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
                return _data_at(file, entry.offset, size, layouts, where, limit)
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as unpacked:
                # How much it holds is not known before all was unpacked; the limit bounds what a header may ask for.
                return _data_at(unpacked, entry.offset, None, layouts, where, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{where}: the archive is packed by gzip, and damaged: {error}; copy it again") from None
    except OSError as error:
        raise InputError(
            f"{where}: can't read this archive: {error.strerror}; expected the path as from the folder where the program "
            f"runs: run it there, or write absolute paths into {SCP_NAME}"
        ) from None


def _data_at(
    file: io.FileIO | gzip.GzipFile,
    offset: int,
    size: int | None,
    layouts: dict[bytes, "_Layout"],
    where: str,
    limit: UtteranceLimit,
) -> bytes:
    """The bytes of the matrix at `offset` of an archive of `size` bytes, None where that is not known."""
    head = b""
    if size is None or offset < size:  # a file system may refuse to go far beyond the end
        file.seek(offset)
        head = _read_all(file, HEAD_BYTES)
    if not head:
        length = file.tell() if size is None else size  # where the packed ones end
        raise InputError(
            f"{where}: the offset is past the end of the archive, which has {length} bytes; "
            "write the archive and its scp again together"
        )
    if is_text(head):
        return read_text_matrix(head, file, limit.max_file_bytes, where)
    needed = _matrix_bytes(head, where, limit, MOST_BYTES if size is None else size - offset, layouts)
    data = (head + _read_all(file, needed - len(head)))[:needed]
    if len(data) < needed:
        raise _truncated(where, len(data), needed)
    return data


def _read_all(file: io.FileIO | gzip.GzipFile, num_bytes: int) -> bytes:
    """The next bytes of a file, fewer at its end: one read of a file without a buffer takes at most 2,147,479,552."""
    parts, left = [], num_bytes
    while left > 0 and (part := file.read(min(left, READ_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _Layout(NamedTuple):
    """How a kind of matrix lies in an archive: what follows its name, and the bytes for each column and value."""

    header: struct.Struct
    column_bytes: int
    value_bytes: int


_PLAIN = struct.Struct("<xixi")  # size of an integer, rows, size of an integer, columns
_COMPRESSED = struct.Struct("<8xii")  # smallest value and range, rows, columns
_MATRICES = {
    b"FM": _Layout(_PLAIN, 0, 4),
    b"DM": _Layout(_PLAIN, 0, 8),
    b"CM": _Layout(_COMPRESSED, 8, 1),
    b"CM2": _Layout(_COMPRESSED, 0, 2),
    b"CM3": _Layout(_COMPRESSED, 0, 1),
}
_VECTOR = struct.Struct("<xi")  # size of an integer, values
_VECTORS = {b"FV": _Layout(_VECTOR, 0, 4), b"DV": _Layout(_VECTOR, 0, 8)}


def _matrix_bytes(head: bytes, where: str, limit: UtteranceLimit, available: int, layouts: dict[bytes, _Layout]) -> int:
    """How long the matrix is that begins with `head`, header included: of the `available` bytes, and within the limit."""
    name = head[len(BINARY) :].split(b" ")[0]
    layout = layouts.get(name) if head.startswith(BINARY) else None
    if layout is None:
        raise InputError(
            f"{where}: no {'vector' if layouts is _VECTORS else 'matrix'} begins here: found {head[:8]!r}, expected one of the "
            f"types {', '.join(kind.decode() for kind in layouts)}, or text in brackets; check the offset, or write the "
            "archive again with copy-feats"
        )
    start = len(BINARY) + len(name) + 1
    values = start + layout.header.size
    if len(head) < values:
        raise _truncated(where, len(head), values)
    num_frames, num_features = (*layout.header.unpack_from(head, start), 1)[:2]
    try:
        needed = values + _value_bytes(layout, num_frames, num_features, where, limit)
        if needed > available:
            raise _truncated(where, available, needed)
    except InputError:
        other_way = struct.unpack(">ii", struct.pack("<ii", num_frames, num_features))
        other_way = (other_way[0], 1) if layouts is _VECTORS else other_way
        if not _would_fit(layout, other_way, limit, available - values):
            raise
        raise InputError(
            f"{where}: the archive is big-endian, of another kind of machine: read so, its header says {other_way[0]} frames x "
            f"{other_way[1]} features; expected little-endian numbers: write it again, with kaldiio.load_scp(SCP, endian='>') "
            "and kaldiio.save_ark"
        ) from None
    return needed


def _value_bytes(layout: _Layout, num_frames: int, num_features: int, where: str, limit: UtteranceLimit) -> int:
    """How many bytes follow the header of a matrix of this shape."""
    if num_frames < 0 or num_features < 1:
        raise InputError(
            f"{where}: the header says {num_frames} frames x {num_features} features; expected 0 or more x 1 or more: "
            "compute the features again"
        )
    limit.check(num_frames, num_features, where)
    return num_features * (layout.column_bytes + num_frames * layout.value_bytes)


def _would_fit(layout: _Layout, shape: tuple[int, int], limit: UtteranceLimit, available: int) -> bool:
    """Whether a matrix of this shape, of at least one frame, can be in the bytes that are there."""
    try:
        return shape[0] > 0 and _value_bytes(layout, *shape, "", limit) <= available
    except InputError:
        return False


def _truncated(where: str, found: int, expected: int) -> InputError:
    return InputError(
        f"{where}: truncated: {found} bytes are left in the archive, but the matrix needs {expected}; "
        "copy the archive again, or compute the features again"
    )


def parse_matrix(data: bytes, where: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a Kaldi matrix, binary, compressed or text, as float32; `where` is for messages.

    Raises:
        InputError: its header is of another type, exceeds the limit, or asks for another number of bytes; a value is beyond
            float32.
    """
    return to_float32(_decoded(data, where, limit, _MATRICES), where)


def read_statistics(entry: ArkEntry, limit: UtteranceLimit) -> NDArray[np.float64]:
    """The matrix at `entry` in float64, as sums need it. Raises InputError as `read_matrix`."""
    return np.asarray(_decoded(_matrix_data(entry, limit, _MATRICES), entry.where, limit, _MATRICES), np.float64)


def read_vector(entry: ArkEntry, limit: UtteranceLimit) -> NDArray[np.float64]:
    """The vector (n,) at `entry`, of at most as many values as an utterance has frames. Raises InputError as `read_matrix`."""
    vector = _decoded(_matrix_data(entry, limit, _VECTORS), entry.where, limit, _VECTORS)
    if vector.ndim == 2 and len(vector) != 1:
        raise InputError(f"{entry.where}: a matrix of {len(vector)} rows; expected a vector: check the offset")
    return np.asarray(vector, np.float64).reshape(-1)


def _decoded(
    data: bytes, where: str, limit: UtteranceLimit, layouts: dict[bytes, _Layout]
) -> NDArray[np.float32] | NDArray[np.float64]:
    """The values in the bytes of a matrix, or of a vector, as they are kept."""
    if is_text(data[:HEAD_BYTES]):
        return parse_text_matrix(data, where, limit)
    _matrix_bytes(data[:HEAD_BYTES], where, limit, len(data), layouts)
    # A damaged compression header: the values end up not finite, which is refused later.
    with np.errstate(all="ignore"):
        decoded: NDArray[np.float32] = import_extra("kaldiio.matio", "kaldi").read_kaldi(io.BytesIO(data))
        return decoded
