"""Load the utterances to score: from files of a list, or from a sharded dataset.

Either deals its utterances to W ranks and yields them in groups, read ahead by threads. An utterance is known by its
position in the results, which are in the order of the list, or of the dataset where there is no list.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.conversion.frames import check_finite, check_shape
from shards.corpus import Utterance
from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.guesses import describe_difference
from shards.layout import key_hash
from shards.names import classes_of, one_form
from shards.parallel import in_order
from shards.sources import Source
from shards.stores.store import StoreOptions
from spkid_dist.trained import TrainedModel

# True classes of an utterance whose speaker is none of the model's, and of one whose speaker nobody names.
UNKNOWN, UNNAMED = -1, -2
FILES_A_TASK = 8  # a thread's task costs as much as reading a small file


@dataclass(frozen=True)
class Group:
    """U utterances end to end: U keys, frames (T, D) float32, lengths (U,) int32, positions and true classes (U,) int64."""

    keys: list[str]
    frames: NDArray[np.float32]
    lengths: NDArray[np.int32]
    positions: NDArray[np.int64]
    true: NDArray[np.int64]


@dataclass(frozen=True)
class Unknown:
    """How many utterances have no true speaker among the model's, and the `key` and the speaker's `name` of the first.

    The key is "" where it is not known before blocks are read, the name where the utterance has no speaker.
    """

    count: int = 0
    key: str = ""
    name: str = ""


class Utterances(Protocol):
    """What can be scored: `count` utterances, of which every rank reads its share; of some the speaker is `unknown`.

    `fingerprint` is that of the dataset which they are all of; None where they are not of one.
    """

    count: int
    unknown: Unknown
    fingerprint: str | None

    def share_size(self, rank: int, world_size: int) -> int:
        """How many utterances are this rank's."""

    def key_hashes(self) -> NDArray[np.uint64]:
        """The hashes of all utterances' keys, as `shards.layout.key_hash`, (count,)."""

    def groups(self, rank: int, world_size: int, workers: int) -> Generator[Group, None, None]:
        """This rank's utterances. Raises InputError where one can't be read."""


class MissingUtterancesError(InputError):
    """A dataset lacks utterances of a list: those at `indices`."""

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = indices


class ListedFiles:
    """The files of a list, read from a source; every W-th of them is a rank's."""

    def __init__(self, listed: Sequence[Utterance], source: Source, model: TrainedModel) -> None:
        self._listed = listed
        self._source = source
        self._num_features = model.num_features
        self._classes = classes_of(model.speakers)
        self.count = len(listed)
        self.fingerprint: str | None = None
        others = [utterance for utterance in listed if utterance.speaker not in self._classes]
        self.unknown = Unknown(len(others), others[0].key, others[0].speaker) if others else Unknown()

    def share_size(self, rank: int, world_size: int) -> int:
        """How many utterances are this rank's."""
        return len(range(rank, self.count, world_size))

    def key_hashes(self) -> NDArray[np.uint64]:
        """The hashes of all utterances' keys, (count,)."""
        return np.array([key_hash(utterance.key) for utterance in self._listed], np.uint64)

    def groups(self, rank: int, world_size: int, workers: int) -> Generator[Group, None, None]:
        """This rank's utterances, some files a group. Raises InputError where one can't be read or is no such features."""
        share = range(rank, self.count, world_size)
        tasks = (share[first : first + FILES_A_TASK] for first in range(0, len(share), FILES_A_TASK))
        yield from in_order(self._read, tasks, workers)

    def _read(self, positions: range) -> Group:
        utterances = [self._listed[position] for position in positions]
        loaded = [self._load(utterance) for utterance in utterances]
        return Group(
            [utterance.key for utterance in utterances],
            np.concatenate(loaded),
            np.array([len(frames) for frames in loaded], np.int32),
            np.array(positions, np.int64),
            np.array([self._class_of(utterance) for utterance in utterances], np.int64),
        )

    def _class_of(self, utterance: Utterance) -> int:
        return self._classes.get(utterance.speaker, UNKNOWN if utterance.speaker else UNNAMED)

    def _load(self, utterance: Utterance) -> NDArray[np.float32]:
        frames = self._source.load(utterance)
        check_shape(frames, self._num_features, "the model was trained on", self._source.where(utterance))
        check_finite(frames, self._source.where(utterance))
        return frames


class ShardedUtterances:
    """A sharded dataset, or those of its utterances that a list names, in the list's order.

    The utterances' keys stand in the blocks; the table has their hashes, which tell the blocks that a list needs. Every
    W-th of these blocks is a rank's.

    Raises:
        InputError: the dataset is missing or damaged, not of this model's features, or lacks an utterance of the list.
        UsageError: the kind of URL is not known, its library is not installed, or it needs a cache.
    """

    def __init__(
        self,
        folder: str | Path,
        model: TrainedModel,
        listed: Sequence[Utterance] | None,
        list_path: Path | None,
        store: StoreOptions | None = None,
    ) -> None:
        self.data = ShardDataset(folder, store)
        self._check_features(model)
        classes = classes_of(model.speakers)
        names = self.data.manifest.speakers
        self._class_of_label = np.array([classes.get(one_form(name), UNKNOWN) for name in names], np.int64)
        self._position: dict[str, int] | None = None
        self.fingerprint = self.data.fingerprint if listed is None else None
        if listed is None:
            self.count = self.data.manifest.num_utterances
            labels = self.data.utterance_column("speaker")
            self._hashes = np.array(self.data.utterances["key_hash"], np.uint64)
            self._blocks: NDArray[np.int64] = np.arange(len(self.data.blocks))
            self._per_block = np.asarray(self.data.blocks["utterances"], np.int64)
        else:
            self.count = len(listed)
            self._position = {utterance.key: position for position, utterance in enumerate(listed)}
            rows = _find_rows(self.data, listed, list_path)
            self._blocks, self._per_block = np.unique(self.data.blocks_of(rows), return_counts=True)
            labels = self.data.utterance_column("speaker")[rows]
            self._hashes = np.array(self.data.utterances["key_hash"][rows], np.uint64)
        self.unknown = self._find_unknown(labels)

    def share_size(self, rank: int, world_size: int) -> int:
        """How many utterances are this rank's."""
        return int(self._per_block[rank::world_size].sum())

    def key_hashes(self) -> NDArray[np.uint64]:
        """The hashes of all utterances' keys, (count,)."""
        return self._hashes

    def groups(self, rank: int, world_size: int, workers: int) -> Generator[Group, None, None]:
        """This rank's utterances, a block a group. Raises InputError where a block is damaged, or the store fails."""
        workers = max(workers, self.data.reads_ahead)
        yield from in_order(self._read, self._blocks[rank::world_size].tolist(), workers)

    def _read(self, block: int) -> Group:
        arrays = self.data.read_block(block)
        keys, lengths, labels = self.data.keys(block, arrays), arrays.lengths, arrays.labels
        if self._position is None:
            first = int(self.data.block_rows(range(block, block + 1))["first_utterance"][0])
            positions = np.arange(first, first + len(lengths))
            frames = arrays.frames.astype(np.float32, copy=False)
            return Group(keys, frames, lengths, positions, self._class_of_label[labels])
        positions = np.array([self._position.get(key, -1) for key in keys], np.int64)
        wanted = positions >= 0
        frames = arrays.frames[np.repeat(wanted, lengths)].astype(np.float32, copy=False)
        keys = [key for key, is_wanted in zip(keys, wanted, strict=True) if is_wanted]
        return Group(keys, frames, lengths[wanted], positions[wanted], self._class_of_label[labels[wanted]])

    def _find_unknown(self, labels: NDArray[np.int32]) -> Unknown:
        """What is not known of utterances with these labels."""
        names = self.data.manifest.speakers
        counts = np.bincount(labels, minlength=len(names))
        others = np.flatnonzero((self._class_of_label == UNKNOWN) & (counts > 0))
        return Unknown(int(counts[others].sum()), name=names[others[0]]) if len(others) else Unknown()

    def _check_features(self, model: TrainedModel) -> None:
        manifest = self.data.manifest
        source = model.options.get("source")
        trained_features = source.get("features") if isinstance(source, dict) else None
        for what, found, expected in (
            ("features per frame", manifest.num_features, model.num_features),
            ("options of audio features", manifest.source.get("features"), trained_features),
        ):
            if found != expected:
                here, there = describe_difference(found, expected)
                raise InputError(
                    f"{self.data.folder}: its {what} are {here}, but the model was trained on {there}; shard the "
                    "utterances with the features of the training"
                )


def _find_rows(data: ShardDataset, listed: Sequence[Utterance], list_path: Path | None) -> NDArray[np.int64]:
    """The listed utterances' rows in the dataset's table, found by their keys' hashes."""
    hashes = np.asarray(data.utterances["key_hash"])
    order = np.argsort(hashes)
    asked = np.array([key_hash(utterance.key) for utterance in listed], np.uint64)
    places = np.searchsorted(hashes, asked, sorter=order).clip(max=len(hashes) - 1)
    rows: NDArray[np.int64] = order[places]
    missing = np.flatnonzero(hashes[rows] != asked)
    if len(missing):
        raise MissingUtterancesError(
            f"{list_path}: utterance {listed[missing[0]].key!r} is not in the dataset {data.folder} ({len(missing)} of "
            f"{len(listed)} are not); shard it, or remove it from the list",
            missing.tolist(),
        )
    return rows
