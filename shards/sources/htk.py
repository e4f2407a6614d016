"""Read HTK parameter files: a big-endian header of 12 bytes, then frames as float32, or compressed to 16 bits.

The header is the number of frames, the time from one to the next in 100 ns, the bytes of a frame, and the kind of parameters: a
base kind and qualifiers, such as MFCC_E_D. ``_C`` says that values are compressed: A and B for each feature come first, and are
counted as 4 frames; a value is (stored + B) / A. ``_K`` says that a checksum follows. Source: The HTK Book, 5.10.1, and HTK's
HParm.c for the checksum, which is all 16-bit words as one number, modulo 36897.
"""

import contextlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.guesses import guess_content
from shards.sources.featurefile import read_feature_file
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

HEADER = struct.Struct(">iiHH")
UNITS_PER_MS = 10_000  # of 100 ns
COMPRESSION_FRAMES = 4  # that A and B take
CHECKSUM_BYTES = 2
CHECKSUM_MODULUS = 36_897
REFLECTION_SCALE = 32_767.0  # of IREFC, reflection coefficients as 16-bit numbers
BASES = (
    "WAVEFORM",
    "LPC",
    "LPREFC",
    "LPCEPSTRA",
    "LPDELCEP",
    "IREFC",
    "MFCC",
    "FBANK",
    "MELSPEC",
    "USER",
    "DISCRETE",
    "PLP",
)
BASE_MASK = 0o77
QUALIFIERS = {  # by bit
    0o100: "E",
    0o200: "N",
    0o400: "D",
    0o1000: "A",
    0o2000: "C",
    0o4000: "Z",
    0o10000: "K",
    0o20000: "0",
    0o40000: "V",
    0o100000: "T",
}
STORAGE = ("C", "K")  # qualifiers of how values are stored, not of what they are
NO_FRAMES = ("WAVEFORM", "DISCRETE")


@dataclass(frozen=True)
class HtkParameters:
    """What the parameters are: their kind without how it is stored, and the milliseconds between frames; 0 where not said."""

    kind: str
    shift_ms: float

    def describe(self) -> dict[str, Any]:
        """As the manifest keeps it, beside the options of other features."""
        return {"kind": self.kind} | ({"shift_ms": self.shift_ms} if self.shift_ms else {})


@dataclass(frozen=True)
class HtkSource:
    """The files ``{db_path}/{key}.{ext}``; where `expected` is given, files of other parameters are refused."""

    db_path: Path
    ext: str = "mfc"
    expected: HtkParameters | None = None
    limit: UtteranceLimit = DEFAULT_LIMIT

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "HtkSource":
        """The source that `describe` described, on another folder.

        Raises:
            InputError: the description of the parameters is damaged.
        """
        features = description.get("features")
        expected = None
        if isinstance(features, dict) and "num_bins" not in features:  # those are options for audio
            kind, shift = features.get("kind"), features.get("shift_ms", 0)
            if not isinstance(kind, str) or not isinstance(shift, int | float) or isinstance(shift, bool):
                raise InputError(
                    f"the HTK features in train.opts or the manifest are {features}, expected their kind and shift_ms: "
                    "shard and train again"
                )
            expected = HtkParameters(kind, float(shift))
        return cls(db_path, str(description.get("ext", cls.ext)), expected, limit)

    def describe(self) -> dict[str, Any]:
        """Kind of source, its options, and the parameters where they are known."""
        known = {} if self.expected is None else {"features": self.expected.describe()}
        return {"kind": "htk", "ext": self.ext} | known

    def settled(self, utterances: Sequence[Utterance]) -> "HtkSource":
        """The source that expects the parameters of most of these files; itself where none can be read."""
        found: Counter[HtkParameters] = Counter()
        for utterance in utterances if self.expected is None else ():
            with contextlib.suppress(InputError):  # of a file that is reported when it is its turn
                path = self.where(utterance)
                data, size = read_feature_file(path, self.limit.max_file_bytes)
                found[_read_header(data, path, size, self.limit).parameters] += 1
        return replace(self, expected=found.most_common(1)[0][0]) if found else self

    def where(self, utterance: Utterance) -> str:
        """The parameter file's path."""
        return f"{self.db_path}/{utterance.key}.{self.ext}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32; see `parse_htk`."""
        path = self.where(utterance)
        data, size = read_feature_file(path, self.limit.max_file_bytes)
        return parse_htk(data, path, self.limit, size, self.expected)


@dataclass(frozen=True)
class _Header:
    """A header that is true of the file's size: T, D, the parameters, and whether values are short, or checked."""

    num_frames: int
    num_features: int
    parameters: HtkParameters
    base: str
    is_compressed: bool
    is_checked: bool


def parse_htk(
    data: bytes,
    path: str,
    limit: UtteranceLimit = DEFAULT_LIMIT,
    size: int | None = None,
    expected: HtkParameters | None = None,
) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of an HTK parameter file, as float32.

    `path` is for messages; `size` is the file's where `data` is only its beginning; `expected` is what the other files hold.

    Raises:
        InputError: it is no such file, holds a waveform or symbols, its size is not what the header says, its checksum is
            wrong, it exceeds the limit, or its parameters are not those expected.
    """
    header = _read_header(data, path, len(data) if size is None else size, limit)
    if expected is not None and header.parameters != expected:
        raise InputError(
            f"{path}: {_shown(header.parameters)}, but the other files hold {_shown(expected)}; all need the same: compute "
            "them again alike"
        )
    if header.is_checked:
        _check_sum(data, path)
    return _values(header, data)


def _shown(parameters: HtkParameters) -> str:
    return f"{parameters.kind}, a frame each {parameters.shift_ms:g} ms" if parameters.shift_ms else parameters.kind


def _values(header: _Header, data: bytes) -> NDArray[np.float32]:
    shape = header.num_frames, header.num_features
    count, at = shape[0] * shape[1], HEADER.size
    if header.base == "IREFC":
        return (np.frombuffer(data, ">i2", count, at) / np.float32(REFLECTION_SCALE)).astype(np.float32).reshape(shape)
    if not header.is_compressed:
        return np.frombuffer(data, ">f4", count, at).astype(np.float32).reshape(shape)
    scale, offset = np.frombuffer(data, ">f4", 2 * shape[1], at).astype(np.float32).reshape(2, shape[1])
    stored = np.frombuffer(data, ">i2", count, at + 8 * shape[1]).astype(np.float32).reshape(shape)
    with np.errstate(all="ignore"):  # a damaged A or B: the values end up not finite, which is refused later
        return (stored + offset) / scale


def _check_sum(data: bytes, path: str) -> None:
    found = int.from_bytes(data[-CHECKSUM_BYTES:], "big")
    computed = int.from_bytes(data[HEADER.size : -CHECKSUM_BYTES], "big") % CHECKSUM_MODULUS
    if found != computed:
        raise InputError(
            f"{path}: damaged: its checksum is {found}, but its values make {computed}; copy it or compute it again"
        )


def _read_header(data: bytes, path: str, size: int, limit: UtteranceLimit) -> _Header:
    """The header of a file of `size` bytes that begins with `data`, compared with that and with the limit."""
    if len(data) < HEADER.size:
        raise InputError(f"{path}: {len(data)} bytes are too few for an HTK header of {HEADER.size}; compute it again")
    stored_frames, period, frame_bytes, code = HEADER.unpack_from(data)
    base, qualifiers = _kind(code, data, path)
    is_compressed, is_checked = "C" in qualifiers, "K" in qualifiers
    value_bytes = 2 if is_compressed or base == "IREFC" else 4
    num_frames = stored_frames - COMPRESSION_FRAMES if is_compressed else stored_frames
    num_features, odd_bytes = divmod(frame_bytes, value_bytes)
    if num_frames < 0 or num_features < 1 or odd_bytes:
        raise _no_htk(
            data, path, f"the header says {stored_frames} frames of {frame_bytes} bytes, of {value_bytes} each value"
        )
    expected = HEADER.size + stored_frames * frame_bytes + CHECKSUM_BYTES * is_checked
    if size != expected:
        state = "truncated" if size < expected else "too long"
        raise _no_htk(
            data,
            path,
            f"{state}: {size} bytes, but the header's {stored_frames} frames of {frame_bytes} bytes make {expected}",
        )
    limit.check(num_frames, num_features, path)
    named = "LPREFC" if base == "IREFC" else base  # the same values, otherwise stored
    kind = "_".join([named, *(letter for letter in qualifiers if letter not in STORAGE)])
    parameters = HtkParameters(kind, max(period, 0) / UNITS_PER_MS)
    return _Header(num_frames, num_features, parameters, base, is_compressed, is_checked)


def _kind(code: int, data: bytes, path: str) -> tuple[str, list[str]]:
    """The base kind and the letters of its qualifiers, in the order of HTK's bits."""
    number = code & BASE_MASK
    if number >= len(BASES):
        raise _no_htk(
            data, path, f"the header says that the parameters are of kind {number}, and HTK knows 0 to {len(BASES) - 1}"
        )
    base = BASES[number]
    if base in NO_FRAMES:
        what = "samples of a waveform" if base == "WAVEFORM" else "symbols of a vector quantiser"
        raise _no_htk(data, path, f"it holds {what} ({base}), and no frames of features: compute them with HCopy")
    qualifiers = [letter for bit, letter in QUALIFIERS.items() if code & bit]
    if "V" in qualifiers:
        raise InputError(
            f"{path}: it holds symbols of a vector quantiser beside its values (_V); write it without them"
        )
    return base, qualifiers


def _no_htk(data: bytes, path: str, what: str) -> InputError:
    guess = guess_content(data, "htk")
    if guess is not None:
        return InputError(f"{path}: not an HTK file: {guess}")
    return InputError(f"{path}: {what}; is it a big-endian HTK parameter file?")
