"""Read NumPy files: a ``.npy`` array (T, D), or a ``.npz`` with one array or one named ``frames``.

The header is read here and not by `numpy.load`, which allocates what a header asks for before it looks at the file, and
warns where we want an error. The format: numpy.lib.format, versions 1.0 to 3.0.
"""

import ast
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.files import read_feature_file
from shards.guesses import guess_content
from shards.sources.float32 import to_float32

MAGIC = b"\x93NUMPY"
HEADER_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by major version
MAX_HEADER_BYTES = 10_000  # numpy's own limit: Python's parser is not safe on more
FLOATS = ("f2", "f4", "f8")
ZIP_MAGIC = b"PK"
MEMBER = "frames"


@dataclass(frozen=True)
class NpySource:
    """The files ``{db_path}/{key}.{ext}``; .npy and .npz are told apart by their first bytes."""

    db_path: Path
    ext: str = "npy"

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path) -> "NpySource":
        """The source that `describe` described, on another folder."""
        return cls(db_path, str(description.get("ext", cls.ext)))

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        return {"kind": "npy", "ext": self.ext}

    def where(self, utterance: Utterance) -> str:
        """The array's file."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `parse_npy` and `parse_npz`."""
        path = self.where(utterance)
        data = read_feature_file(path)
        return parse_npz(data, path) if data.startswith(ZIP_MAGIC) else parse_npy(data, path)


def parse_npy(data: bytes, path: str) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a .npy file, as float32; `path` is for messages.

    Raises:
        InputError: it is no such file, the array is not (T, D) of floating numbers or beyond float32, or the header and
            the file's size disagree. Nothing is allocated on the header's word, and nothing is unpickled.
    """
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
            f"{path}: the header says that it has {header_bytes} bytes, but {len(data) - start} follow and at most "
            f"{MAX_HEADER_BYTES} are read; save the array again"
        )
    dtype, in_columns, (num_frames, num_features) = _parse_header(data[start : start + header_bytes], path)
    start += header_bytes
    expected = start + dtype.itemsize * num_frames * num_features
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "too long"
        raise InputError(
            f"{path}: {state}: {len(data)} bytes, but the header's {num_frames} frames x {num_features} features of "
            f"{dtype} make {expected}; save the array again"
        )
    values = np.frombuffer(data, dtype, num_frames * num_features, start)
    return to_float32(values.reshape((num_frames, num_features), order="F" if in_columns else "C"), path)


def _parse_header(text: bytes, path: str) -> tuple[np.dtype[Any], bool, tuple[int, int]]:
    """The dtype, whether the values lie column by column, and the shape (T, D)."""
    try:
        header = ast.literal_eval(text.decode())
        descr, in_columns, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError):
        raise InputError(
            f"{path}: the header is {text[:60]!r}, expected a dictionary of descr, fortran_order and shape; "
            "save the array again"
        ) from None
    if not isinstance(descr, str) or descr[:1] not in ("<", ">", "=") or descr[1:] not in FLOATS:
        raise InputError(
            f"{path}: the values' type is {descr!r}, expected floating numbers of 2, 4 or 8 bytes ({', '.join(FLOATS)}): "
            "save array.astype(numpy.float32)"
        )
    if (
        not isinstance(shape, tuple)
        or len(shape) != 2
        or not all(type(n) is int and n >= 0 for n in shape)
        or shape[1] < 1
    ):
        raise InputError(
            f"{path}: the array's shape is {shape!r}, expected (frames, features), 0 or more x 1 or more: "
            "save one array of that shape"
        )
    return np.dtype(descr), in_columns is True, shape


def parse_npz(data: bytes, path: str) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a .npz file, as float32; `path` is for messages.

    Raises:
        InputError: it is no sound zip archive of arrays, which array to read is not clear, or as `parse_npy`.
    """
    # NotImplementedError: another compression; RuntimeError: encrypted; the others: damage in various places
    damaged = (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        EOFError,
        struct.error,
    )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = _choose_member(archive.namelist(), path)
            array = archive.read(member)
    except damaged as error:
        raise InputError(f"{path}: not a sound .npz file: {error}; save the array again") from None
    return parse_npy(array, f"{path}, member {member}")


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
