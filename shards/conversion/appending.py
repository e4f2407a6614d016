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

from shards.corpus import Utterance, check_speakers, read_speakers
from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.guesses import describe_difference
from shards.layout import key_hash

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


def extended_speakers(
    dataset: ShardDataset, list_path: Path, examples: Sequence[Utterance], map_path: Path
) -> list[str]:
    """The dataset's speakers and, after them, the new ones: in the order of the map, or sorted where there is none.

    Args:
        dataset: what is appended to.
        list_path: where the utterances are listed, for messages.
        examples: an utterance of each of the list's speakers.
        map_path: the speaker map; it numbers the dataset's speakers as they are numbered there.

    Raises:
        InputError: the map is damaged, numbers them otherwise, or lacks a speaker of the list.
    """
    old = dataset.manifest.speakers
    if not map_path.exists():
        return [*old, *sorted({utterance.speaker for utterance in examples} - set(old))]
    mapped = read_speakers(map_path)
    for index, (name, other) in enumerate(zip(old, mapped, strict=False)):
        if name != other:
            raise InputError(
                f"{map_path}: class {index} is {other!r}, but {name!r} in {dataset.folder}; speakers keep their classes: "
                "number new ones after the old"
            )
    speakers = max(old, mapped, key=len)
    check_speakers(list_path, examples, map_path, speakers)
    return speakers


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
