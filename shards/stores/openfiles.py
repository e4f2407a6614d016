"""Read parts of files by descriptors that stay open: a few for the whole process, however many datasets it reads.

Reads take the place that they read from, so threads and forked processes share a descriptor without a word. One that is given
up is closed when the last read of it ends. Files are read, not mapped: one that is truncated while it is used, or whose disk
fails, is an error here, where a map ends the process with SIGBUS.
"""

import contextlib
import errno
import itertools
import os
import resource
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shards.files import open_regular

MOST_OPEN = 64  # descriptors of a process
SHARE_OF_LIMIT = 4  # of the files that a process may have open (ulimit -n), these take one in so many


class _Descriptor:
    """A descriptor that is closed when nobody holds it any more."""

    __slots__ = ("number", "size")

    def __init__(self, path: Path) -> None:
        self.number = -1
        with open_regular(path) as file:
            self.number = os.dup(file.fileno())
        self.size = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class _OpenFiles:
    """The descriptors of this process, the one used last at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[int, str], _Descriptor] = OrderedDict()
        self._gone: deque[int] = deque()  # owners whose descriptors are to be let go of

    def renew_lock(self) -> None:
        """In a forked process: another thread may have held the lock."""
        self._lock = threading.Lock()

    def get(self, owner: int, folder: Path, name: str) -> _Descriptor:
        """The descriptor of a file of an owner's folder. Raises OSError where it can't be opened."""
        key = owner, name
        with self._lock:
            self._forget_gone()
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
        path = folder / name
        try:
            found = _Descriptor(path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            with self._lock:
                self._open.clear()  # those of ours can be opened again
            found = _Descriptor(path)
        with self._lock:
            self._open[key] = found
            while len(self._open) > budget():
                self._open.popitem(last=False)
        return found

    def forget(self, owner: int, name: str) -> None:
        """Let go of the descriptor of a file."""
        with self._lock:
            self._open.pop((owner, name), None)

    def forget_all(self, owner: int) -> None:
        """Let go of an owner's descriptors; with the next read, where this interrupts one, as Python's collector may."""
        self._gone.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._forget_gone()
            finally:
                self._lock.release()

    def _forget_gone(self) -> None:
        while self._gone:
            owner = self._gone.popleft()
            for key in [key for key in self._open if key[0] == owner]:
                del self._open[key]

    def __len__(self) -> int:
        return len(self._open)


def budget() -> int:
    """How many descriptors this process keeps here."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, limit // SHARE_OF_LIMIT))


OPEN_FILES = _OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.renew_lock)
_owners = itertools.count()


class OpenFolder:
    """Reads parts of files of a folder. What was opened once is read until nobody uses it, whatever takes its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner = next(_owners)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end
            OPEN_FILES.forget_all(self._owner)

    def size(self, name: str) -> int:
        """The bytes of a file when it was opened. Raises OSError where it can't be read, or is no regular file."""
        return OPEN_FILES.get(self._owner, self._folder, name).size

    def read(self, name: str, start: int, end: int) -> bytes:
        """The bytes `start` to `end` of a file, fewer where it ends before.

        Raises:
            OSError: it can't be read, or is no regular file.
        """
        try:
            return _read(OPEN_FILES.get(self._owner, self._folder, name), start, end)
        except OSError:
            OPEN_FILES.forget(self._owner, name)  # a handle that the file server has lost is of no more use
            raise

    def reader(self, name: str) -> Callable[[int, int], bytes]:
        """What reads as `read` does of a file, and keeps it open: it may be removed meanwhile.

        Raises:
            OSError: it can't be read, or is no regular file.
        """
        return partial(_read, OPEN_FILES.get(self._owner, self._folder, name))


def _read(descriptor: _Descriptor, start: int, end: int) -> bytes:
    data = os.pread(descriptor.number, end - start, start)
    if not data or len(data) == end - start:
        return data
    parts = [data]
    while data and (start := start + len(data)) < end:  # the system may read less than it was asked for
        data = os.pread(descriptor.number, end - start, start)
        parts.append(data)
    return b"".join(parts)
