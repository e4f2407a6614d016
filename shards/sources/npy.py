"""Read NumPy files: a ``.npy`` array (T, D), or a ``.npz`` with one array or one named ``frames``.

The header is read here and not by `numpy.load`, which allocates what a header asks for before it looks at the file, and
warns where we want an error. The format: numpy.lib.format, versions 1.0 to 3.0. Arrays of a ``.npz`` are unpacked by
`shards.sources.npz`.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.guesses import guess_content
from shards.sources.featurefile import read_feature_file
from shards.sources.float32 import to_float32
from shards.sources.limits import DEFAULT_LIMIT, HEADER_BYTES, UtteranceLimit
from shards.sources.npz import ZIP_MAGIC, open_array

MAGIC = b"\x93NUMPY"
HEADER_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by major version
MAX_HEADER_BYTES = 10_000  # numpy's own limit
FLOATS = ("f2", "f4", "f8")
SHOWN = 80  # characters of a value, for messages
FIELD = re.compile(r"""\s*['"](\w+)['"]\s*:\s*('[^'\\]*'|"[^"\\]*"|\[[^{}]*\]|\([^()]*\)|[\w.-]+)\s*(?:,|(?=\s*\}))""")
SHAPE = re.compile(r"\(\s*(\d{1,19})L?\s*,\s*(\d{1,19})L?\s*,?\s*\)")  # L: of Python 2


@dataclass(frozen=True)
class NpySource:
    """The files ``{db_path}/{key}.{ext}``; .npy and .npz are told apart by their first bytes."""

    db_path: Path
    ext: str = "npy"
    limit: UtteranceLimit = DEFAULT_LIMIT

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "NpySource":
        """The source that `describe` described, on another folder."""
        return cls(db_path, str(description.get("ext", cls.ext)), limit)

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        return {"kind": "npy", "ext": self.ext}

    def where(self, utterance: Utterance) -> str:
        """The array's file."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `parse_npy` and `parse_npz`."""
        path = self.where(utterance)
        data, size = read_feature_file(path, self.limit.max_file_bytes)
        return parse_numpy(data, path, self.limit, size)


def parse_numpy(
    data: bytes, path: str, limit: UtteranceLimit = DEFAULT_LIMIT, size: int | None = None
) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a file of either kind, as float32; as `parse_npy` and `parse_npz`."""
    if data.startswith(ZIP_MAGIC):
        return parse_npz(data, path, limit, size)
    return parse_npy(data, path, limit, size)


def parse_npy(
    data: bytes, path: str, limit: UtteranceLimit = DEFAULT_LIMIT, size: int | None = None
) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a .npy file, as float32.

    `path` is for messages; `size` is the file's where `data` is only its beginning.

    Raises:
        InputError: it is no such file, the array is not (T, D) of floating numbers or beyond float32, exceeds the limit, or
            the header and the file's size disagree. Nothing is allocated on the header's word, and nothing is unpickled.
    """
    header = _read_header(data, path, len(data) if size is None else size, limit)
    return header.frames(data, path)


def parse_npz(
    data: bytes, path: str, limit: UtteranceLimit = DEFAULT_LIMIT, size: int | None = None
) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a .npz file, as float32; as `parse_npy`.

    Raises:
        InputError: it is no sound zip archive of arrays, which array to read is not clear, or as `parse_npy`.
    """
    guess = guess_content(data, "npy")  # other zip files
    if guess is not None:
        raise InputError(f"{path}: not a .npz file: {guess}")
    if size is not None and size > len(data):
        raise limit.too_long(path, f"{size} bytes")
    with open_array(data, path) as member:
        head = member.read(HEADER_BYTES)
        header = _read_header(head, member.where, member.size, limit)
        return header.frames(member.rest(head), member.where)


@dataclass(frozen=True)
class _Header:
    """What a header of .npy says, which is true of the size; the values begin at byte `start`."""

    start: int
    dtype: np.dtype[Any]
    in_columns: bool
    shape: tuple[int, int]

    def frames(self, data: Any, path: str) -> NDArray[np.float32]:
        """The frames in the bytes of the file."""
        values = np.frombuffer(data, self.dtype, self.shape[0] * self.shape[1], self.start)
        return to_float32(values.reshape(self.shape, order="F" if self.in_columns else "C"), path)


def _read_header(data: bytes, path: str, size: int, limit: UtteranceLimit) -> _Header:
    """The header at the beginning of a file of `size` bytes, compared with that and with the limit."""
    start = len(MAGIC) + 2
    length_format = HEADER_LENGTHS.get(data[6]) if len(data) >= start and data.startswith(MAGIC) else None
    if length_format is None or len(data) < start + length_format.size:
        raise InputError(
            f"{path}: not a .npy file: it begins with {data[:8]!r}, expected {MAGIC!r} and a version; "
            f"{guess_content(data, 'npy') or 'check --ext'}"
        )
    (header_bytes,) = length_format.unpack_from(data, start)
    start += length_format.size
    if header_bytes > min(len(data) - start, MAX_HEADER_BYTES):
        raise InputError(
            f"{path}: the header says that it has {header_bytes} bytes, but {size - start} follow and at most "
            f"{MAX_HEADER_BYTES} are read; save the array again"
        )
    dtype, in_columns, (num_frames, num_features) = _parse_header(data[start : start + header_bytes], path)
    start += header_bytes
    expected = start + dtype.itemsize * num_frames * num_features
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise InputError(
            f"{path}: {state}: {size} bytes, but the header's {num_frames} frames x {num_features} features of "
            f"{dtype} make {expected}; save the array again"
        )
    limit.check(num_frames, num_features, path)
    return _Header(start, dtype, in_columns, (num_frames, num_features))


def _parse_header(text: bytes, path: str) -> tuple[np.dtype[Any], bool, tuple[int, int]]:
    """The dtype, whether the values lie column by column, and the shape (T, D)."""
    found = _parse_fields(text)
    if found is None or not {"descr", "fortran_order", "shape"} <= found.keys():
        raise InputError(
            f"{path}: the header is {text[:60]!r}, expected a dictionary of descr, fortran_order and shape; "
            "save the array again"
        )
    descr, shape = found["descr"][1:-1], SHAPE.fullmatch(found["shape"])
    if descr[:1] not in ("<", ">", "=") or descr[1:] not in FLOATS:
        raise InputError(
            f"{path}: the values' type is {found['descr'][:SHOWN]}, expected floating numbers of 2, 4 or 8 bytes "
            f"({', '.join(FLOATS)}): save array.astype(numpy.float32)"
        )
    num_frames, num_features = (int(shape[1]), int(shape[2])) if shape else (0, 0)
    if num_features < 1:
        raise InputError(
            f"{path}: the array's shape is {found['shape'][:SHOWN]}, expected (frames, features), 0 or more x 1 or more: "
            "save one array of that shape"
        )
    return np.dtype(descr), found["fortran_order"] == "True", (num_frames, num_features)


def _parse_fields(text: bytes) -> dict[str, str] | None:
    """The names and values of a header, as they are spelled; None where it is something else.

    Python's parser, which numpy takes, fails in threads of Python 3.11, and warns of what it reads.
    """
    whole = text.decode("latin-1").strip()
    fields, at = {}, 1
    while field := FIELD.match(whole, at):
        fields[field[1]] = field[2]
        at = field.end()
    return fields if whole[:1] == "{" and whole[at:].strip() == "}" else None
