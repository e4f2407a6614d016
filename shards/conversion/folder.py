"""Write a dataset to a local folder, or to anything that fsspec writes to, such as ``s3://bucket/corpus``.

In either, a file is whole or not there: locally by renaming, remotely because an object appears when its upload ends. What
is made piece by piece (a shard) lies in a local temporary file until it is uploaded.
"""

import contextlib
import errno
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import InputError, UsageError
from shards.files import atomic_writer, make_folder, read_regular, staging_folder, write_new
from shards.holding import HOLD_NAME, Say, held_in_turn
from shards.jsontext import MOST_BYTES
from shards.plaintext import masked
from shards.stores.remote import RemoteFiles, open_filesystem
from shards.stores.retry import WrongBytesError
from shards.unfinished import TEMPORARY_MARK, remove_left_behind

JOB_HOLD_NAME = f".job{HOLD_NAME}"
MOST_RECORD_BYTES = (
    256_000_000  # of a shard: some 60 an utterance, and 16 a feature; whatever a server sends or a disk has
)


class Folder(ABC):
    """Files by name, in one folder and its subfolders; names have ``/`` between folder and file.

    All methods raise InputError where the folder can't be reached or written.
    """

    @abstractmethod
    def where(self, name: str) -> str:
        """The file as messages name it."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The names of all files with their bytes, without unfinished ones."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError where there is none."""

    @abstractmethod
    def in_turn(self, say: Say) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """While the block runs, no other process is in such a block of this folder; whoever comes waits, and `say` is told so.

        Call what it gives before each write: it raises InputError where the folder was lost. A store has no such thing.
        """

    @abstractmethod
    def create(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file that appears under `name` when the block ends without an error."""

    @abstractmethod
    def write_new(self, name: str, data: bytes) -> bool:
        """Write a whole file that is not there yet; False where it is, as for one of two who try at once."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_unfinished(self) -> None:
        """Give back the room of unfinished files that killed processes have left."""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file."""
        with self.create(name) as file:
            file.write(data)


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder of this machine's file system; made with the first file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.path / name)

    def sizes(self) -> dict[str, int]:
        """The names of all files with their bytes, without unfinished ones."""
        return dict(_walk(self.path, ""))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError where there is none."""
        try:
            return read_regular(self.path / name, _most_bytes(name))
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise InputError(f"{self.where(name)}: {error.strerror}; it is no file of a job, so remove it") from None

    @contextlib.contextmanager
    def in_turn(self, say: Say) -> Iterator[Callable[[], None]]:
        """While the block runs, no other process is in such a block of this folder."""
        with held_in_turn(self.path, JOB_HOLD_NAME, "choose another folder", say) as hold:
            yield hold.check

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that appears under `name` when the block ends without an error."""
        path = self.path / name
        with contextlib.ExitStack() as stack:
            while True:
                make_folder(path.parent)
                try:
                    file = stack.enter_context(atomic_writer(path))
                    break
                except InputError:
                    if path.parent.is_dir():
                        raise
                    # Another process has removed the emptied subfolder just now.
            yield file

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a whole file that is not there yet; False where it is, as for one of two who try at once."""
        make_folder((self.path / name).parent)
        return write_new(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there, and its subfolder, if that is empty then."""
        path = self.path / name
        path.unlink(missing_ok=True)
        if path.parent != self.path:
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def remove_unfinished(self) -> None:
        """Give back the room of unfinished files that killed processes have left."""
        remove_left_behind(self.path)
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_left_behind(Path(entry.path))


def _most_bytes(name: str) -> int:
    """The most that a file of a job may have: a manifest or a job is JSON, all others are records."""
    return MOST_BYTES if name.endswith(".json") else MOST_RECORD_BYTES


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    """The files below a folder with their bytes, without unfinished ones and those of holds; some may go meanwhile."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror}; choose another folder") from None
    for entry in entries:
        if TEMPORARY_MARK in entry.name or HOLD_NAME in entry.name:
            continue
        with contextlib.suppress(FileNotFoundError):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size


@dataclass(frozen=True)
class RemoteFolder(Folder):
    """A folder at a URL that fsspec knows."""

    url: str

    def __str__(self) -> str:
        return masked(self.url)

    def where(self, name: str) -> str:
        """The file's URL, for messages: without what may be secret in it."""
        return f"{self}/{name}"

    def sizes(self) -> dict[str, int]:
        """The names of all files with their bytes."""
        with self._reached(str(self)) as (fs, root):
            fs.invalidate_cache()
            found = fs.find(root, detail=True)
            return {str(path)[len(root) + 1 :]: int(info["size"]) for path, info in found.items()}

    def read(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError where there is none."""
        try:
            return RemoteFiles(self.url).read(name, _most_bytes(name))
        except WrongBytesError as error:
            raise InputError(f"{self.where(name)}: {error}; it is no file of a job, so remove it") from None

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._reached(self.where(name)) as (fs, root):
            fs.invalidate_cache()
            return bool(fs.exists(f"{root}/{name}"))

    @contextlib.contextmanager
    def in_turn(self, say: Say) -> Iterator[Callable[[], None]]:
        """Nothing is held, and nobody waited for: a store has neither locks nor files that only one process can make."""
        del say
        yield lambda: None

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a local temporary file that is uploaded to `name` when the block ends without an error."""
        with staging_folder(Path(tempfile.gettempdir()) / "spkid-upload", mode=0o700) as staging:
            path = staging / "file"
            with atomic_writer(path, durable=False, remedy="point TMPDIR to a larger disk") as file:
                yield file
            with self._reached(self.where(name)) as (fs, root):
                fs.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)  # noqa: PTH120 - a URL's path
                fs.put_file(str(path), f"{root}/{name}")

    def write_new(self, name: str, data: bytes) -> bool:
        """Write a whole file; a store has nothing that two who try at once could not both do, so the last one's stays."""
        self.write(name, data)
        return self.read(name) == data

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._reached(self.where(name)) as (fs, root), contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def remove_unfinished(self) -> None:
        """Nothing: a store shows no unfinished upload, and the temporary file was in the system's folder for them."""

    @contextlib.contextmanager
    def _reached(self, where: str) -> Iterator[tuple[Any, str]]:
        """The file system and the folder's path in it; what it raises becomes our error."""
        fs, root = open_filesystem(self.url, repeats=True)
        try:
            yield fs, root
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.url}: can't be opened: {error}") from error
        except Exception as error:
            raise InputError(f"{where}: the store failed: {type(error).__name__}: {error}; run again later") from error


def open_folder(place: str | Path) -> Folder:
    """The folder at a path, or at a URL such as ``s3://bucket/corpus``."""
    text = str(place)
    return RemoteFolder(text.rstrip("/")) if "://" in text else LocalFolder(Path(place))
