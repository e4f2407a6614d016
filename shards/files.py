"""Files that are either whole or not there.

Everything that others may read is written under a temporary name in the same folder, flushed to the disk, and renamed.
"""

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shards.errors import InputError

TEMPORARY_MARK = ".tmp-"


@contextlib.contextmanager
def atomic_writer(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file, to write and read, that appears at `path` only when the block ends without an error.

    `durable`: it is whole after a power cut too, which costs a flush of the disk.

    Raises:
        InputError: the file can't be written (no room, no permission); nothing is left at `path`.
    """
    # Host, process and a random part keep apart the writers of one shared folder.
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{unique}")
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is a folder or a device, not a file that can be replaced; choose another name")
        with temporary.open("w+b", buffering=0) as file:
            yield file
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            fsync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: can't be written: {error.strerror or error}; free room or choose another folder, then run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_left_behind(name: str) -> bool:
    """Whether the file `name` is a temporary one of a process of this host that has ended."""
    writer = name.rpartition(TEMPORARY_MARK)[2].rsplit("-", 2)
    return len(writer) == 3 and writer[0] == socket.gethostname() and not _is_running(writer[1])


def _is_running(process: str) -> bool:
    """Whether a process of this host can still write; one that has ended may wait for its parent to notice."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(file: IO[bytes], data: Any) -> None:
    """Write a whole buffer to an unbuffered file, which may take it in parts."""
    view = memoryview(data).cast("B")
    while len(view):
        view = view[file.write(view) :]


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_writer(path) as file:
        write_all(file, data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; equal values give equal bytes."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        InputError: it can't be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't create this folder: {error.strerror}") from error


def read_text(path: Path, what: str, remedy: str) -> str:
    """Read a UTF-8 text file of the user's.

    Raises:
        InputError: it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {what} must be UTF-8 text: {error.reason} at byte {error.start}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: can't read {what}: {error.strerror}; {remedy}") from None


def read_feature_file(path: str) -> bytes:
    """Read a whole file of a source.

    Raises:
        InputError: it is missing or unreadable.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path a file costs as much as the read
            return file.read()
    except OSError as error:
        raise unreadable_feature_file(path, error) from None


def unreadable_feature_file(path: str, error: OSError) -> InputError:
    """What a feature file that can't be read is reported as."""
    return InputError(f"{path}: can't read this feature file: {error.strerror}; check the list, --db_path and --ext")
