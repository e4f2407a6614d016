"""Name what is unfinished, so that whoever finds it knows whether its maker lives, and remove what was left behind.

A file or folder is made under the name ``NAME.tmp-KERNEL.PLACE.PROCESS.STARTED-TOKEN`` beside its place, and renamed then.
Whoever finds such a name asks, in this order:

- in the same place (kernel, namespaces of process numbers and of times) the system knows whether that process lives;
- under the same kernel, from another container, the lock tells (flock): its maker keeps it, and the kernel drops it with the
  process, however that ended;
- from another host, or without locks, it can't be told. Then nothing is removed until the file was not changed for
  ABANDONED_SECONDS by the clock of the file system itself.

A maker whose file was removed between its making and its lock notices that, and takes another name. A maker that was taken for
dead wrongly, after a week of silence, fails with an error when it renames: nothing wrong can appear.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards.liveness import ProcessMark, process_lives

TEMPORARY_MARK = ".tmp-"
MAKER_NAME = re.compile(
    r"(?P<kernel>[0-9a-f]{12})\.(?P<place>[0-9a-f]{12})\.(?P<process>[1-9]\d{0,9})\.(?P<started>\d{1,19})-[0-9a-f]{8}"
)
OLD_MAKER_NAME = re.compile(r".+-\d+\.\d+-[0-9a-f]{8}|[0-9a-f]{8}")  # of version 0.1: only their age tells
ABANDONED_SECONDS = 7 * 86400.0

_seen_folders: set[str] = set()


def unfinished_path(path: Path) -> Path:
    """A new name beside `path` for what will be renamed to it, another one each time."""
    mark = ProcessMark.of_this()
    maker = f"{mark.kernel_digest}.{mark.place_digest}.{mark.process}.{mark.started}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{maker}")


def is_unfinished(name: str) -> bool:
    """Whether this is a name that `unfinished_path` made, or would have made in an earlier version."""
    _, mark, maker = name.rpartition(TEMPORARY_MARK)
    return bool(mark) and any(pattern.fullmatch(maker) for pattern in (MAKER_NAME, OLD_MAKER_NAME))


def lock_maker(descriptor: int, path: Path) -> bool:
    """Lock the opened unfinished file or folder of this process, which shows that the process lives.

    False where it was removed just before, by somebody who found it without a lock: then another name is to be taken. A file
    system without locks is no error: there the name alone tells.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody is about to remove it
        return False
    except OSError:
        pass
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def maker_lives(path: Path) -> bool | None:
    """Whether the maker of an unfinished file or folder lives; None where this can't be told from here."""
    with _opened(path) as descriptor:
        return _maker_lives(path.name, descriptor)


def remove_left_behind(folder: Path) -> None:
    """Remove the unfinished files and folders in `folder`, not in those below it, whose makers have ended.

    What can't be removed stays: another user's, or on a disk that can't be written.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_unfinished(entry.name):
                _remove_if_left(Path(entry.path))


def remove_left_behind_once(folder: Path) -> None:
    """The same for whoever writes many files there: a process looks once."""
    name = os.path.abspath(folder)  # noqa: PTH100 - `Path.absolute` keeps ".."
    if name not in _seen_folders:
        _seen_folders.add(name)
        remove_left_behind(folder)


def _remove_if_left(path: Path) -> None:
    with (
        contextlib.suppress(OSError),
        _opened(path) as descriptor,
    ):  # with the lock, which its maker can't get meanwhile
        lives = _maker_lives(path.name, descriptor)
        if lives or (lives is None and not _is_abandoned(path)):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _maker_lives(name: str, descriptor: int | None) -> bool | None:
    match = MAKER_NAME.fullmatch(name.rpartition(TEMPORARY_MARK)[2])
    if match is None:
        return None
    mark = ProcessMark.of_this()
    if match["place"] == mark.place_digest:
        lives = process_lives(int(match["process"]), int(match["started"]))
        if lives is not None:
            return lives
    if match["kernel"] != mark.kernel_digest or descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks
        return None
    return False


def _is_abandoned(path: Path) -> bool:
    """Whether a file or folder was not changed for ABANDONED_SECONDS; clocks of machines are not compared."""
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    return now - path.lstat().st_mtime > ABANDONED_SECONDS


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the file or folder; None where it can't be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
