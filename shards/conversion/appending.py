"""Decide what may be appended to a dataset: new utterances of its kind, by its speakers or by more.

New shards are numbered on from the old ones, which stay as they are. The tables are written anew, under names of their
own, and the new manifest, which names them, takes the old one's place last: until then the old dataset is whole, and who
has it open keeps reading it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance, read_speakers
from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.files import make_folder, write_json
from shards.guesses import describe_difference
from shards.layout import key_hash
from shards.names import are_alike, classes_of, one_form

TABLE_ROWS = 2**20  # of the utterance table, compared at a time


def check_options(dataset: ShardDataset, source: Mapping[str, Any], dtype: str) -> None:
    """Raise InputError where a dataset can't take frames of `source` (`Source.describe`), stored as `dtype`."""
    manifest = dataset.manifest
    if dtype != manifest.dtype:
        raise InputError(f"{dataset.folder}: holds {manifest.dtype}, not {dtype}; append with --dtype {manifest.dtype}")
    for name, flag in (("kind", "--source"), ("features", "--features.*")):
        if source.get(name) != manifest.source.get(name):
            here, there = describe_difference(source.get(name), manifest.source.get(name))
            raise InputError(f"{dataset.folder}: made with {flag} {there}, not {here}; append alike")


def extended_speakers(dataset: ShardDataset, examples: Sequence[Utterance], map_path: Path) -> list[str]:
    """The dataset's speakers and, after them, the new ones: those of the map in its order, then the list's others, sorted.

    Args:
        dataset: what is appended to.
        examples: an utterance of each of the list's speakers.
        map_path: the speaker map; it numbers the dataset's speakers as they are numbered there.

    Raises:
        InputError: the map is damaged, or numbers them otherwise.
    """
    old = dataset.manifest.speakers
    mapped = read_speakers(map_path) if map_path.exists() else []
    for index, (name, other) in enumerate(zip(old, mapped, strict=False)):
        if one_form(name) != other:
            raise InputError(
                f"{map_path}: class {index} is {other!r}, but {name!r} in {dataset.folder}; speakers keep their classes: "
                "number new ones after the old"
            )
    speakers = [*old, *mapped[len(old) :]]
    return [*speakers, *sorted({one_form(one.speaker) for one in examples} - set(classes_of(speakers)))]


def extend_map(map_path: Path, speakers: Sequence[str]) -> list[str]:
    """Make the map, or add to it those of `speakers` that it lacks, behind its own; returns these.

    Raises:
        InputError: it is damaged, can't be written, or numbers these speakers otherwise: it was changed meanwhile.
    """
    mapped = read_speakers(map_path) if map_path.exists() else []
    num_common = min(len(mapped), len(speakers))
    if not are_alike(mapped[:num_common], speakers[:num_common]):
        raise InputError(
            f"{map_path}: it was changed while utterances were appended, and numbers the dataset's speakers otherwise now; "
            "restore it, or delete it and run the same command again"
        )
    new = list(speakers[num_common:])
    if new:
        make_folder(map_path.parent)
        write_json(map_path, {one_form(name): index for index, name in enumerate(speakers)})
    return new


def check_absent(dataset: ShardDataset, utterances: Sequence[Utterance]) -> None:
    """Raise InputError where the dataset has one of `utterances`, found by the hashes in its table, then by its key.

    One pass over the table; the utterances' hashes are in memory.
    """
    hashes = np.array([key_hash(utterance.key) for utterance in utterances], np.uint64)
    order = np.argsort(hashes)
    ordered = hashes[order]
    table = dataset.utterances
    for first in range(0, len(table), TABLE_ROWS):
        stored = np.ascontiguousarray(table[first : first + TABLE_ROWS]["key_hash"])
        places = np.minimum(np.searchsorted(ordered, stored), len(ordered) - 1)
        for row in np.flatnonzero(ordered[places] == stored):
            _check_row(dataset, first + int(row), utterances, order[ordered == stored[row]])


def _check_row(dataset: ShardDataset, row: int, utterances: Sequence[Utterance], candidates: NDArray[np.int64]) -> None:
    """Compare the key of a row with those of equal hash."""
    stored = _stored_key(dataset, row)
    if stored in {utterances[index].key for index in candidates}:
        block = _block_of(dataset, row)
        shard = dataset.manifest.shards[int(dataset.block_rows(range(block, block + 1))["shard"][0])]
        raise InputError(
            f"{dataset.folder}: has utterance {stored!r} already, in {shard.name}; remove it from the list that is appended"
        )


def _stored_key(dataset: ShardDataset, row: int) -> str:
    """The key of a row of the utterance table, from its block's JSON."""
    block = _block_of(dataset, row)
    first = int(dataset.block_rows(range(block, block + 1))["first_utterance"][0])
    keys = dataset.keys(block, dataset.read_block(block))
    if not 0 <= row - first < len(keys):  # of a table so large that it is not checked as a whole
        raise InputError(
            f"{dataset.folder}: its tables are damaged: row {row} is in none of its blocks; shard it again"
        )
    return keys[row - first]


def _block_of(dataset: ShardDataset, row: int) -> int:
    return int(dataset.blocks_of(np.array([row]))[0])
