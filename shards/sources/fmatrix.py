"""Read fmatrix feature files: two little-endian int32 (T, D), then T x D little-endian float32, row by row."""

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
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

HEADER = struct.Struct("<ii")


@dataclass(frozen=True)
class FmatrixSource:
    """The files ``{db_path}/{key}.{ext}``."""

    db_path: Path
    ext: str = "mcp"
    limit: UtteranceLimit = DEFAULT_LIMIT

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "FmatrixSource":
        """The source that `describe` described, on another folder."""
        return cls(db_path, str(description.get("ext", cls.ext)), limit)

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        return {"kind": "fmatrix", "ext": self.ext}

    def where(self, utterance: Utterance) -> str:
        """The feature file's path."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `read_fmatrix`."""
        return read_fmatrix(self.where(utterance), self.limit)


def read_fmatrix(path: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> NDArray[np.float32]:
    """Read one fmatrix file, (T, D) float32, a view of the bytes read (not writable).

    The file's size decides what is allocated, never its header.

    Raises:
        InputError: the file is missing, its header and its size disagree, or it exceeds the limit.
    """
    data, size = read_feature_file(path, limit.max_file_bytes)
    return parse_fmatrix(data, path, limit, size)


def parse_fmatrix(
    data: bytes, path: str, limit: UtteranceLimit = DEFAULT_LIMIT, size: int | None = None
) -> NDArray[np.float32]:
    """The frames in the bytes of an fmatrix file; `path` is for messages, `size` is the file's where `data` is a part of it.

    Raises:
        InputError: as `read_fmatrix`.
    """
    try:
        return _parse(data, path, limit, len(data) if size is None else size)
    except InputError as error:
        guess = guess_content(data, "fmatrix")
        if guess is None:
            raise
        raise InputError(f"{path}: not an fmatrix file: {guess}") from error


def _parse(data: bytes, path: str, limit: UtteranceLimit, size: int) -> NDArray[np.float32]:
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
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise InputError(
            f"{path}: {state}: {size} bytes, but the header's {num_frames} frames x {num_features} features make "
            f"{expected}; compute it again"
        )
    limit.check(num_frames, num_features, path)
    return np.frombuffer(data, "<f4", offset=HEADER.size).reshape(num_frames, num_features)


def write_fmatrix(path: Path, frames: NDArray[np.float32]) -> None:
    """Write frames, (T, D), as an fmatrix file."""
    rows = np.ascontiguousarray(frames, "<f4")
    path.write_bytes(HEADER.pack(*rows.shape) + rows.tobytes())
