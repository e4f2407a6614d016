"""Read fmatrix feature files: two little-endian int32 (T, D), then T x D little-endian float32, row by row."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.files import read_feature_file
from shards.guesses import guess_content

HEADER = struct.Struct("<ii")


@dataclass(frozen=True)
class FmatrixSource:
    """The files ``{db_path}/{key}.{ext}``."""

    db_path: Path
    ext: str = "mcp"

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path) -> "FmatrixSource":
        """The source that `describe` described, on another folder."""
        return cls(db_path, str(description.get("ext", cls.ext)))

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        return {"kind": "fmatrix", "ext": self.ext}

    def where(self, utterance: Utterance) -> str:
        """The feature file's path."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `read_fmatrix`."""
        return read_fmatrix(self.where(utterance))


def read_fmatrix(path: str) -> NDArray[np.float32]:
    """Read one fmatrix file, (T, D) float32, a view of the bytes read (not writable).

    The file's size decides what is allocated, never its header.

    Raises:
        InputError: the file is missing, or its header and its size disagree.
    """
    return parse_fmatrix(read_feature_file(path), path)


def parse_fmatrix(data: bytes, path: str) -> NDArray[np.float32]:
    """The frames in the bytes of an fmatrix file; `path` is for messages. Raises InputError as `read_fmatrix`."""
    try:
        return _parse(data, path)
    except InputError as error:
        guess = guess_content(data, "fmatrix")
        if guess is None:
            raise
        raise InputError(f"{path}: not an fmatrix file: {guess}") from error


def _parse(data: bytes, path: str) -> NDArray[np.float32]:
    if len(data) < HEADER.size:
        raise InputError(
            f"{path}: {len(data)} bytes are too few for an fmatrix header of {HEADER.size}; compute it again"
        )
    num_frames, num_features = HEADER.unpack_from(data)
    if num_frames < 0 or num_features < 1:
        raise InputError(
            f"{path}: the header says {num_frames} frames x {num_features} features; expected 0 or more x 1 or more: "
            "is it a little-endian fmatrix file?"
        )
    expected = HEADER.size + 4 * num_frames * num_features
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "too long"
        raise InputError(
            f"{path}: {state}: {len(data)} bytes, but the header's {num_frames} frames x {num_features} features make "
            f"{expected}; compute it again"
        )
    return np.frombuffer(data, "<f4", offset=HEADER.size).reshape(num_frames, num_features)


def write_fmatrix(path: Path, frames: NDArray[np.float32]) -> None:
    """Write frames, (T, D), as an fmatrix file."""
    rows = np.ascontiguousarray(frames, "<f4")
    path.write_bytes(HEADER.pack(*rows.shape) + rows.tobytes())
