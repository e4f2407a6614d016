"""Hold a folder while one process writes there, so that another is refused and mixes no files in.

The holder has a file in the folder that names the holder (`Holder`), and keeps the system's lock (flock) on that file. Whoever
finds the file asks whether its holder lives:

- under the same kernel, in whichever container, the lock tells at once: it is gone with the process, however that ended;
- where the file system knows no locks, the process itself tells where it can be seen (`shards.liveness`);
- from another host, the holder's heartbeat tells. It sets the file's time every `BEAT_SECONDS`, and counts as dead when that
  has not changed for `DEAD_SECONDS` of the watcher's own clock. Clocks are never compared, so they need not agree.

A dead holder's folder is taken over by exactly one of those who try: the claim is a hard link whose name has the dead holder's
token, and a file system lets only one process make a name. A holder whose host stood still for longer than `DEAD_SECONDS` may
lose its folder while it lives: `FolderHold.check`, called before each write, raises an error then.

The lock is not inherited: programs that are started get no descriptor (O_CLOEXEC), and forked processes close theirs.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import give_name, make_folder
from shards.jsontext import parse_json
from shards.liveness import ProcessMark
from shards.plaintext import shown_place
from shards.unfinished import remove_left_behind_once, unfinished_path

HOLD_NAME = ".held-by.json"
BEAT_SECONDS = 10.0
DEAD_SECONDS = 120.0
CLAIM_SECONDS = 10.0  # a claim is followed by a rename at once; one that is older was left by a process that was killed
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 2.0  # until whoever waits is told for whom
MOST_COMMAND = 200  # characters of it that are kept
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

Say = Callable[[str], None]


def say_nothing(_line: str) -> None:
    """What is told where nobody looks."""


class HeldError(InputError):
    """Another process holds the folder."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a folder, and since when (local time).

    `token` is a different one for each hold; `locked` is whether the file system knows locks.
    """

    token: str
    mark: ProcessMark
    command: str
    since: str
    locked: bool = True

    def __str__(self) -> str:
        return f"process {self.mark.process} on {self.mark.host} ({self.command}), since {self.since}"

    @classmethod
    def this(cls) -> "Holder":
        """This process, for a new hold."""
        words = [Path(sys.argv[0]).name, *map(_shown_word, sys.argv[1:])]
        command = " ".join(shlex.join(words).split())
        return cls(
            token=secrets.token_hex(8),
            mark=ProcessMark.of_this(),
            command=command if len(command) <= MOST_COMMAND else f"{command[:MOST_COMMAND]} ...",
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    @classmethod
    def parse(cls, data: bytes) -> "Holder":
        """The holder that a file names. Raises ValueError where it names none."""
        value: Any = parse_json(data)
        kinds = {"token": str, "command": str, "since": str, "locked": bool}
        if not isinstance(value, dict) or any(type(value.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError("it names no holder")
        if not value["token"].isalnum():
            raise ValueError("its token is no name")
        return cls(mark=ProcessMark.parse(value.get("mark")), **{name: value[name] for name in kinds})


def _shown_word(word: str) -> str:
    """A word of the command line without what may be secret in it; the file is everybody's to read."""
    flag, equals, value = word.partition("=")
    return f"{flag}={shown_place(value)}" if equals and flag.startswith("--") else shown_place(word)


class FolderHold:
    """The hold of this process on a folder, from its making until `release`; a context.

    Args:
        folder: made where there is none.
        remedy: what to do where another process holds it, for the message.
        say: told of a dead holder, and of waiting.
        name: of the file in it; holds of different names go beside each other.

    Raises:
        HeldError: another process holds the folder.
        InputError: the folder can't be written.
    """

    def __init__(self, folder: Path, remedy: str, say: Say, name: str = HOLD_NAME) -> None:
        self.folder = folder
        self._path = folder / name
        make_folder(folder)
        self.holder = Holder.this()
        try:
            self._descriptor = _take(self._path, self.holder, remedy, say)
        except OSError as error:
            raise InputError(f"{folder}: can't be written: {error.strerror}; {remedy}, or free room") from None
        remove_left_behind_once(folder)
        _HELD.add(self)
        self._released, self._beating = threading.Event(), threading.Lock()
        threading.Thread(target=self._beat, name=f"hold {folder}", daemon=True).start()

    def __enter__(self) -> "FolderHold":
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def check(self) -> None:
        """Called before anything is written to the folder.

        Raises:
            InputError: the folder was deleted, or another process has taken it over.
        """
        if not self._is_mine():
            raise InputError(
                f"{self.folder}: no longer held by this process: the folder was deleted or replaced, or this host stood still "
                f"for more than {DEAD_SECONDS:.0f} s and another process took over; nothing more is written there"
            )

    def release(self) -> None:
        """Let the folder go. A second call does nothing, nor does one in a forked process."""
        if self._descriptor < 0:
            return
        self._released.set()
        with self._beating:
            if self._is_mine():
                with contextlib.suppress(OSError):  # on a disk that can't be written: the next one finds no lock on it
                    self._path.unlink()
            self.forget()

    def forget(self) -> None:
        """Close the descriptor and leave the folder's file as it is; the lock ends where no other process has it."""
        descriptor, self._descriptor = self._descriptor, -1
        _HELD.discard(self)
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def _is_mine(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with self._beating, contextlib.suppress(OSError):  # the next one may reach the disk
                if self._descriptor >= 0:  # else released, and the number may be another file's
                    os.utime(self._descriptor)


@contextlib.contextmanager
def held_in_turn(folder: Path, name: str, remedy: str, say: Say = say_nothing) -> Iterator[FolderHold]:
    """Hold `folder` while the block runs; whoever comes meanwhile waits for its turn, as long as the holder lives.

    Arguments and errors as of `FolderHold`; `say` is told once whom it waits for.
    """
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    began = time.monotonic()
    while True:
        try:
            hold = FolderHold(folder, remedy, say_once, name)
            break
        except HeldError as error:
            if time.monotonic() - began > PATIENCE_SECONDS:
                say_once(f"waiting: {error}")
        time.sleep(POLL_SECONDS)
    with hold:
        yield hold


_HELD: "weakref.WeakSet[FolderHold]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for hold in list(_HELD):
        hold.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _take(path: Path, mine: Holder, remedy: str, say: Say) -> int:
    """Make `path` the file of `mine`, which exactly one process can; returns its descriptor, which has the lock."""
    staging, descriptor, locked = _new_record(path)
    try:
        os.write(descriptor, json.dumps(asdict(replace(mine, locked=locked)), indent=1).encode())
        while not give_name(staging, path):
            with _opened(path) as found:
                if found is None or _is_being_made(found):
                    continue  # released just now, or not readable yet
                holder = _parse(found, path)
                if _lives(found, path, holder, say):
                    raise HeldError(f"{path.parent}: in use by {holder}; wait for its end, or {remedy}")
            if _take_over(staging, path, holder):
                say(f"{path.parent}: was held by {holder}, which is gone; taken over")
                break
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        staging.unlink(missing_ok=True)
    return descriptor


def _new_record(path: Path) -> tuple[Path, int, bool]:
    """A new file beside `path`: its name, its descriptor, and whether this process has it locked."""
    while True:
        staging = unfinished_path(path)
        descriptor = os.open(staging, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(BlockingIOError):  # somebody found it without a lock, and is about to remove it
            locked = _lock(descriptor)
            if staging.exists():
                return staging, descriptor, locked
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock the opened file of this process; False where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _is_being_made(descriptor: int) -> bool:
    """Wait while the file is empty, as it is for a moment where the file system knows no hard links; it was replaced then."""
    until = time.monotonic() + CLAIM_SECONDS
    while (status := os.fstat(descriptor)).st_size == 0 and status.st_nlink and time.monotonic() < until:
        time.sleep(POLL_SECONDS / 10)
    return status.st_nlink == 0


def _take_over(staging: Path, path: Path, dead: Holder) -> bool:
    """Replace the file of a dead holder; False where another process was faster, so that all is to be looked at again."""
    claim = path.with_name(f"{path.name}.after-{dead.token}")
    if not give_name(staging, claim):
        _wait_for_claim(claim)
        return False
    # The claim before may have been made good and be gone by now: then the file is another's.
    with _opened(path) as found:
        still_dead = found is not None and _parse(found, path).token == dead.token
    if still_dead:
        claim.replace(path)
    else:
        claim.unlink(missing_ok=True)
    return still_dead


def _wait_for_claim(claim: Path) -> None:
    """Wait until another process has made its claim good; one that was killed in between is cleared away."""
    until = time.monotonic() + CLAIM_SECONDS
    while claim.exists():
        if time.monotonic() > until:
            claim.unlink(missing_ok=True)
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    """A descriptor of the file, None where there is none. Raises InputError where it is no regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
    except FileNotFoundError:
        yield None
        return
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_record(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _parse(descriptor: int, path: Path) -> Holder:
    try:
        return Holder.parse(os.pread(descriptor, 2**16, 0))
    except ValueError:
        raise _no_record(path) from None


def _no_record(path: Path) -> InputError:
    return InputError(
        f"{path}: not the record of a process that holds this folder; delete it if no process writes here"
    )


def _lives(descriptor: int, path: Path, holder: Holder, say: Say) -> bool:
    """Whether the holder of the opened file lives; watches for a heartbeat where nothing else tells."""
    known = _is_locked(descriptor) if holder.locked and holder.mark.is_of_this_kernel else None
    if known is None:
        known = holder.mark.lives
    if known is not None:
        return known
    say(f"{path.parent}: held by {holder}; watching its heartbeat for up to {DEAD_SECONDS:.0f} s")
    return _beats(path)


def _is_locked(descriptor: int) -> bool | None:
    """Whether another process has the lock of the opened file; None where the file system tells no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return False


def _beats(path: Path) -> bool:
    """Whether the file at `path` changes, or is replaced, within DEAD_SECONDS."""

    def look() -> tuple[int, int] | None:
        with _opened(path) as found:  # a network file system asks its server when a file is opened
            status = None if found is None else os.fstat(found)
        return None if status is None else (status.st_ino, status.st_mtime_ns)

    first, until = look(), time.monotonic() + DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, DEAD_SECONDS / 20))
        now = look()
        if now is None:
            return False  # released
        if now != first:
            return True
    return False
