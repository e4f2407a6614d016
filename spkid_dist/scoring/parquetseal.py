"""Put a digest of a whole Parquet file into it, and compare it before a library reads what may have been damaged.

Parquet's own checksums are of pages. Nothing tells that the footer or a page's header is what was written, and Arrow ends the
process by a signal on some that are not. The digest lies before the footer, where readers of Parquet do not look:

    row groups | MARK and 32 hexadecimal digits | footer | its length, 4 bytes | PAR1
"""

import io
from typing import IO

import xxhash

MARK = b"spkid xxh3_128 "
NUM_DIGITS = 32
SEAL_BYTES = len(MARK) + NUM_DIGITS
END_BYTES = 8  # the footer's length, and PAR1
READ_BYTES = 2**22
SEARCHED_BYTES = 2**24  # at the end, for a seal that is not where the footer's length says


def seal(file: IO[bytes]) -> None:
    """Put the digest into a whole file that is open to read and write."""
    begin = _footer_begin(file)
    digest = _digest(file, begin, begin)
    file.seek(begin)
    footer = file.read()
    file.seek(begin)
    file.write(MARK + digest.encode() + footer)


def check_seal(file: IO[bytes]) -> None:
    """Compare the digest; a file without one, of an earlier version or another program, is taken as it is.

    Raises:
        ValueError: the file is not what was written.
    """
    begin = _footer_begin(file)
    file.seek(max(0, begin - SEAL_BYTES))
    found = file.read(SEAL_BYTES)
    if found.startswith(MARK):
        if found != MARK + _digest(file, begin - SEAL_BYTES, begin).encode():
            raise ValueError("its digest differs: it is not what was written")
        return
    file.seek(max(0, file.seek(0, io.SEEK_END) - SEARCHED_BYTES))
    if MARK in file.read():
        raise ValueError("its footer is not where it was written")


def _footer_begin(file: IO[bytes]) -> int:
    """Where the footer begins, by its length; 0 where that can't be."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    return max(0, size - END_BYTES - int.from_bytes(file.read(4), "little"))


def _digest(file: IO[bytes], end: int, begin: int) -> str:
    """The digest of the bytes before `end`, and of those from `begin`."""
    digest = xxhash.xxh3_128()
    file.seek(0)
    while part := file.read(min(READ_BYTES, end - file.tell())):
        digest.update(part)
    file.seek(begin)
    while part := file.read(READ_BYTES):
        digest.update(part)
    return digest.hexdigest()
