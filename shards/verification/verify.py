"""Verify a dataset: compare every byte of it with the manifest, the tables and the checksums.

The manifest comes first, by its own fingerprint and by its spelling; it has the digests of the tables and the shards. The
tables are trusted only when their digests are right: otherwise shards are compared by their digests alone, so that one
damaged table does not read as damage everywhere. Shards are read in parallel by threads: reads and hashes release the
interpreter's lock.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import open_regular
from shards.layout import BLOCK_DTYPE, MANIFEST_NAME, UTTERANCE_DTYPE
from shards.manifest import Manifest
from shards.parallel import in_order
from shards.tables import map_table
from shards.verification.expected import ShardRows, wrong_rows
from shards.verification.ongoing import UnfinishedJob, find_unfinished
from shards.verification.shardcheck import CHUNK_BYTES, Defect, check_shard

Done = Callable[[Sequence[Defect]], None]
"""Called with the defects of each file, when it was checked."""

REBUILD = "restore it from a copy, or build it again from the shards: spkid index"


@dataclass(frozen=True)
class Report:
    """What was verified: the manifest, None where it can't be used, and all defects.

    `remarks` are lines on what lies beside the dataset and is no defect of it: an append that is not finished.
    """

    manifest: Manifest | None
    defects: list[Defect]
    remarks: tuple[str, ...] = ()


def verify_dataset(
    folder: Path, *, workers: int = 1, quick: bool = False, done: Done = lambda _defects: None
) -> Report:
    """Compare the dataset in `folder` with what was written, and return all defects.

    Any flipped bit and any missing or added byte of manifest, tables and shards is a defect, and so is a tar that neither the
    manifest nor an unfinished append accounts for. Without a manifest that can be read nothing else can be told.

    Args:
        folder: the dataset's.
        workers: threads, each at one shard.
        quick: compare sizes, the tables' headers, and of each shard the first block's headers and small members and
            the end; what else is in the files is not read.
        done: called for the manifest, each table, and each tar, in this order.

    Raises:
        InputError: there is no such folder, or the job that makes the dataset is not finished.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give one that `spkid shard` has finished")
    defects: list[Defect] = []

    def note(found: Sequence[Defect]) -> None:
        defects.extend(found)
        done(found)

    manifest, found = _check_manifest(folder)
    unfinished, remarks = _look_for_unfinished(folder, manifest)
    note(found)
    if manifest is None:
        return Report(None, defects, remarks)
    blocks = _check_table(folder, manifest, manifest.blocks_name, quick, note)
    utterances = _check_table(folder, manifest, manifest.utterances_name, quick, note)
    tables = None if blocks is None or utterances is None else _Tables(manifest, blocks, utterances)
    check = partial(_check_shard, folder, manifest, tables, quick)
    with closing(in_order(check, range(len(manifest.shards)), workers)) as results:
        for found in results:
            note(found)
    for name in _unlisted(folder, manifest, unfinished):
        what = "is not in the manifest, nor of an unfinished append, but readers of all *.tar take it; move it away"
        note([Defect(file=name, what=what)])
    return Report(manifest, defects, remarks)


def _look_for_unfinished(folder: Path, manifest: Manifest | None) -> tuple[UnfinishedJob | None, tuple[str, ...]]:
    """The unfinished job in the folder, and what to say of it. Raises InputError where it is all that there is."""
    try:
        unfinished = find_unfinished(folder, manifest)
    except InputError as error:
        return None, (f"{error}; readers of the dataset don't need it",)
    if unfinished is None:
        return None, ()
    if manifest is None and not unfinished.job.part and not (folder / MANIFEST_NAME).exists():
        raise InputError(f"{folder}: no dataset yet, but {unfinished}")
    return unfinished, (f"{folder}: beside the dataset lies {unfinished}; readers see the dataset as it was",)


class _Tables:
    """The two mapped tables, cut into the shards' rows."""

    def __init__(self, manifest: Manifest, blocks: NDArray[Any], utterances: NDArray[Any]) -> None:
        self._blocks, self._utterances = blocks, utterances
        self._first_block = np.cumsum([0, *(info.blocks for info in manifest.shards)])
        self._first_utterance = np.cumsum([0, *(info.utterances for info in manifest.shards)])

    def rows(self, shard: int) -> ShardRows:
        """The rows of one shard."""
        block, next_block = (int(row) for row in self._first_block[shard : shard + 2])
        utterance, next_utterance = (int(row) for row in self._first_utterance[shard : shard + 2])
        return ShardRows(
            blocks=self._blocks[block:next_block],
            utterances=self._utterances[utterance:next_utterance],
            first_block=block,
            first_utterance=utterance,
        )


def _check_manifest(folder: Path) -> tuple[Manifest | None, list[Defect]]:
    """The manifest, and whether its bytes are those of its values: spaces and spelling too."""
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.load(folder)
        written = path.read_bytes() == manifest.to_bytes()
    except InputError as error:
        what = str(error).removeprefix(f"{path}: ")
        return None, [Defect(file=MANIFEST_NAME, what=f"{what}; nothing else can be verified without it")]
    except OSError as error:
        return None, [Defect(file=MANIFEST_NAME, what=f"can't be read: {error.strerror}; {REBUILD} {folder}")]
    if written:
        return manifest, []
    what = f"its values are right, but they are not spelled as they were written; {REBUILD} {folder}"
    return manifest, [Defect(file=MANIFEST_NAME, what=what)]


def _check_table(folder: Path, manifest: Manifest, name: str, quick: bool, note: Done) -> NDArray[Any] | None:
    """Map a table; None where it is not the one that was written."""
    info = manifest.tables[name]
    dtype, rows = {
        manifest.blocks_name: (BLOCK_DTYPE, manifest.num_blocks),
        manifest.utterances_name: (UTTERANCE_DTYPE, manifest.num_utterances),
    }[name]
    try:
        table = map_table(folder / name, dtype, rows, info.bytes)
        digest = info.digest if quick else _file_digest(folder / name)
        if digest != info.digest:
            raise ValueError(f"digest {digest}, expected {info.digest}")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        note([Defect(file=name, what=f"{what}; {REBUILD} {folder}")])
        return None
    note([])
    return table


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_shard(folder: Path, manifest: Manifest, tables: _Tables | None, quick: bool, shard: int) -> list[Defect]:
    if tables is None:
        return check_shard(folder, manifest, shard, None, quick=quick)
    rows = tables.rows(shard)
    wrong = wrong_rows(rows, manifest, shard)
    if wrong is None:
        return check_shard(folder, manifest, shard, rows, quick=quick)
    name, what = wrong
    defect = Defect(file=name, what=f"the rows of {manifest.shards[shard].name} {what}; {REBUILD} {folder}")
    return [defect, *check_shard(folder, manifest, shard, None, quick=quick)]


def _unlisted(folder: Path, manifest: Manifest, unfinished: UnfinishedJob | None) -> list[str]:
    """The tars that no reader of the manifest will read, but one of all ``*.tar`` would, and that no job is making."""
    known = {info.name for info in manifest.shards} | (set() if unfinished is None else unfinished.shard_names)
    return sorted({path.name for path in folder.glob("*.tar")} - known)
