"""Read a shard's tar member by member, without manifest or tables: strictly as `ShardWriter` makes them.

The standard library's reader follows extension headers of any size; this one takes plain members of expected names only.
"""

import os
import tarfile
from pathlib import Path
from typing import IO

import xxhash

from shards.conversion.writer import END_OF_TAR
from shards.errors import InputError
from shards.members import TAR_RECORD, padded, tar_header

RESTORE = "restore the shard from a copy, or shard the corpus again"


class TarReader:
    """Reads a tar member by member, strictly as `ShardWriter` makes them; no more is allocated than the file holds."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.at = 0
        self.digest = xxhash.xxh3_128()
        self.extent_hash = xxhash.xxh3_64()
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def error(self, member: str, what: str) -> InputError:
        """An error in a member of this tar."""
        return InputError(f"{self.path}: {member}: {what}; {RESTORE}")

    def member(self, name: str) -> bytes:
        """The payload of the next member, which must be `name`. Raises InputError where it is not."""
        header = self._take(TAR_RECORD, name, "tar header")
        if not any(header):
            what = f"begins at byte {self.at - TAR_RECORD} of {self._size}, expected {len(END_OF_TAR)} before the end"
            raise self.error("end of archive", f"{what}: truncated, too long or damaged")
        try:
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.TarError as error:
            raise self.error(name, f"its tar header at byte {self.at - TAR_RECORD} is damaged ({error})") from None
        left = self._size - self.at
        if not 0 <= size <= left:
            raise self.error(name, f"truncated: its tar header says {size} bytes, but {left} are left in the file")
        if header != tar_header(name, size):
            raise self.error(name, f"the tar header at byte {self.at - TAR_RECORD} is not as it was written")
        payload = self._take(size, name, "payload")
        if any(self._take(padded(size) - size, name, "padding")):
            raise self.error(name, f"the padding before byte {self.at} is not zero")
        return payload

    def at_end(self) -> bool:
        """Whether only the end of the archive is left, which is read then."""
        if self._size - self.at != len(END_OF_TAR):
            return False
        if any(self._take(len(END_OF_TAR), "end of archive", "")):
            raise self.error("end of archive", f"the last {len(END_OF_TAR)} bytes are not 0: truncated or damaged")
        return True

    def _take(self, num_bytes: int, member: str, part: str) -> bytes:
        data = self._file.read(min(num_bytes, self._size - self.at))
        if len(data) < num_bytes:
            raise self.error(member, f"truncated: the file ends at byte {self._size}, within its {part or 'zeros'}")
        self.digest.update(data)
        self.extent_hash.update(data)
        self.at += num_bytes
        return data
