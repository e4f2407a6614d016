"""Read fmatrix feature files: two little-endian int32 (T, D), then T x D little-endian float32, row by row.

Or, where D is given, the values alone, as SPTK and HTS write them.
"""

import shlex
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
from shards.sources.limits import DEFAULT_LIMIT, MAX_FEATURES, UtteranceLimit

HEADER = struct.Struct("<ii")
OTHER_ORDER = struct.Struct(">ii")
VALUE_BYTES = 4
LEAST_FEATURE, LARGEST_FEATURE = 1e-10, 1e10  # of values that are taken for features, in guesses


@dataclass(frozen=True)
class FmatrixSource:
    """The files ``{db_path}/{key}.{ext}``; with `num_features` they have no header."""

    db_path: Path
    ext: str = "mcp"
    limit: UtteranceLimit = DEFAULT_LIMIT
    num_features: int | None = None

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "FmatrixSource":
        """The source that `describe` described, on another folder.

        Raises:
            InputError: its number of features is damaged.
        """
        num_features = raw_features(description)
        return cls(db_path, str(description.get("ext", cls.ext)), limit, num_features)

    def describe(self) -> dict[str, Any]:
        """Kind of source and its options."""
        raw = {} if self.num_features is None else {"num_features": self.num_features}
        return {"kind": "fmatrix", "ext": self.ext} | raw

    def where(self, utterance: Utterance) -> str:
        """The feature file's path."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `read_fmatrix`."""
        return read_fmatrix(self.where(utterance), self.limit, self.num_features)


def raw_features(description: dict[str, Any]) -> int | None:
    """The D of files without a header, as a source's description has it; None where they have one.

    Raises:
        InputError: it is no number that can be.
    """
    found = description.get("num_features")
    if found is None or (type(found) is int and 1 <= found <= MAX_FEATURES):
        return found
    raise InputError(
        f"the source in train.opts or the manifest has {found!r} features per frame, expected 1 to {MAX_FEATURES}: shard and "
        "train again"
    )


def read_fmatrix(
    path: str, limit: UtteranceLimit = DEFAULT_LIMIT, num_features: int | None = None
) -> NDArray[np.float32]:
    """Read one fmatrix file, or with `num_features` one without a header: (T, D) float32, not writable.

    The file's size decides what is allocated, never its header.

    Raises:
        InputError: the file is missing, its header and its size disagree, or it exceeds the limit.
    """
    data, size = read_feature_file(path, limit.max_file_bytes)
    if num_features is not None:
        return parse_raw(data, path, num_features, limit, size)
    return parse_fmatrix(data, path, limit, size)


def parse_raw(
    data: bytes, path: str, num_features: int, limit: UtteranceLimit = DEFAULT_LIMIT, size: int | None = None
) -> NDArray[np.float32]:
    """The frames in the bytes of a file of little-endian float32 alone, `num_features` a frame; as `parse_fmatrix`.

    Raises:
        InputError: its size is no whole number of frames, or it exceeds the limit.
    """
    size = len(data) if size is None else size
    num_frames, rest = divmod(size, VALUE_BYTES * num_features)
    if rest:
        raise InputError(
            f"{path}: {size} bytes are no whole number of frames of {num_features} float32 values "
            f"({VALUE_BYTES * num_features} bytes): it is truncated, or --num_features is another number"
        )
    limit.check(num_frames, num_features, path)
    return np.frombuffer(data, "<f4").reshape(num_frames, num_features)


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
        found = len(data) if size is None else size
        guess = guess_content(data, "fmatrix") or _guess_raw(data, path, found)
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
            f"{_guess_order(data, size) or 'is it a little-endian fmatrix file?'}"
        )
    expected = HEADER.size + 4 * num_frames * num_features
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise InputError(
            f"{path}: {state}: {size} bytes, but the header's {num_frames} frames x {num_features} features make "
            f"{expected}; {_guess_order(data, size) or 'compute it again'}"
        )
    limit.check(num_frames, num_features, path)
    return np.frombuffer(data, "<f4", offset=HEADER.size).reshape(num_frames, num_features)


def _guess_raw(data: bytes, path: str, size: int) -> str | None:
    """What to do about a file of float32 values without a header, as SPTK writes; None where it seems to be none.

    The header of an fmatrix file is two small integers. Read as float32 these are next to 0, as features hardly are.
    """
    if size % VALUE_BYTES or len(data) < HEADER.size:
        return None
    first = np.abs(np.frombuffer(data, "<f4", HEADER.size // VALUE_BYTES))
    if not ((first > LEAST_FEATURE) & (first < LARGEST_FEATURE)).all():
        return None
    quoted = shlex.quote(path)
    return (
        f"it seems to be {size // VALUE_BYTES} float32 values without a header, as SPTK writes them: give --num_features D, "
        f"the values of a frame, or add a header: D=25; (echo $(($(stat -c %s {quoted}) / 4 / D)) $D | x2x +ai; "
        f"cat {quoted}) > NEW"
    )


def _guess_order(data: bytes, size: int) -> str | None:
    """What to do where the header is right in the other byte order."""
    num_frames, num_features = OTHER_ORDER.unpack_from(data)
    if num_features < 1 or size != HEADER.size + 4 * num_frames * num_features:
        return None
    return "it seems to be a big-endian file: swap the bytes, by numpy.fromfile(path, '>i4').astype('<i4').tofile(path)"


def write_fmatrix(path: Path, frames: NDArray[np.float32]) -> None:
    """Write frames, (T, D), as an fmatrix file."""
    rows = np.ascontiguousarray(frames, "<f4")
    path.write_bytes(HEADER.pack(*rows.shape) + rows.tobytes())
