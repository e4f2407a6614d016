"""Read Kaldi data folders: ``feats.scp`` names a matrix in an archive per utterance, ``utt2spk`` its speaker.

The matrices are decoded by kaldiio, after their headers were held against the archive's size here: kaldiio itself would
run commands that an scp line names, and unpickle what an archive holds. As in Kaldi, relative paths in ``feats.scp``
start from the folder in which the program runs. The format: kaldi-asr.org/doc/io.html, src/matrix/compressed-matrix.h.
"""

import io
import os
import re
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance, speaker_of
from shards.errors import InputError
from shards.extras import import_extra
from shards.files import open_regular
from shards.lines import numbered_lines
from shards.sources.float32 import to_float32
from shards.sources.kaldidir import check_num_frames, explain_missing_scp, read_num_frames
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.speakers import SpeakerRule, speaker_by_utt2spk

SCP_NAME = "feats.scp"
UTT2SPK_NAME = "utt2spk"
ENTRY = re.compile(r"(?P<ark>.+?)(?::(?P<offset>\d{1,18}))?(?:\[(?P<first>\d{1,9}):(?P<last>\d{1,9})\])?")
BINARY = b"\0B"
HEAD_BYTES = 22  # of the longest header


@dataclass(frozen=True, slots=True)
class ArkEntry:
    """Where a matrix lies: archive, offset in bytes, and of which rows (first, last), both included; None for all."""

    ark: str
    offset: int
    rows: tuple[int, int] | None


@dataclass(frozen=True)
class KaldiSource:
    """The matrices that ``{folder}/feats.scp`` names; `KaldiSource.open` makes one."""

    folder: Path
    entries: dict[str, ArkEntry]
    num_frames: dict[str, int] = field(default_factory=dict)
    limit: UtteranceLimit = DEFAULT_LIMIT

    @classmethod
    def open(cls, folder: Path, limit: UtteranceLimit = DEFAULT_LIMIT) -> "KaldiSource":
        """Read the folder's feats.scp, and its utt2num_frames where there is one.

        Raises:
            InputError: as `read_scp` and `read_num_frames`.
            UsageError: kaldiio is not installed.
        """
        import_extra("kaldiio", "kaldi")
        return cls(folder, read_scp(folder / SCP_NAME), read_num_frames(folder), limit)

    @classmethod
    def from_description(cls, _description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> "KaldiSource":
        """The source that `describe` described, on another folder."""
        return cls.open(db_path, limit)

    def describe(self) -> dict[str, Any]:
        """Kind of source; it has no options."""
        return {"kind": "kaldi"}

    def where(self, utterance: Utterance) -> str:
        """The archive and the offset in it, as feats.scp names them."""
        entry = self._entry(utterance)
        return f"{entry.ark}:{entry.offset}"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32.

        Raises:
            InputError: feats.scp lacks the utterance; the archive is missing or truncated, or has no matrix there; the
                matrix exceeds the limit; a value is beyond float32; utt2num_frames says another number of frames.
        """
        frames = self._read(self._entry(utterance), self.where(utterance))
        expected = self.num_frames.get(utterance.key, len(frames))
        check_num_frames(self.folder, utterance.key, len(frames), expected, self.where(utterance))
        return frames

    def _read(self, entry: ArkEntry, where: str) -> NDArray[np.float32]:
        return _read_rows(entry, where, f"correct {self.folder / SCP_NAME}", self.limit)

    def _entry(self, utterance: Utterance) -> ArkEntry:
        if utterance.key not in self.entries:
            raise InputError(
                f"{self.folder / SCP_NAME}: utterance {utterance.key!r} is not among its {len(self.entries)}; "
                "add it there, or remove it from the list"
            )
        return self.entries[utterance.key]


def read_matrix_at(place: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> NDArray[np.float32]:
    """The frames (T, D) of a matrix at ``archive[:offset][[first:last]]``, as a line of feats.scp names it.

    Raises:
        InputError: the place is not of that form, or as `KaldiSource.load`.
        UsageError: kaldiio is not installed.
    """
    _, entry = _parse_scp_line(f"- {place}", place)
    return _read_rows(entry, f"{entry.ark}:{entry.offset}", "give others", limit)


def _read_rows(entry: ArkEntry, where: str, remedy: str, limit: UtteranceLimit) -> NDArray[np.float32]:
    frames = parse_matrix(_read_matrix(entry, where, limit), where, limit)
    if entry.rows is None:
        return frames
    first, last = entry.rows
    if not first <= last < len(frames):
        raise InputError(
            f"{where}: rows [{first}:{last}] of a matrix of {len(frames)}; expected both below that, in order: {remedy}"
        )
    return frames[first : last + 1]


def read_kaldi_folder(path: Path, rule: SpeakerRule | None = None) -> list[Utterance]:
    """The utterances of a Kaldi data folder in the order of feats.scp; speakers by `rule`, or by the folder's utt2spk.

    Raises:
        InputError: as `read_scp`; utt2spk is missing or damaged; an utterance has no speaker.
    """
    scp = path / SCP_NAME
    keys = read_scp(scp)
    rule = rule or speaker_by_utt2spk(path / UTT2SPK_NAME)
    return [Utterance(key, speaker_of(key, rule, str(scp))) for key in keys]


def read_scp(path: Path) -> dict[str, ArkEntry]:
    """Read a feats.scp: a line ``key archive[:offset][[first:last]]`` each, as a dictionary in the same order.

    Raises:
        InputError: the file is missing or empty, a line is not of that form, names a command, or a key occurs twice.
    """
    entries: dict[str, ArkEntry] = {}
    for number, line in numbered_lines(path, "the list of Kaldi features", explain_missing_scp(path.parent)):
        key, entry = _parse_scp_line(line, f"{path}:{number}")
        if key in entries:
            raise InputError(
                f"{path}:{number}: utterance {key!r} occurs a second time; expected one line per utterance: remove one"
            )
        entries[key] = entry
    if not entries:
        raise InputError(f"{path}: no utterances; expected a line KEY ARCHIVE:OFFSET each")
    return entries


def _parse_scp_line(line: str, where: str) -> tuple[str, ArkEntry]:
    columns = line.split(maxsplit=1)
    place = columns[1].strip() if len(columns) == 2 else ""
    if place.startswith("|") or place.endswith("|"):
        raise InputError(
            f"{where}: {place!r} is a command, and this program runs none; run it yourself: copy-feats scp:feats.scp "
            "ark,scp:feats.ark,new.scp"
        )
    found = ENTRY.fullmatch(place)
    if not found or "\0" in place or (place.endswith("]") and found["first"] is None):
        raise InputError(
            f"{where}: {line!r}; expected KEY ARCHIVE:OFFSET, or KEY ARCHIVE:OFFSET[FIRST:LAST] for some rows"
        )
    rows = None if found["first"] is None else (int(found["first"]), int(found["last"]))
    return columns[0], ArkEntry(sys.intern(found["ark"]), int(found["offset"] or 0), rows)


def _read_matrix(entry: ArkEntry, where: str, limit: UtteranceLimit) -> bytes:
    """The bytes of one matrix with its header; what its header asks for must be in the archive, and within the limit."""
    try:
        with open_regular(entry.ark) as file:
            size = os.fstat(file.fileno()).st_size
            if entry.offset >= size:
                raise InputError(
                    f"{where}: the offset is past the end of the archive, which has {size} bytes; "
                    "write the archive and its scp again together"
                )
            file.seek(entry.offset)
            head = file.read(HEAD_BYTES)
            needed = _matrix_bytes(head, where, limit)
            if needed > size - entry.offset:
                raise _truncated(where, size - entry.offset, needed)
            return (head + _read_all(file, needed - len(head)))[:needed]
    except OSError as error:
        raise InputError(
            f"{where}: can't read this archive: {error.strerror}; expected the path as from the folder where the program "
            f"runs: run it there, or write absolute paths into {SCP_NAME}"
        ) from None


def _read_all(file: IO[bytes], num_bytes: int) -> bytes:
    """The next bytes of a file that has no buffer, fewer at its end: one read takes at most 2,147,479,552."""
    data = file.read(max(num_bytes, 0))
    while len(data) < num_bytes and (more := file.read(num_bytes - len(data))):
        data += more
    return data


class _Layout(NamedTuple):
    """How a kind of matrix lies in an archive: what follows its name, and the bytes for each column and value."""

    header: struct.Struct
    column_bytes: int
    value_bytes: int


_PLAIN = struct.Struct("<xixi")  # size of an integer, rows, size of an integer, columns
_COMPRESSED = struct.Struct("<8xii")  # smallest value and range, rows, columns
_LAYOUTS = {
    b"FM": _Layout(_PLAIN, 0, 4),
    b"DM": _Layout(_PLAIN, 0, 8),
    b"CM": _Layout(_COMPRESSED, 8, 1),
    b"CM2": _Layout(_COMPRESSED, 0, 2),
    b"CM3": _Layout(_COMPRESSED, 0, 1),
}


def _matrix_bytes(head: bytes, where: str, limit: UtteranceLimit) -> int:
    """How long the matrix is that begins with `head`, header included."""
    name = head[len(BINARY) :].split(b" ")[0]
    layout = _LAYOUTS.get(name) if head.startswith(BINARY) else None
    if layout is None:
        raise InputError(
            f"{where}: no binary matrix begins here: found {head[:8]!r}, expected one of the types "
            f"{', '.join(kind.decode() for kind in _LAYOUTS)}; check the offset, or write the archive in binary with copy-feats"
        )
    start = len(BINARY) + len(name) + 1
    values = start + layout.header.size
    if len(head) < values:
        raise _truncated(where, len(head), values)
    num_frames, num_features = layout.header.unpack_from(head, start)
    if num_frames < 0 or num_features < 1:
        raise InputError(
            f"{where}: the header says {num_frames} frames x {num_features} features; expected 0 or more x 1 or more: "
            "compute the features again"
        )
    limit.check(num_frames, num_features, where)
    return int(values + num_features * (layout.column_bytes + num_frames * layout.value_bytes))


def _truncated(where: str, found: int, expected: int) -> InputError:
    return InputError(
        f"{where}: truncated: {found} bytes are left in the archive, but the matrix needs {expected}; "
        "copy the archive again, or compute the features again"
    )


def parse_matrix(data: bytes, where: str, limit: UtteranceLimit = DEFAULT_LIMIT) -> NDArray[np.float32]:
    """The frames (T, D) in the bytes of a binary Kaldi matrix, compressed or not, as float32; `where` is for messages.

    Raises:
        InputError: its header is of another type, exceeds the limit, or asks for another number of bytes; a value is beyond
            float32.
    """
    needed = _matrix_bytes(data[:HEAD_BYTES], where, limit)
    if len(data) < needed:
        raise _truncated(where, len(data), needed)
    with np.errstate(
        all="ignore"
    ):  # a damaged compression header: the values end up not finite, which is refused later
        frames = import_extra("kaldiio.matio", "kaldi").read_kaldi(io.BytesIO(data))
        return to_float32(frames, where)
