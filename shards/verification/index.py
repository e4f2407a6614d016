"""Rebuild the manifest and the tables from the tars alone, byte for byte as the conversion wrote them.

Headers, lengths, labels and JSON must be as the writer makes them, and the job's identity, which covers every key,
must be that which the tars name: a missing or exchanged shard is an error. What can't be told without the lost
checksums is whether the frames' values changed since; the manifest is therefore never replaced by another one that is
intact.

Shapes: T frames of a block, U its utterances, D features per frame.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.conversion.assembly import assembling
from shards.conversion.folder import LocalFolder
from shards.conversion.record import ShardRecord
from shards.corpus import Utterance
from shards.errors import InputError, UsageError
from shards.files import open_regular
from shards.hashing import UtteranceSum, sum_utterances
from shards.holding import Say, say_nothing
from shards.jsontext import from_json, parse_json
from shards.layout import (
    BLOCK_DTYPE,
    DTYPES,
    MANIFEST_NAME,
    UTTERANCE_DTYPE,
    Layout,
    ShardInfo,
    block_info,
    block_json,
    block_key,
    key_hash,
    shard_name,
)
from shards.manifest import Manifest, Origin
from shards.members import TAR_RECORD, parse_npy
from shards.moments import BlockMoments
from shards.parallel import in_order
from shards.plaintext import unsafe_character
from shards.verification.jobcheck import IndexedShard, JobChecks
from shards.verification.ongoing import find_unfinished
from shards.verification.tarreader import RESTORE, TarReader


def rebuild_index(
    folder: Path,
    *,
    workers: int = 1,
    done: Callable[[int], None] = lambda _shards: None,
    say: Say = say_nothing,
) -> Manifest:
    """Write manifest and tables of the tars in `folder`, and return the manifest; shards of an unfinished append don't count.

    Args:
        folder: holds ``shard-000000.tar`` and so on, of one job, or of one and those that appended to it.
        workers: threads, each at one shard; a block's frames are in memory for each.
        done: called with 1 for each shard that was read.
        say: told of another process that writes to the folder, which is waited for.

    Raises:
        InputError: a tar is damaged, missing or of another job; or there is an intact manifest that describes other
            shards. Nothing was written then.
    """
    _shard_names(folder)
    out = LocalFolder(folder)
    with out.in_turn(say) as check:
        return _rebuild(out, workers, done, check)


def _rebuild(out: LocalFolder, workers: int, done: Callable[[int], None], check: Callable[[], None]) -> Manifest:
    """What `rebuild_index` does when its turn has come."""
    folder = out.path
    names = _shard_names(folder)
    jobs = JobChecks(folder)
    num_jobs = _read_origin(folder, len(names) - 1).part + 1
    indexed = in_order(partial(index_shard, folder), range(len(names)), workers)
    with closing(indexed) as results, assembling(out, num_jobs) as assembly:
        for shard in results:
            jobs.add(shard)
            assembly.add(shard.record, shard.origin)
            done(1)
        jobs.close()
        manifest = assembly.finish()
        _check_old_manifest(folder, manifest)
        check()
    out.write(MANIFEST_NAME, manifest.to_bytes())
    return manifest


def _shard_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the one with the shards")
    unfinished = _unfinished_append(folder)
    found = sorted({path.name for path in folder.glob("*.tar")} - unfinished)
    if not found:
        raise InputError(f"{folder}: holds no shards; expected {shard_name(0)} and so on")
    names = [shard_name(number) for number in range(len(found))]
    missing = sorted(set(names) - set(found))
    if missing:
        raise InputError(
            f"{folder}: {missing[0]} is missing, but there is {found[-1]}; shards are numbered without gaps from 0: "
            "restore it from a copy, or remove what is no shard of this dataset"
        )
    return names


def _unfinished_append(folder: Path) -> set[str]:
    """The shards of an append that is not published, nor indexed: they are no part of the dataset yet."""
    try:
        manifest = Manifest.load(folder)
    except InputError:
        manifest = None
    unfinished = find_unfinished(folder, manifest)
    return unfinished.shard_names if unfinished is not None and unfinished.job.part else set()


def _check_old_manifest(folder: Path, manifest: Manifest) -> None:
    try:
        old = Manifest.load(folder)
    except InputError:
        return
    if old.fingerprint == manifest.fingerprint:
        return
    changed = [new.name for was, new in zip(old.shards, manifest.shards, strict=False) if was != new]
    raise InputError(
        f"{folder / MANIFEST_NAME}: intact, but not of these shards ({', '.join(changed[:3]) or 'their number'} "
        f"changed): look with spkid verify {folder}; to describe the shards as they are now, delete that file first"
    )


def index_shard(folder: Path, shard: int) -> IndexedShard:
    """Read one tar.

    Raises:
        InputError: it can't be read, or a member is not as the writer makes it.
    """
    with _indexing(folder, shard) as indexer:
        return indexer.run()


def _read_origin(folder: Path, shard: int) -> Origin:
    """What the first block of a shard tells of the whole."""
    with _indexing(folder, shard) as indexer:
        return indexer.read_origin()


@contextmanager
def _indexing(folder: Path, shard: int) -> Iterator["_ShardIndexer"]:
    path = folder / shard_name(shard)
    try:
        with open_regular(path) as file:
            yield _ShardIndexer(TarReader(path, io.BufferedReader(file)), shard)
    except OSError as error:
        raise InputError(f"{path}: can't read this shard: {error.strerror}; {RESTORE}") from None


class _ShardIndexer:
    """Collects what the blocks of one tar tell."""

    def __init__(self, tar: TarReader, shard: int) -> None:
        self._tar = tar
        self._shard = shard
        self._origin: Origin | None = None
        self._sums: BlockMoments | None = None
        self._num_features = 0
        self._blocks: list[tuple[int, ...]] = []
        self._utterances: list[tuple[int, int, int, int]] = []
        self._total = UtteranceSum()

    def read_origin(self) -> Origin:
        """Read the first block."""
        self._read_block(0)
        assert self._origin is not None
        return self._origin

    def run(self) -> IndexedShard:
        """Read all blocks."""
        while not self._blocks or not self._tar.at_end():
            self._read_block(len(self._blocks))
        assert self._sums is not None and self._origin is not None
        moments = self._sums.moments
        info = ShardInfo(
            name=self._tar.path.name,
            bytes=self._tar.at,
            digest=self._tar.digest.hexdigest(),
            blocks=len(self._blocks),
            utterances=len(self._utterances),
            frames=moments.count,
        )
        blocks, utterances = np.array(self._blocks, BLOCK_DTYPE), np.array(self._utterances, UTTERANCE_DTYPE)
        record = ShardRecord(self._origin.job, info, blocks, utterances, moments)
        return IndexedShard(record, self._origin, self._num_features, self._total)

    def _read_block(self, block: int) -> None:
        tar, key, start = self._tar, block_key(self._shard, block), self._tar.at
        tar.extent_hash.reset()
        frames = self._array(f"{key}.frames.npy", DTYPES, 2)
        lengths = self._array(f"{key}.lengths.npy", ("int32",), 1)
        labels = self._array(f"{key}.labels.npy", ("int32",), 1)
        utterances = self._read_json(f"{key}.json", labels, first=block == 0)
        assert self._origin is not None
        if frames.dtype != self._origin.dtype:
            raise tar.error(f"{key}.frames.npy", f"{frames.dtype}, but the dataset's are {self._origin.dtype}")
        self._add_frames(key, frames, lengths)
        extent, checksum = tar.at - start, tar.extent_hash.intdigest()
        first = len(self._utterances)
        self._blocks.append((start + TAR_RECORD, extent, checksum, first, self._shard, len(frames), len(lengths)))
        self._utterances += [
            (key_hash(utterance.key), int(length), int(label), block)
            for utterance, length, label in zip(utterances, lengths, labels, strict=True)
        ]
        self._total += sum_utterances(utterances, self._origin.seed)

    def _array(self, member: str, dtypes: tuple[str, ...], dimensions: int) -> NDArray[Any]:
        payload = self._tar.member(member)
        try:
            array = parse_npy(payload, dtypes)
        except ValueError as error:
            raise self._tar.error(member, str(error)) from None
        if array.ndim != dimensions or array.size == 0:
            raise self._tar.error(member, f"has the shape {array.shape}, expected {dimensions} dimensions, none of 0")
        return array

    def _read_json(self, member: str, labels: NDArray[np.int32], *, first: bool) -> list[Utterance]:
        """The block's utterances; the first block's JSON tells the dataset."""
        text = self._tar.member(member)
        try:
            info: _BlockInfo = from_json(_BlockInfo, parse_json(text))
            if first:
                self._origin = _parse_origin(info.dataset)
            assert self._origin is not None
            names = self._origin.speakers
            if labels.min() < 0 or labels.max() >= len(names):
                raise ValueError(f"labels from {labels.min()} to {labels.max()}, but {len(names)} speakers")
            utterances = [Utterance(key, names[label]) for key, label in zip(info.keys, labels, strict=True)]
            if any(unsafe_character(key) is not None for key in info.keys):
                raise ValueError("a key has a character that no name may have")
            speakers = [utterance.speaker for utterance in utterances]
            kind = self._origin.source["kind"]
            if text != block_json(block_info(info.keys, speakers, kind, asdict(self._origin) if first else None)):
                raise ValueError("it does not name the speakers of the labels, or is not spelled as it was written")
        except ValueError as error:
            raise self._tar.error(member, f"not the JSON of this block: {error}") from None
        return utterances

    def _add_frames(self, key: str, frames: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        """Add the frames to the sums as the conversion does: utterance by utterance."""
        if self._sums is None:
            self._num_features = frames.shape[1]
            self._sums = BlockMoments(self._num_features)
        if frames.shape[1] != self._num_features:
            raise self._tar.error(f"{key}.frames.npy", f"{frames.shape[1]} features, expected {self._num_features}")
        if lengths.min() < 1 or lengths.sum(dtype=np.int64) != len(frames):
            raise self._tar.error(f"{key}.lengths.npy", f"its lengths do not add up to {len(frames)} frames")
        copy = np.empty((int(lengths.max()), self._num_features), np.float32)
        frames = frames.astype(np.float32, copy=False)  # the compiled loop knows no float16
        end = 0
        for length in lengths.tolist():
            if not self._sums.append(frames[end : end + length], copy[:length]):
                raise self._tar.error(f"{key}.frames.npy", f"a value of frames {end} to {end + length} is not finite")
            end += length
        self._sums.close_block()


@dataclass(frozen=True)
class _BlockInfo:
    """A block's JSON, as far as it is not compared; the first block of a shard has `dataset`, an `Origin`."""

    keys: list[str]
    dataset: Any = None


def _parse_origin(dataset: Any) -> Origin:
    """What a shard keeps of the whole. Raises ValueError where this is something else."""
    origin: Origin = from_json(Origin, dataset, "dataset")
    if not isinstance(origin.source.get("kind"), str):
        raise ValueError("dataset.source has no kind")
    try:
        Layout(**{field.name: dataset[field.name] for field in fields(Layout)})
    except UsageError as error:
        raise ValueError(str(error)) from None
    return origin
