"""Joins the records of all shards, in order and one at a time, to the tables' files and the manifest.

A table's file begins with the number of its rows, which is known at its end: the header is written over then, and the file
read once more for its digest. Memory is that of a record and of the manifest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.files import write_all
from shards.folder import Folder
from shards.layout import BLOCK_DTYPE, BLOCKS_NAME, UTTERANCE_DTYPE, UTTERANCES_NAME, Manifest, ShardInfo, TableInfo
from shards.members import table_header
from shards.moments import Moments
from shards.record import ShardRecord

CHUNK_BYTES = 2**20


class TableWriter:
    """Writes a table, row by row, to an empty file that can be written and read."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any]) -> None:
        self.rows = 0
        self._file, self._dtype = file, dtype
        write_all(file, table_header(dtype, (0,)))

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows, (n,) of the table's dtype."""
        write_all(self._file, np.ascontiguousarray(rows, self._dtype).view(np.uint8))
        self.rows += len(rows)

    def finish(self) -> TableInfo:
        """Write the number of rows, and describe the file."""
        header = table_header(self._dtype, (self.rows,))
        assert len(header) == len(table_header(self._dtype, (0,))), "numpy pads the header for any number of rows"
        self._file.seek(0)
        write_all(self._file, header)
        self._file.seek(0)
        digest, num_bytes = xxhash.xxh3_128(), 0
        while chunk := self._file.read(CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
        return TableInfo(bytes=num_bytes, digest=digest.hexdigest())


class Assembly:
    """Takes the shards' records in order; `assembling` makes one. `shards` are those that were added."""

    def __init__(self, blocks: TableWriter, utterances: TableWriter) -> None:
        self.shards: list[ShardInfo] = []
        self._blocks, self._utterances = blocks, utterances
        self._moments = Moments.empty(0)

    def add(self, record: ShardRecord) -> None:
        """Add the next shard; the record's rows are renumbered in place."""
        record.blocks["shard"] = len(self.shards)
        record.blocks["first_utterance"] += self._utterances.rows
        record.utterances["block"] += self._blocks.rows
        self._blocks.append(record.blocks)
        self._utterances.append(record.utterances)
        self._moments = self._moments.join(record.moments) if self.shards else record.moments
        self.shards.append(record.info)

    def finish(self, dataset: dict[str, Any]) -> Manifest:
        """End the tables and return the manifest; `dataset` is what each shard keeps of the whole (`Manifest.dataset`)."""
        return Manifest(
            **dataset,
            num_features=len(self._moments.mean),
            num_utterances=self._utterances.rows,
            num_frames=self._moments.count,
            mean=self._moments.mean.tolist(),
            std=self._moments.std.tolist(),
            tables={BLOCKS_NAME: self._blocks.finish(), UTTERANCES_NAME: self._utterances.finish()},
            shards=self.shards,
        )


@contextmanager
def assembling(out: Folder) -> Iterator[Assembly]:
    """An `Assembly` whose tables appear in `out` when the block ends without an error; the manifest is the caller's."""
    with out.create(BLOCKS_NAME) as blocks, out.create(UTTERANCES_NAME) as utterances:
        yield Assembly(TableWriter(blocks, BLOCK_DTYPE), TableWriter(utterances, UTTERANCE_DTYPE))
