"""Judge, use and remove the datasets in the cache of features that were sharded on the way to training (`--cache_dir`).

A dataset is used only if it is what would be made anew: its manifest and tables open, its job is the one that was asked for,
its files have their sizes, nobody has found damage in it, and it belongs to this user or to root. What belongs to others is
never touched; this user's dataset then has a name of its own.

A dataset in use has a shared lock on its file `USED_NAME`, whose time says when it was last taken. Whoever removes datasets
to keep a limit needs the lock alone. Where locks do not reach, between hosts or on file systems without them, a dataset that
was taken within `LEASE_SECONDS` counts as in use.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from shards.dataset import ShardDataset
from shards.errors import InputError, StoreError, first_line
from shards.files import read_regular, write_atomic
from shards.unfinished import unfinished_path

USED_NAME, DAMAGED_NAME, TAG_NAME = "cache-used", "cache-damaged", "CACHEDIR.TAG"
TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Features sharded by spkid train; made again where they are missing.\n"
LEASE_SECONDS = 7 * 86400.0
CACHED_NAME = re.compile(r"[^.].*-[0-9a-f]{16}(-u[0-9]+)?")
MOST_MARK_BYTES = 100_000

Say = Callable[[str], None]


class State(Enum):
    """What lies in the place of a cached dataset."""

    MISSING = "missing"
    RIGHT = "right"
    WRONG = "wrong"  # this user's, to be made anew
    FOREIGN = "foreign"  # not to be touched


@dataclass(frozen=True)
class Verdict:
    """What lies at `folder`, and `why` it is not used; `inode` tells it from what may lie there later."""

    folder: Path
    state: State
    why: str = ""
    inode: int = 0


def find_place(folder: Path, job: str) -> Verdict:
    """The place of the dataset of this `job`: `folder`, or this user's own one beside it where that is another user's.

    Raises:
        InputError: both are others'.
    """
    shared = judge(folder, job)
    if shared.state is not State.FOREIGN:
        return shared
    own = judge(folder.with_name(f"{folder.name}-u{os.geteuid()}"), job)
    if own.state is State.FOREIGN:
        raise InputError(f"{own.folder}: {own.why}; set --cache_dir to a folder of your own")
    return own


def judge(folder: Path, job: str) -> Verdict:
    """What lies at `folder`, where the dataset of this `job` (its identity) is expected."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return Verdict(folder, State.MISSING)
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror}; set --cache_dir to another folder") from None
    user = os.geteuid()
    if not stat.S_ISDIR(status.st_mode):
        return Verdict(folder, State.FOREIGN, "it is no folder")
    if status.st_uid not in (user, 0):
        return Verdict(folder, State.FOREIGN, f"it belongs to user {status.st_uid}, not to this one ({user})")
    if status.st_mode & stat.S_IWOTH:
        return Verdict(folder, State.FOREIGN, "every user may write there")
    why = _what_is_wrong(folder, job)
    if why is None:
        return Verdict(folder, State.RIGHT, inode=status.st_ino)
    state = State.WRONG if status.st_uid == user else State.FOREIGN
    return Verdict(folder, state, why, status.st_ino)


def _what_is_wrong(folder: Path, job: str) -> str | None:
    try:
        damage = read_regular(folder / DAMAGED_NAME, MOST_MARK_BYTES).decode(errors="replace")
        return f"an earlier run found damage: {damage.strip()}"
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{DAMAGED_NAME} can't be read: {error.strerror}"
    try:
        manifest = ShardDataset(folder).manifest
        if [info.job for info in manifest.jobs] != [job]:
            return "it is the dataset of another list, other speakers or other options"
        for info in manifest.shards:
            size = (folder / info.name).stat().st_size
            if size != info.bytes:
                return f"{info.name} has {size} bytes, expected {info.bytes}"
    except InputError as error:
        return first_line(error).removeprefix(f"{folder}/").partition("; ")[0]  # without what to do
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    return None


class CacheUse:
    """This process's use of the dataset at `folder`, until `close`; `is_held`: it is kept from being removed meanwhile."""

    def __init__(self, folder: Path, descriptor: int = -1) -> None:
        self.folder = folder
        self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        """Whether this process keeps the dataset from being removed."""
        return self._descriptor >= 0

    def close(self) -> None:
        """Let the dataset go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        """A use that an error has left behind."""
        self.close()

    def is_about(self, error: InputError) -> bool:
        """Whether an error is about what lies in this dataset."""
        return f"{self.folder}/" in str(error) and not isinstance(error, StoreError)

    def mark_damaged(self, what: str) -> str:
        """Have the next run make the dataset anew; returns what to say of that."""
        try:
            write_atomic(self.folder / DAMAGED_NAME, f"{what}\n".encode())
        except InputError:
            return f"delete {self.folder}, and start again"
        return "this dataset is a cache: the next run makes it anew"


def hold(folder: Path) -> CacheUse | None:
    """Use the dataset at `folder`, and keep others from removing it; None where it has just been removed.

    In a folder that this user can't write, as of root, it can't be kept; it is used all the same.
    """
    path = folder / USED_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:
        return None
    except OSError:
        return CacheUse(folder)
    use = CacheUse(folder, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # no locks on this file system: the time of the file has to do
        pass
    try:
        if not os.path.samestat(path.stat(), os.fstat(descriptor)):
            return None
        os.utime(descriptor)
        _add_host(descriptor)
    except FileNotFoundError:
        return None
    except OSError:  # a full disk, or root's file: the lock holds
        pass
    return use


def _add_host(descriptor: int) -> None:
    host = socket.gethostname()
    if host not in _hosts(descriptor):
        os.pwrite(descriptor, f"{host}\n".encode(), os.fstat(descriptor).st_size)


def _hosts(descriptor: int) -> list[str]:
    return os.pread(descriptor, MOST_MARK_BYTES, 0).decode(errors="replace").split("\n")[:-1]


@dataclass(frozen=True, order=True)
class _Cached:
    """A dataset of this user: when it was last taken, in seconds, and its bytes."""

    used: float
    num_bytes: int
    folder: Path


def make_room(cache_dir: Path, limit_bytes: int, num_bytes: int, say: Say) -> None:
    """Remove datasets, the one first that was not used for the longest time, until `num_bytes` more fit the limit.

    Only datasets of this user that this cache made are counted, and only those are removed that nobody uses.
    """
    cached = sorted(_cached(cache_dir))
    total = num_bytes + sum(one.num_bytes for one in cached)
    for one in cached:
        if total <= limit_bytes:
            break
        if remove_unused(one.folder):
            when = time.strftime("%Y-%m-%d", time.localtime(one.used))
            say(f"{one.folder}: removed to keep --cache_bytes: {one.num_bytes / 1e9:.3f} GB, last used on {when}")
            total -= one.num_bytes
    if total > limit_bytes:
        say(
            f"{cache_dir}: the datasets in use take {total / 1e9:.3f} GB, more than the {limit_bytes / 1e9:.3f} GB of "
            "--cache_bytes"
        )


def _cached(cache_dir: Path) -> list[_Cached]:
    found = []
    for folder in cache_dir.iterdir():
        if not CACHED_NAME.fullmatch(folder.name):
            continue
        try:
            status, used = folder.lstat(), (folder / USED_NAME).lstat().st_mtime
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder)]
        except OSError:  # none of this cache, or removed just now
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            found.append(_Cached(used, sum(sizes), folder))
    return found


def remove_unused(folder: Path) -> bool:
    """Remove a dataset of the cache, unless it is in use; whether it was removed."""
    try:
        descriptor = os.open(folder / USED_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        locks = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            locks = False
        is_shared = not locks or set(_hosts(descriptor)) - {socket.gethostname()}
        if is_shared and time.time() - os.fstat(descriptor).st_mtime < LEASE_SECONDS:
            return False
        return _remove(folder)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> bool:
    """Remove a folder, which is gone at once for all others."""
    aside = unfinished_path(folder.with_name(f".{folder.name}"))
    try:
        folder.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def finish(staging: Path) -> None:
    """Make a new dataset one of the cache's: marked as one, with a file of its use, and not to be written by everybody."""
    write_atomic(staging / TAG_NAME, TAG)
    write_atomic(staging / USED_NAME, b"")
    staging.chmod(stat.S_IMODE(staging.stat().st_mode) & ~stat.S_IWOTH)


def publish(staging: Path, found: Verdict) -> Path | None:
    """Put a finished dataset where `found` lay; None where another process was faster, or the name was taken by others.

    Raises:
        OSError: it can't be put there.
    """
    if found.state is State.WRONG:
        with contextlib.suppress(FileNotFoundError):
            if found.folder.lstat().st_ino == found.inode:  # else another process has made it anew
                _remove(found.folder)
    try:
        staging.rename(found.folder)
    except OSError:
        if found.folder.exists():
            return None
        raise
    return found.folder
