"""Write checkpoints to disk: folders that are whole or not there, and are verified when read.

    SAVE_PATH/checkpoints/000017-epoch3/state.pt       weights, optimiser and the like; holds tensors and plain values only
                                       /training.json  where the training stands, its statistics, its options and data
                                       /manifest.json  sizes and checksums of the two, written last
                         /checkpoints.json             which checkpoints count, from the oldest on, and which is the best

A checkpoint is written under a temporary name, flushed to the disk and renamed; then `checkpoints.json` is replaced, and only
then are older ones deleted. What is not in that file is what a crash has left.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from shards.errors import InputError
from shards.files import fsync_folder, json_bytes, make_folder, read_regular, real_path, write_atomic, write_json
from shards.jsontext import from_json, parse_json, shown
from shards.unfinished import TEMPORARY_MARK, unfinished_path
from spkid_dist.trainedfolder import MOST_STATISTICS_BYTES

FORMAT = 1
FOLDER_NAME = "checkpoints"
CHAIN_NAME = "checkpoints.json"
MANIFEST_NAME, VALUES_NAME, STATE_NAME = "manifest.json", "training.json", "state.pt"
NAME_PATTERN = re.compile(r"([0-9]{6,18})-epoch[0-9]{1,18}")  # a name of a folder in this one, and of no other place
MOST_MANIFEST_BYTES = 1_000_000

Say = Callable[[str], None]


class DamagedCheckpointError(InputError):
    """A checkpoint is not what a training has written, so the one before it may be taken."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are what was written: plain `values`, and the bytes of the tensors' file."""

    path: Path
    values: dict[str, Any]
    state: bytes


Check = Callable[[Checkpoint], None]


def _accept(_: Checkpoint) -> None:
    """Find nothing wrong with a checkpoint whose files are what was written."""


@dataclass(frozen=True)
class _File:
    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class _Manifest:
    format: int
    files: dict[str, _File]


@dataclass(frozen=True)
class _Chain:
    checkpoints: list[str]
    best: str | None


def write_checkpoint(path: Path, values: dict[str, Any], state: bytes) -> None:
    """Write a checkpoint to the new folder `path`, which appears whole or not at all.

    Raises:
        InputError: it can't be written (no room, no permission).
    """
    make_folder(path.parent)
    staging = unfinished_path(path)
    contents = {STATE_NAME: state, VALUES_NAME: json_bytes(values)}
    files = {name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for name, data in contents.items()}
    try:
        make_folder(staging)
        for name, data in contents.items():
            write_atomic(staging / name, data)
        write_json(staging / MANIFEST_NAME, {"format": FORMAT, "files": files})
        staging.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}; free room or choose another folder") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint in the folder `path`, and compare its files with what was written.

    Raises:
        DamagedCheckpointError: a file of it is missing, or not what was written.
    """
    try:
        manifest: _Manifest = from_json(_Manifest, parse_json(read_regular(path / MANIFEST_NAME, MOST_MANIFEST_BYTES)))
        if manifest.format != FORMAT:
            raise ValueError(f"format {manifest.format}, expected {FORMAT}")
        state = _read_verified(path / STATE_NAME, manifest)
        text = _read_verified(path / VALUES_NAME, manifest)
        values = parse_json(text, most_bytes=MOST_STATISTICS_BYTES, undecodable=True)  # paths stand in it
        if not isinstance(values, dict):
            raise ValueError(f"{VALUES_NAME} holds a {type(values).__name__}, expected an object")
    except OSError as error:
        name = Path(error.filename or path).name
        raise DamagedCheckpointError(f"{path}: not a whole checkpoint: {name}: {error.strerror}") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{path}: a damaged checkpoint: {error}") from None
    return Checkpoint(path, values, state)


def _read_verified(path: Path, manifest: _Manifest) -> bytes:
    written = manifest.files.get(path.name)
    if written is None:
        raise ValueError(f"{MANIFEST_NAME} does not name {path.name}")
    data = read_regular(path, written.bytes)
    if len(data) != written.bytes:
        raise ValueError(f"{path.name} has {len(data)} bytes, written were {written.bytes}")
    if xxhash.xxh3_128_hexdigest(data) != written.xxh3_128:
        raise ValueError(f"{path.name} is not what was written (checksum differs)")
    return data


@dataclass
class CheckpointFolder:
    """The checkpoints of a training, of which the last `keep` and the best stay; used by one process.

    It begins with none that count, unless `newest` or `at` goes on from one; those that do not count stay until `settle` or the
    first `save`. `check` is called before anything is written or deleted, and raises where that is not allowed.
    """

    folder: Path
    keep: int
    check: Callable[[], None] = lambda: None
    _chain: list[str] = field(default_factory=list)
    _best: str | None = None

    def save(self, epoch: int, values: dict[str, Any], state: bytes, best: bool) -> Path:
        """Write a checkpoint, note whether it is the best so far, and delete those that are not to be kept.

        Raises:
            InputError: it can't be written; the ones before it stay.
        """
        self.check()
        serial = max((_serial(name) for name in self._names()), default=0) + 1
        name = f"{serial:06d}-epoch{epoch}"
        try:
            write_checkpoint(self.folder / name, values, state)
        except InputError:
            self.check()  # where the folder was deleted, that is what is wrong
            raise
        self._chain.append(name)
        self._best = name if best else (self._best if self._best in self._chain else None)
        last = self._chain[-self.keep :]
        self._chain = [name for name in self._chain if name in last or name == self._best]
        self._write_chain()
        return self.folder / name

    def settle(self) -> None:
        """Delete the checkpoints that do not count: those after the one that the training goes on from, and damaged ones.

        Raises:
            InputError: the list of those that count can't be written.
        """
        if self._names() != self._chain:
            self.check()
            self._best = self._best if self._best in self._chain else None
            self._write_chain()

    def _write_chain(self) -> None:
        write_json(self.folder / CHAIN_NAME, {"checkpoints": self._chain, "best": self._best})
        self._delete_others()

    @property
    def last(self) -> Path | None:
        """The checkpoint that was written last, as its name says; it is not read."""
        name = max(self._names(), key=_serial, default=None)
        return None if name is None else self.folder / name

    def newest(self, say: Say, check: Check = _accept) -> Checkpoint | None:
        """The last checkpoint that is whole, to go on from; None where there are none. `say` tells of damaged ones.

        `check` raises DamagedCheckpointError where one is not whole, although its files are what was written.

        Raises:
            InputError: there are some, but none is whole; or whatever else `check` raises.
        """
        self._read_chain(say)
        names = list(self._chain)
        for name in reversed(names):
            try:
                checkpoint = read_checkpoint(self.folder / name)
                check(checkpoint)
            except DamagedCheckpointError as error:
                say(f"{error}; looking at the one before it")
                self._chain.remove(name)
            else:
                return checkpoint
        if names:
            raise InputError(
                f"{self.folder}: none of its {len(names)} checkpoints is whole; restore one from a copy, or train from the "
                "start with --overwrite instead of --resume"
            )
        return None

    def at(self, path: Path, say: Say, check: Check = _accept) -> Checkpoint:
        """The checkpoint `path`, or the last one of the training whose folder `path` is, to go on from; see `newest`.

        Raises:
            InputError: there is none, or it is damaged; or whatever else `check` raises.
        """
        path = path.absolute()
        if NAME_PATTERN.fullmatch(path.name) and path.is_dir():
            checkpoint = read_checkpoint(path)
            check(checkpoint)
        else:
            folder = path if path.name == FOLDER_NAME else path / FOLDER_NAME
            found = CheckpointFolder(folder, self.keep).newest(say, check)
            if found is None:
                raise InputError(
                    f"--resume {path}: there is no checkpoint; give a --save_path that has some, a folder in its "
                    f"{FOLDER_NAME}/, or --resume never"
                )
            checkpoint = found
        if real_path(checkpoint.path.parent) == real_path(self.folder):  # what came after it does not count any more
            self._read_chain(say)
            before = [name for name in self._chain if _serial(name) < _serial(checkpoint.path.name)]
            self._chain = [*before, checkpoint.path.name]
        return checkpoint

    def is_empty(self) -> bool:
        """Whether there is no checkpoint at all, of whichever training."""
        return not self._names()

    def _read_chain(self, say: Say) -> None:
        path = self.folder / CHAIN_NAME
        try:
            chain: _Chain = from_json(_Chain, parse_json(read_regular(path, MOST_MANIFEST_BYTES)))
            names = [*chain.checkpoints, *([] if chain.best is None else [chain.best])]
            wrong = [name for name in names if not NAME_PATTERN.fullmatch(name)]
            if wrong:
                raise ValueError(f"{shown(wrong[0])} is no name of a checkpoint in this folder")
            if len(set(chain.checkpoints)) != max(len(chain.checkpoints), 1):
                raise ValueError("it names no checkpoint, or one twice")
            self._chain, self._best = sorted(chain.checkpoints, key=_serial), chain.best
        except FileNotFoundError:
            self._chain = self._names()
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            say(f"{path}: damaged ({what}): taking the checkpoints by their numbers")
            self._chain = self._names()

    def _names(self) -> list[str]:
        """The checkpoints' folders, from the oldest on."""
        found = [path.name for path in self.folder.glob("*-epoch*") if NAME_PATTERN.fullmatch(path.name)]
        return sorted(found, key=_serial)

    def _delete_others(self) -> None:
        for path in self.folder.glob("*-epoch*"):
            if path.name not in self._chain and NAME_PATTERN.match(path.name):  # a temporary one too
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"{CHAIN_NAME}{TEMPORARY_MARK}*"):
            path.unlink(missing_ok=True)


def _serial(name: str) -> int:
    return int(name.split("-")[0])
