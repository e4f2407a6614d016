"""Read the lines of a Kaldi ``.scp``: a key, and where its matrix lies.

A place is ``ARCHIVE[:OFFSET]``, with ``[FIRST:LAST]`` for some rows, or ``[FIRST:LAST,FIRST:LAST]`` for some rows and columns;
both ends are included, and ``:`` stands for all. The format: kaldi-asr.org/doc/io.html and src/util/kaldi-holder.cc.
"""

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.lines import numbered_lines, split_columns
from shards.plaintext import printable

SCP_NAME = "feats.scp"
SPAN = r"\d{1,9}:\d{1,9}|:"
ENTRY = re.compile(
    rf"(?P<ark>.+?)(?::(?P<offset>\d{{1,18}}))?(?:\[(?P<rows>{SPAN})(?:,(?P<columns>{SPAN}))?\])?", re.DOTALL
)
ROWS_BEYOND = 3  # what Kaldi lets a range end beyond the matrix: two for the edges of frames, one for rounded times
LOG = logging.getLogger(__name__)

_said: set[str] = set()

Span = tuple[int, int]
"""The first and the last, both included."""


@dataclass(frozen=True, slots=True)
class ArkEntry:
    """Where a matrix lies: archive, offset in bytes, and which rows and columns of it are meant; None for all."""

    ark: str
    offset: int
    rows: Span | None
    columns: Span | None = None

    @property
    def where(self) -> str:
        """The place for messages."""
        return f"{self.ark}:{self.offset}"


def read_scp(path: Path, what: str = "the list of Kaldi features", remedy: str = "") -> dict[str, ArkEntry]:
    """The entries of an .scp by key, in the order of its lines; `what` it is, and the `remedy`, are for messages.

    Raises:
        InputError: the file is missing or empty, a line is not of that form, names a command, or a key occurs twice.
    """
    entries: dict[str, ArkEntry] = {}
    for number, line in numbered_lines(path, what, remedy):
        key, entry = parse_scp_line(line, f"{path}:{number}")
        if key in entries:
            raise InputError(
                f"{path}:{number}: utterance {key!r} occurs a second time; expected one line per utterance: remove one"
            )
        entries[key] = entry
    if not entries:
        raise InputError(f"{path}: no utterances; expected a line KEY ARCHIVE:OFFSET each")
    return entries


def parse_scp_line(line: str, where: str) -> tuple[str, ArkEntry]:
    """The key and the place in a line of an .scp; `where` it stands is for messages.

    Raises:
        InputError: it is not of that form, or names a command.
    """
    columns = split_columns(line, 2)
    place = columns[1] if len(columns) == 2 else ""
    if place.startswith("|") or place.endswith("|"):
        raise InputError(
            f"{where}: {place!r} is a command, and this program runs none; run it yourself: copy-feats scp:feats.scp "
            "ark,scp:feats.ark,new.scp"
        )
    found = ENTRY.fullmatch(place)
    if not found or "\0" in place or (place.endswith("]") and found["rows"] is None):
        raise InputError(
            f"{where}: {line!r}; expected KEY ARCHIVE:OFFSET, or KEY ARCHIVE:OFFSET[FIRST:LAST] for some rows, or "
            "KEY ARCHIVE:OFFSET[FIRST:LAST,FIRST:LAST] for some rows and columns"
        )
    entry = ArkEntry(sys.intern(found["ark"]), int(found["offset"] or 0), _span(found["rows"]), _span(found["columns"]))
    return columns[0], entry


def _span(text: str | None) -> Span | None:
    if text is None or text == ":":
        return None
    first, last = text.split(":")
    return int(first), int(last)


def cut_matrix(frames: NDArray[np.float32], entry: ArkEntry, remedy: str) -> NDArray[np.float32]:
    """The rows and columns of a matrix (T, D) that `entry` means.

    Rows that end up to 3 beyond the matrix are cut at its end, as Kaldi does, and a line says so once.

    Raises:
        InputError: they are not in the matrix; ends with the `remedy`.
    """
    num_rows, num_columns = frames.shape
    first, last = entry.rows or (0, num_rows - 1)
    if entry.rows is not None and not (first < num_rows and first <= last < num_rows + ROWS_BEYOND):
        raise InputError(
            f"{entry.where}: rows [{first}:{last}] of a matrix of {num_rows}; expected the first below that, and the last at "
            f"most {ROWS_BEYOND} beyond the last row: {remedy}"
        )
    if last >= num_rows:
        _say_cut(entry.where, first, last, num_rows)
    left, right = entry.columns or (0, num_columns - 1)
    if not left <= right < num_columns:
        raise InputError(
            f"{entry.where}: columns [{left}:{right}] of a matrix of {num_columns}; expected both below that, in order: "
            f"{remedy}"
        )
    return np.ascontiguousarray(frames[first : last + 1, left : right + 1])


def _say_cut(where: str, first: int, last: int, num_rows: int) -> None:
    """Say that a range was cut; the first one of a process stands for all."""
    if "cut" not in _said:
        _said.add("cut")
        LOG.warning(
            "%s",
            printable(
                f"{where}: rows [{first}:{last}] of a matrix of {num_rows}: cut at its end, as Kaldi does; further ranges that "
                f"end up to {ROWS_BEYOND} rows beyond are cut alike, without a line"
            ),
        )
