"""Keep downloaded bytes as files below a folder, up to a limit, shared by the processes and the users of a machine.

Nothing is locked between processes: a file appears whole by renaming, goes by unlinking, and who still reads it keeps
reading it. What a killed process left unfinished is removed by whoever next makes room. All lies in a subfolder of our own,
marked as a cache (https://bford.info/cachedir), under names of our own; other files are never touched.

The folder may be another user's, be read-only, fill up, or be removed while it is used. Then what is there is read, and what
can't be kept is not kept: that is said once. Who may read and write the files is the umask's business. Whatever is read is
compared with checksums by who reads it; these tell damage, not malice, so the other users of a shared cache are trusted.

Each process looks at the whole folder when it begins to write and after each 1/64 of the limit that it wrote, and then
removes what was not read for longest, so up to 8 processes keep the limit (each with one file in flight); each one more may
exceed it by 1/64.
"""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import xxhash

from shards.errors import InputError, UsageError
from shards.files import expand_home, new_file, open_regular, write_atomic
from shards.parallel import ProcessLocks
from shards.unfinished import TEMPORARY_MARK, maker_lives, unfinished_path

SUBFOLDER = "spkid-shard-cache"
TAG_NAME, TAG = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n# Downloaded shards of spkid-dist.\n"
FOLDERS = [f"{number:02x}" for number in range(256)]
OWN_NAME = re.compile(r"[0-9a-f]{32}\.[a-z]+[a-z0-9-]*\.(?:tar|npy)\.(?:whole|[0-9]+-[0-9]+)")
WHOLE = "whole"
LOOK_SHARE = 1 / 64  # of the limit: written by a process until it looks at the folder again
MOST_SHARE, LEFT_SHARE = 7 / 8, 6 / 8  # of the limit: room is made where more is used, until this is left
ABANDONED_SECONDS = 86400.0  # an unfinished file of another host is taken to be left behind
PAUSE_SECONDS = 60.0  # after a file could not be written, until the next is tried

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
_SAID: set[tuple[Path, str]] = set()  # what was said in this process, which may open several datasets


class NotKeptError(Exception):
    """A file can't be kept in the cache; its text says why."""


@dataclass(frozen=True, order=True)
class _CachedFile:
    used_ns: int  # when it was last read
    size: int
    path: str


class CacheFolder:
    """Files of datasets, whole or parts of them, by the dataset's fingerprint, the file's name, and the place in it.

    Args:
        folder: made where there is none; the files go into a subfolder of it.
        limit_bytes: what all of them together may take.

    Raises:
        InputError: what stands there is no folder.
        UsageError: a limit that can't be.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise UsageError(f"--shard_cache_bytes {limit_bytes}: expected 1 or more")
        self.root = expand_home(folder, "--shard_cache") / SUBFOLDER
        self.limit_bytes = limit_bytes
        self._unseen_bytes: int | None = None  # written since this process looked; None: it never did
        self._locks = ProcessLocks()
        self._refusal, self._refused_until = "", 0.0
        try:
            self._make()
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self.root}: can't create this folder: {error.strerror}; set --shard_cache to another folder"
            ) from None
        except OSError as error:
            self._refuse(error.strerror or str(error))

    def _make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / TAG_NAME).exists():
            try:
                write_atomic(self.root / TAG_NAME, TAG)
            except InputError as error:
                raise OSError(errno.EACCES, str(getattr(error.__cause__, "strerror", error))) from None

    def path(self, fingerprint: str, name: str, part: str = WHOLE) -> Path:
        """Where a file is kept; `part` is ``START-END`` of a piece of it."""
        kept = f"{fingerprint}.{name}.{part}"
        assert OWN_NAME.fullmatch(kept), kept
        return self.root / FOLDERS[xxhash.xxh3_64_intdigest(kept.encode()) % len(FOLDERS)] / kept

    def read(self, path: Path, start: int, end: int) -> bytes | None:
        """Bytes of a kept file, which counts as used now; None where it is not there, or too short."""
        try:
            with open_regular(path) as file:
                self._mark_used(file.fileno())
                data = os.pread(file.fileno(), end - start, start)
        except OSError:  # gone, unreadable, or on a broken disk: it is downloaded again
            return None
        return data if len(data) == end - start else None

    def create(self, path: Path, size: int, fill: Callable[[IO[bytes]], Result]) -> Result:
        """What ``fill(file)`` returns, of a new file of `size` bytes that is at `path` from then on.

        `fill` raises an OSError for no other reason than that the file can't be written or read.

        Raises:
            NotKeptError: it can't be kept.
            Exception: what `fill` raises; nothing is kept then.
        """
        if size > self.limit_bytes:
            raise NotKeptError(
                f"a file of {size} bytes does not fit the limit of {self.limit_bytes}; give a larger --shard_cache_bytes"
            )
        if self._refusal and time.monotonic() < self._refused_until:
            raise self._not_kept()
        try:
            self._make_room(size)
            result = self._write(path, fill)
        except OSError as error:
            self._refuse(error.strerror or str(error))
            raise self._not_kept() from None
        self._refusal = ""
        return result

    def _write(self, path: Path, fill: Callable[[IO[bytes]], Result]) -> Result:
        self.root.mkdir(parents=True, exist_ok=True)  # somebody may have cleared the disk
        path.parent.mkdir(exist_ok=True)
        temporary = unfinished_path(path)
        try:
            with new_file(temporary) as file:
                result = fill(file)
            temporary.replace(path)
        finally:
            self.discard(temporary)
        return result

    def discard(self, path: Path) -> bool:
        """Remove a kept file, if it is there and this user may; whether that was so."""
        try:
            path.unlink()
        except OSError:
            return False
        return True

    def _not_kept(self) -> NotKeptError:
        return NotKeptError(f"{self._refusal}; set --shard_cache to a folder that can be written")

    def _refuse(self, reason: str) -> None:
        self._refusal, self._refused_until = reason, time.monotonic() + PAUSE_SECONDS
        is_first_rank = os.environ.get("LOCAL_RANK", "0") == "0"  # the launcher's: the others would say the same
        if is_first_rank and (self.root, reason) not in _SAID:
            _SAID.add((self.root, reason))
            LOG.warning("%s: downloads can't be kept there: %s; reading goes on without", self.root, reason)

    def _mark_used(self, descriptor: int) -> None:
        """Set the file's time, by which the least used goes first; one of another user keeps its own."""
        with contextlib.suppress(OSError):
            os.utime(descriptor)

    def _make_room(self, size: int) -> None:
        with self._locks["room"]:
            if self._unseen_bytes is not None and self._unseen_bytes + size <= self.limit_bytes * LOOK_SHARE:
                self._unseen_bytes += size
                return
            self._unseen_bytes = None
            files = sorted(self._look())
            used = size + sum(file.size for file in files)
            if used > self.limit_bytes * MOST_SHARE:
                for file in files:
                    if used <= self.limit_bytes * LEFT_SHARE:
                        break
                    if self.discard(Path(file.path)):
                        used -= file.size
            if used > self.limit_bytes:
                raise OSError(errno.EDQUOT, "it is full of files that this user may not remove")
            self._unseen_bytes = size

    def _look(self) -> Iterator[_CachedFile]:
        """The files kept; unfinished ones of processes that have ended are removed on the way."""
        for entry in self._entries():
            kept, mark, _ = entry.name.partition(TEMPORARY_MARK)
            if not OWN_NAME.fullmatch(kept):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # another process removed it just now
                continue
            if not mark:
                yield _CachedFile(status.st_mtime_ns, status.st_size, entry.path)
            elif time.time() - status.st_mtime > ABANDONED_SECONDS or maker_lives(Path(entry.path)) is False:
                self.discard(Path(entry.path))

    def _entries(self) -> Iterator["os.DirEntry[str]"]:
        for name in FOLDERS:
            try:
                with os.scandir(self.root / name) as entries:
                    yield from entries
            except OSError:  # not there, or another user's: what is in it is no business of ours
                continue
