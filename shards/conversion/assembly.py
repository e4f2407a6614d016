"""Join the records of all shards, one at a time and in order, into the tables and the manifest.

A table's file begins with the number of its rows, which is known at its end: the header is written over then, and the file
read once more for its digest. Memory is that of a record and of the manifest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.conversion.folder import Folder
from shards.conversion.record import ShardRecord
from shards.dataset import ShardDataset
from shards.layout import BLOCK_DTYPE, BLOCKS_NAME, UTTERANCE_DTYPE, UTTERANCES_NAME, ShardInfo, table_name
from shards.manifest import JobInfo, Manifest, Origin, TableInfo
from shards.members import table_header
from shards.moments import Moments

CHUNK_BYTES = 2**20
COPIED_ROWS = 2**16  # at a time


class TableWriter:
    """Writes a table, row by row, to an empty file that can be written and read."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any]) -> None:
        self.rows = 0
        self._file, self._dtype = file, dtype
        file.write(table_header(dtype, (0,)))

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows, (n,) of the table's dtype."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).view(np.uint8).data)
        self.rows += len(rows)

    def finish(self) -> TableInfo:
        """Write the number of rows, and describe the file."""
        header = table_header(self._dtype, (self.rows,))
        assert len(header) == len(table_header(self._dtype, (0,))), "numpy pads the header for any number of rows"
        self._file.seek(0)
        self._file.write(header)
        self._file.seek(0)
        digest, num_bytes = xxhash.xxh3_128(), 0
        while chunk := self._file.read(CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
        return TableInfo(bytes=num_bytes, digest=digest.hexdigest())


class Assembly:
    """Takes the shards' records in order; `assembling` makes one.

    The moments of what was there before a job began are rounded as a manifest keeps them: so they are the same whether
    the job was appended to it, or all jobs are indexed at once.
    """

    def __init__(self, blocks: TableWriter, utterances: TableWriter) -> None:
        self._blocks, self._utterances = blocks, utterances
        self._origin: Origin | None = None  # of the last shard
        self._jobs: list[JobInfo] = []  # without it
        self._shards: list[ShardInfo] = []
        self._moments = Moments.empty(0)

    def begin_with(self, dataset: ShardDataset) -> None:
        """Take over a dataset, to append to it."""
        manifest = dataset.manifest
        for table, writer in ((dataset.blocks, self._blocks), (dataset.utterances, self._utterances)):
            for at in range(0, len(table), COPIED_ROWS):
                writer.append(table[at : at + COPIED_ROWS])
        self._jobs, self._shards = list(manifest.jobs), list(manifest.shards)
        self._moments = Moments.from_std(manifest.num_frames, np.array(manifest.mean), np.array(manifest.std))

    def add(self, record: ShardRecord, origin: Origin) -> None:
        """Add the next shard; the record's rows are renumbered in place."""
        if self._origin is not None and origin.job != self._origin.job:
            self._close_job()
            self._moments = Moments.from_std(self._moments.count, self._moments.mean, self._moments.std)
        self._origin = origin
        record.blocks["shard"] = len(self._shards)
        record.blocks["first_utterance"] += self._utterances.rows
        record.utterances["block"] += self._blocks.rows
        self._blocks.append(record.blocks)
        self._utterances.append(record.utterances)
        self._moments = self._moments.join(record.moments) if self._shards else record.moments
        self._shards.append(record.info)

    def _close_job(self) -> None:
        assert self._origin is not None
        options = {
            name: value for name, value in asdict(self._origin).items() if name not in ("part", "speakers", "dtype")
        }
        shards = len(self._shards) - sum(job.shards for job in self._jobs)
        self._jobs.append(JobInfo(num_speakers=len(self._origin.speakers), shards=shards, **options))

    def finish(self) -> Manifest:
        """End the tables and return the manifest."""
        self._close_job()
        assert self._origin is not None
        names = [table_name(name, len(self._jobs)) for name in (BLOCKS_NAME, UTTERANCES_NAME)]
        return Manifest(
            num_features=len(self._moments.mean),
            dtype=self._origin.dtype,
            speakers=self._origin.speakers,
            jobs=self._jobs,
            num_utterances=self._utterances.rows,
            num_frames=self._moments.count,
            mean=self._moments.mean.tolist(),
            std=self._moments.std.tolist(),
            tables=dict(zip(names, (self._blocks.finish(), self._utterances.finish()), strict=True)),
            shards=self._shards,
        )


@contextmanager
def assembling(out: Folder, num_jobs: int) -> Iterator[Assembly]:
    """An `Assembly` of so many jobs, whose tables appear in `out` when the block ends without an error.

    The manifest is for the caller to write, after that.
    """
    blocks_name, utterances_name = (table_name(name, num_jobs) for name in (BLOCKS_NAME, UTTERANCES_NAME))
    with out.create(blocks_name) as blocks, out.create(utterances_name) as utterances:
        yield Assembly(TableWriter(blocks, BLOCK_DTYPE), TableWriter(utterances, UTTERANCE_DTYPE))
