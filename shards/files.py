"""Write files that are either whole or not there.

Everything that others may read is written under a temporary name in the same folder, flushed to the disk, and renamed. Whoever
writes such a file may be a library that looks neither at how much of its bytes was taken nor at a failure: the file takes all
of them or fails, and a failure that a library hides is found when the file is closed.
"""

import contextlib
import errno
import io
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shards.errors import InputError
from shards.guesses import guess_encoding, guess_missing_file
from shards.unfinished import lock_maker, remove_left_behind_once, unfinished_path

NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
# What systems answer that can't flush a folder: CIFS, some of FUSE, folders that may be written but not read.
NO_FOLDER_SYNC = {
    errno.EINVAL, errno.EBADF, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EISDIR
}  # fmt: skip
MOST_TEXT_BYTES = 256_000_000
READ_BYTES = 2**20


class _RawFile(io.FileIO):
    """A new file that remembers the first write that failed. One write takes at most 2,147,479,552 bytes."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write as many bytes as the system takes at once; returns their number."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def sync(self) -> None:
        """Flush to the disk what was written."""
        try:
            os.fsync(self.fileno())
        except OSError as error:
            self.failure = error

    def close(self) -> None:
        """Close the file, which is when a network file system tells of failed writes."""
        try:
            super().close()
        except OSError as error:
            self.failure = self.failure or error
            raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new binary file, to write and read, each of whose writes takes all bytes; blocks are not copied.

    It has the lock of an unfinished file (`shards.unfinished`) until it is closed.

    Raises:
        OSError: it can't be opened; or a write has failed, whatever the writer made of that.
    """
    raw = _RawFile(os.fspath(path), "x+")
    lock_maker(raw.fileno(), path)
    try:
        with io.BufferedRandom(raw) as file:  # a raw file may take a part, and most libraries don't look
            yield file
            file.flush()
    except Exception:
        if raw.failure is not None:  # torch.save raises a RuntimeError of its own over it
            raise raw.failure from None
        raise
    if raw.failure is not None:
        raise raw.failure


@contextlib.contextmanager
def atomic_writer(
    path: Path, *, durable: bool = True, remedy: str = "free room or choose another folder, then run again"
) -> Iterator[IO[bytes]]:
    """Open a binary file, to write and read, that appears at `path` only when the block ends without an error.

    Each of its writes takes all bytes; blocks are not copied. What killed processes left unfinished in that folder is removed.

    Args:
        path: where it appears.
        durable: it is whole after a power cut too, which costs a flush of the disk.
        remedy: what to do where it can't be written.

    Raises:
        InputError: the file can't be written (no room, no permission), or the block raised an OSError of something else;
            nothing is left at `path`.
    """
    remove_left_behind_once(path.parent)
    with _unfinished_file(path, remedy) as (raw, temporary):
        try:
            with io.BufferedRandom(raw) as file:  # a raw file may take a part, and most libraries don't look
                yield file
                file.flush()
                if raw.failure is None and durable:
                    raw.sync()
        except OSError as error:
            if raw.failure is None:
                raise _of_something_else(path, error) from error
        except Exception:
            if raw.failure is None:
                raise
        if raw.failure is not None:  # whatever a library made of it
            raise _not_written(path, raw.failure, remedy) from raw.failure
        try:
            temporary.replace(path)
            if durable:
                fsync_folder(path.parent)
        except OSError as error:
            raise _not_written(path, error, remedy) from error


@contextlib.contextmanager
def _unfinished_file(path: Path, remedy: str) -> Iterator[tuple[_RawFile, Path]]:
    """A new file beside `path`, removed at the end if it has its name still; its lock stays when the file is closed."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a folder or a device, not a file that can be replaced; choose another name")
    while True:
        temporary = unfinished_path(path)
        lock = -1
        try:
            raw = _RawFile(os.fspath(temporary), "x+")
            lock = os.dup(raw.fileno())
            if lock_maker(lock, temporary):
                break
        except OSError as error:
            if lock < 0:  # no descriptor was left for it
                temporary.unlink(missing_ok=True)
            raise _not_written(path, error, remedy) from error
        raw.close()
        os.close(lock)
    try:
        yield raw, temporary
    finally:
        with contextlib.suppress(OSError):
            raw.close()
        os.close(lock)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError, remedy: str) -> InputError:
    return InputError(f"{path}: can't be written: {error.strerror or error}; {remedy}")


def _of_something_else(path: Path, error: OSError) -> InputError:
    """What is raised for an error that `path` has no part in, but that came while it was written."""
    where = path if error.filename is None else os.fsdecode(error.filename)
    return InputError(
        f"{where}: {error.strerror or error}, while {path} was being written, which is left out; run again"
    )


@contextlib.contextmanager
def staging_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """A new hidden folder beside `path`, for what is renamed to it when it is whole; removed at the end if it is still there.

    What killed processes left unfinished beside it is removed.

    Raises:
        InputError: it can't be made.
    """
    make_folder(path.parent)
    remove_left_behind_once(path.parent)
    while True:
        staging = unfinished_path(path.with_name(f".{path.name}"))
        try:
            staging.mkdir(mode)
            lock = os.open(staging, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"{path}: can't create a folder beside it: {error.strerror}; choose another folder"
            ) from error
        if lock_maker(lock, staging):
            break
        os.close(lock)
    try:
        yield staging
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as far as the file system does so; databases ask for no more either."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_writer(path) as file:
        file.write(data)


def plain_json(value: Any) -> Any:
    """`value` with null in the place of numbers that JSON does not know: NaN and the infinities, that is, unknown."""
    if isinstance(value, dict):
        return {name: plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_new(path: Path, data: bytes) -> bool:
    """Write `data` to a new file `path`, whole or not at all; False where there is one already, as of two who try at once.

    Raises:
        InputError: it can't be written.
    """
    remove_left_behind_once(path.parent)
    if os.path.lexists(path):
        return False
    remedy = "choose another folder"
    with _unfinished_file(path, remedy) as (raw, temporary):
        try:
            with io.BufferedRandom(raw) as file:
                file.write(data)
                file.flush()
                os.fsync(raw.fileno())
            is_new = give_name(temporary, path)
            fsync_folder(path.parent)
        except OSError as error:
            raise _not_written(path, error, remedy) from error
    return is_new


def give_name(temporary: Path, path: Path) -> bool:
    """Give a file the name `path`, if nothing has that name yet."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return path.samefile(temporary)  # a network file system may have lost its answer, and asked again
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:  # an empty file is there for a moment
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return False
        temporary.replace(path)
    return True


def json_bytes(value: Any) -> bytes:
    """`value` as indented JSON, as `plain_json` has it; equal values give equal bytes.

    Text is UTF-8, but for what is none: of a path that is not UTF-8 each such byte is an escape, as Python reads it back.
    """
    text = json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_bytes` atomically."""
    write_atomic(path, json_bytes(value))


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        InputError: it can't be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't create this folder: {error.strerror}") from error


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[io.FileIO]:
    """Open a regular file to read, without a buffer. A named pipe is refused, and not waited for.

    Raises:
        OSError: it can't be opened, or is no regular file: a folder, a device, a pipe, a socket.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # the last is for opening pipes alone
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file, but a folder, a device, a pipe or a socket", os.fspath(path))
    with io.FileIO(descriptor, "r") as file:
        yield file


def read_regular(path: str | Path, most_bytes: int) -> bytes:
    """The bytes of a regular file that has at most `most_bytes`.

    Raises:
        OSError: it can't be read, is no regular file, or is larger.
    """
    parts, size = [], 0
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most_bytes:  # before it is read: holes in a file cost its maker nothing
            raise _too_large(path, most_bytes)
        while size <= most_bytes and (part := file.read(READ_BYTES)):
            parts.append(part)
            size += len(part)
    if size > most_bytes:  # it has grown, or tells no size, as those of /proc
        raise _too_large(path, most_bytes)
    return b"".join(parts)


def _too_large(path: str | Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"more than the {most_bytes} bytes that such a file may have", os.fspath(path))


def read_text(path: Path, what: str, remedy: str, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Read a UTF-8 text file of the user's.

    Raises:
        InputError: it is missing, unreadable, no regular file, not UTF-8, or larger than `most_bytes`.
    """
    try:
        data = read_regular(path, most_bytes)
        encoding = guess_encoding(data)
        if encoding is not None:
            raise InputError(f"{path}: {what} must be UTF-8 text; {encoding}")
        return data.decode("utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {what} must be UTF-8 text: {error.reason} at byte {error.start}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: can't read {what}: {error.strerror}; {remedy}") from None


def unreadable_feature_file(path: str, error: OSError) -> InputError:
    """What a feature file that can't be read is reported as."""
    guess = guess_missing_file(path) if isinstance(error, FileNotFoundError | NotADirectoryError) else None
    return InputError(
        f"{path}: can't read this feature file: {error.strerror}; {guess or 'check the list, --db_path and --ext'}"
    )


def real_path(path: Path) -> Path:
    """The path without links, so that two can be compared; of a circle of links a part stays, which is no error here."""
    return Path(os.path.realpath(path))  # `Path.resolve` raises RuntimeError for a circle


def expand_home(path: Path, flag: str) -> Path:
    """`path` with the user's home folder for "~". Raises InputError, which names `flag`, where no home folder is known."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(
            f"{flag} {path}: this user has no home folder, and HOME is not set; set {flag} to another folder"
        ) from None
