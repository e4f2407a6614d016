"""Read the lines of an utterance list a few MB at a time: a list may be larger than memory.

A line ends with LF, CR or CRLF. ASCII white space around it is no part of it, and blank lines do not count.
"""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from shards.errors import InputError
from shards.files import open_regular
from shards.guesses import guess_encoding

CHUNK_BYTES = 2**22  # also the longest line
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors on Windows begin a file with it
LINE_END = re.compile(r"\r\n|\r|\n")
WHITE_SPACE = " \t\n\v\f\r"
COLUMN_GAP = re.compile(r"[ \t]+")
LIST = "the utterance list"
REMEDY = "give a file with one utterance per line"


def read_chunks(path: Path, what: str = LIST, remedy: str = REMEDY) -> Iterator[bytes]:
    """The list in pieces of whole lines, UTF-8 text; the last one may lack its line's end. `what` it is is for messages.

    Raises:
        InputError: the list is missing, unreadable, no regular file, not UTF-8, or has a line of more than 4 MB.
    """
    offset = 0
    for chunk in _whole_lines(path, what, remedy):
        encoding = None if offset else guess_encoding(chunk)
        if encoding is not None:
            raise InputError(f"{path}: {what} must be UTF-8 text; {encoding}")
        try:
            if not chunk.isascii():
                chunk.decode()
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise InputError(f"{path}: {what} must be UTF-8 text: {error.reason} at byte {at}; {remedy}") from None
        offset += len(chunk)
        yield chunk.removeprefix(BYTE_ORDER_MARK) if offset == len(chunk) else chunk


def _whole_lines(path: Path, what: str, remedy: str) -> Iterator[bytes]:
    """The file cut behind LF, or behind CR where it has no LF."""
    try:
        with open_regular(path) as file:
            rest = b""
            while block := file.read(CHUNK_BYTES):
                # A CR at the very end may be half of a CRLF.
                cut = 1 + (block.rfind(b"\n") if b"\n" in block else block.rfind(b"\r", 0, -1))
                if cut:
                    yield rest + block[:cut]
                    rest = b""
                rest += block[cut:]
                if len(rest) > CHUNK_BYTES:
                    raise InputError(f"{path}: a line has more than {CHUNK_BYTES} bytes; {remedy}")
            if rest:
                yield rest
    except OSError as error:
        if _is_no_file(path):
            remedy = "it is read more than once: write it to a file, and give that"
        raise InputError(f"{path}: can't read {what}: {error.strerror}; {remedy}") from None


def _is_no_file(path: Path) -> bool:
    """Whether this is a pipe or a device, such as a shell's ``<(command)``."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it is not there, or its name is too long for one
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def numbered_lines(path: Path, what: str = LIST, remedy: str = REMEDY) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; arguments and errors as of `read_chunks`."""
    number = 1
    for chunk in read_chunks(path, what, remedy):
        lines = LINE_END.split(chunk.decode())
        for index, line in enumerate(lines):
            key = line.strip(WHITE_SPACE)
            if key:
                yield number + index, key
        number += len(lines) - 1  # what follows the last line's end is the next chunk's


def split_columns(line: str, most: int = 0) -> list[str]:
    """The columns of a line that spaces and tabs separate, at most `most` of them if that is not 0; none of a blank line.

    Other white space, such as the no-break space and the ideographic space, is part of a column, as in Kaldi: `str.split` would
    cut a name in two.
    """
    stripped = line.strip(WHITE_SPACE)
    return COLUMN_GAP.split(stripped, maxsplit=max(most - 1, 0)) if stripped else []
