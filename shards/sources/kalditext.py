"""Read Kaldi's matrices that are written as text: ``[``, a line of numbers for each row, ``]``.

The format: kaldi-asr.org/doc/io.html and `Matrix::Read` of src/matrix/kaldi-matrix.cc; a row also ends with ``;``.
"""

import io
import re

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.lines import WHITE_SPACE
from shards.sources.limits import UtteranceLimit

BLANKS = WHITE_SPACE.encode()
END = b"]"
PIECE_BYTES = 2**16
ROW_END = re.compile(rb"[\r\n;]+")
REMEDY = "write the archive again, in binary (copy-feats)"


def is_text(head: bytes) -> bool:
    """Whether a matrix that begins with `head` is written as text."""
    return head.lstrip(BLANKS).startswith(b"[")


def read_text_matrix(head: bytes, file: io.BufferedIOBase | io.RawIOBase, most_bytes: int, where: str) -> bytes:
    """The text of one matrix, which begins with `head` and goes on in `file`; no more is read than that and a piece.

    Raises:
        InputError: it does not end in the file, or in `most_bytes`.
    """
    data = bytearray(head)
    at = 0
    while (end := data.find(END, at)) < 0:
        at = len(data)
        piece = file.read(PIECE_BYTES) if len(data) <= most_bytes else b""
        if not piece:
            raise InputError(
                f"{where}: the text of a matrix begins here, but no ']' ends it in {len(data)} bytes; {REMEDY}"
            )
        data += piece
    return bytes(data[: end + 1])


def parse_text_matrix(data: bytes, where: str, limit: UtteranceLimit) -> NDArray[np.float64]:
    """The values (T, D) in the text of a matrix, or (1, T) of a vector, which stands in one line.

    Raises:
        InputError: it is no such text, its rows are of several lengths, or it exceeds the limit.
    """
    body, end, rest = data.lstrip(BLANKS)[1:].partition(END)
    if not end or rest.strip(BLANKS):
        raise InputError(f"{where}: text that begins as a matrix, without ']' at its end; {REMEDY}")
    rows = [row.split() for row in ROW_END.split(body) if row.strip()]
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        found = f"rows of {min(lengths)} to {max(lengths)} values" if rows else "no rows"
        raise InputError(f"{where}: the text of a matrix has {found}; expected as many in each: {REMEDY}")
    num_columns = lengths.pop()
    if len(rows) == 1:  # of a vector it is a value for each frame
        limit.check(num_columns, 1, where)
    else:
        limit.check(len(rows), num_columns, where)
    try:
        if b"_" in body:  # which Python's numbers may have
            raise ValueError("a number has an underscore")
        return np.array(rows, np.float64)
    except ValueError as error:
        raise InputError(f"{where}: the text of a matrix holds what is no number: {error}; {REMEDY}") from None
