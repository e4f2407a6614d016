"""Keep downloaded bytes as files below a folder, up to a limit, shared by the processes of a machine.

Nothing is locked between processes: a file appears whole by renaming, goes by unlinking, and who still reads it keeps
reading it. What a killed process left unfinished is removed by whoever next makes room. All lies in a subfolder of our own,
marked as a cache (https://bford.info/cachedir), under names of our own; other files are never touched.

Each process looks at the whole folder when it begins to write and after each 1/64 of the limit that it wrote, and then
removes what was not read for longest, so up to 8 processes keep the limit (each with one file in flight); each one more may
exceed it by 1/64.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

from shards.errors import InputError, UsageError
from shards.files import TEMPORARY_MARK, atomic_writer, expand_home, is_left_behind, make_folder
from shards.parallel import ProcessLocks

SUBFOLDER = "spkid-shard-cache"
TAG_NAME, TAG = "CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n# Downloaded shards of spkid-dist.\n"
FOLDERS = [f"{number:02x}" for number in range(256)]
OWN_NAME = re.compile(r"[0-9a-f]{32}\.[a-z]+[a-z0-9-]*\.(?:tar|npy)\.(?:whole|[0-9]+-[0-9]+)")
WHOLE = "whole"
LOOK_SHARE = 1 / 64  # of the limit: written by a process until it looks at the folder again
MOST_SHARE, LEFT_SHARE = 7 / 8, 6 / 8  # of the limit: room is made where more is used, until this is left
ABANDONED_SECONDS = 86400.0  # an unfinished file of another host is taken to be left behind


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
        InputError: the folder can't be written.
        UsageError: a limit that can't be.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise UsageError(f"--shard_cache_bytes {limit_bytes}: expected 1 or more")
        self.root = expand_home(folder, "--shard_cache") / SUBFOLDER
        self.limit_bytes = limit_bytes
        self._unseen_bytes: int | None = None  # written since this process looked; None: it never did
        self._locks = ProcessLocks()
        make_folder(self.root)
        for name in FOLDERS:
            make_folder(self.root / name)
        if not (self.root / TAG_NAME).exists():
            with atomic_writer(self.root / TAG_NAME) as file:
                file.write(TAG)

    def path(self, fingerprint: str, name: str, part: str = WHOLE) -> Path:
        """Where a file is kept; `part` is ``START-END`` of a piece of it."""
        kept = f"{fingerprint}.{name}.{part}"
        assert OWN_NAME.fullmatch(kept), kept
        return self.root / FOLDERS[xxhash.xxh3_64_intdigest(kept.encode()) % len(FOLDERS)] / kept

    def read(self, path: Path, start: int, end: int) -> bytes | None:
        """Bytes of a kept file, which counts as used now; None where it is not there, or too short."""
        try:
            with path.open("rb", buffering=0) as file:
                os.utime(file.fileno())
                data = os.pread(file.fileno(), end - start, start)
        except OSError:  # gone, unreadable, or on a broken disk: it is downloaded again
            return None
        return data if len(data) == end - start else None

    @contextlib.contextmanager
    def create(self, path: Path, size: int) -> Iterator[IO[bytes]]:
        """Open a file of `size` bytes that appears at `path` when the block ends without an error.

        Raises:
            InputError: it can't be written, or is larger than the limit.
        """
        if size > self.limit_bytes:
            raise InputError(
                f"{self.root}: a file of {size} bytes does not fit the limit of {self.limit_bytes}; give a larger "
                "--shard_cache_bytes"
            )
        self._make_room(size)
        with atomic_writer(path, durable=False) as file:
            yield file

    def discard(self, path: Path) -> None:
        """Remove a kept file, if it is there."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        with self._locks["room"]:
            if self._unseen_bytes is not None and self._unseen_bytes + size <= self.limit_bytes * LOOK_SHARE:
                self._unseen_bytes += size
                return
            files = sorted(self._look())
            used = size + sum(file.size for file in files)
            if used > self.limit_bytes * MOST_SHARE:
                for file in files:
                    if used <= self.limit_bytes * LEFT_SHARE:
                        break
                    self.discard(Path(file.path))
                    used -= file.size
            self._unseen_bytes = size

    def _look(self) -> Iterator[_CachedFile]:
        """The files kept; unfinished ones of processes that have ended are removed on the way."""
        for name in FOLDERS:
            with os.scandir(self.root / name) as entries:
                for entry in entries:
                    kept, mark, _ = entry.name.partition(TEMPORARY_MARK)
                    if not OWN_NAME.fullmatch(kept):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # another process removed it just now
                        continue
                    if not mark:
                        yield _CachedFile(status.st_mtime_ns, status.st_size, entry.path)
                    elif is_left_behind(entry.name) or time.time() - status.st_mtime > ABANDONED_SECONDS:
                        self.discard(Path(entry.path))
