"""The conversion job: carries out a plan, one shard a task, and publishes the dataset.

A task publishes its shard and then its record; the manifest is written when all records are there. A job that was cut
short continues: tasks with a record are not done again.
"""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError
from shards.files import TEMPORARY_MARK, atomic_writer, make_folder, write_atomic, write_json
from shards.layout import (
    BLOCKS_NAME,
    MANIFEST_NAME,
    UTTERANCE_DTYPE,
    UTTERANCES_NAME,
    Manifest,
    ShardInfo,
    TableInfo,
    block_info,
    key_hash,
    shard_name,
)
from shards.moments import BlockMoments, Moments
from shards.plan import Plan
from shards.sources import Source
from shards.writer import ShardWriter

JOB_NAME = "job.json"
RECORDS_NAME = "records"

Progress = Callable[[int, int], None]
"""Called with (utterances, frames) done since the last call."""


def convert(plan: Plan, source: Source, out: Path, progress: Progress = lambda _utterances, _frames: None) -> Manifest:
    """Carry out `plan` in the folder `out` and return the manifest; a finished job is not done again.

    Raises:
        InputError: a feature file is missing or damaged, `out` holds something else, or the disk is full.
    """
    finished = claim_folder(plan, out)
    if finished is not None:
        return finished
    for shard in range(plan.num_shards):
        if not _record_path(out, shard).exists():
            convert_shard(plan, source, out, shard, progress)
    return merge(plan, out)


def claim_folder(plan: Plan, out: Path) -> Manifest | None:
    """Make `out` the folder of this job, or find that it is; return the manifest of a finished one.

    Raises:
        InputError: the folder holds something else, or another job.
    """
    make_folder(out)
    job_path = out / JOB_NAME
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.load(out)
        if manifest.job != plan.job:
            raise InputError(
                f"{out}: holds a dataset of another list or other options (job {manifest.job}, this is {plan.job}); "
                "choose another --out, or delete that folder"
            )
        _remove_job_files(out)
        return manifest
    if job_path.exists():
        found = json.loads(job_path.read_text())["job"]
        if found != plan.job:
            raise InputError(
                f"{out}: holds an unfinished job of another list or other options (job {found}, this is {plan.job}); "
                "choose another --out, or delete that folder"
            )
    elif any(TEMPORARY_MARK not in path.name for path in out.iterdir()):
        raise InputError(f"{out}: this folder holds something else; give --out a new or empty folder")
    else:
        write_json(job_path, {"job": plan.job, "shards": plan.num_shards})
    make_folder(out / RECORDS_NAME)
    return None


def convert_shard(plan: Plan, source: Source, out: Path, shard: int, progress: Progress) -> None:
    """Carry out one task: publish the shard's tar, then its record. Raises InputError as `convert`."""
    name = shard_name(shard)
    with atomic_writer(out / name) as file:
        writer = ShardWriter(file, shard)
        builder = _BlockBuilder(plan, writer)
        for index in plan.share(shard):
            utterance = plan.utterances[index]
            progress(1, builder.add(utterance, source))
        builder.flush()
        digest = writer.finish()
    info = ShardInfo(
        name=name,
        bytes=writer.bytes_written,
        digest=digest,
        blocks=len(writer.block_records),
        utterances=len(builder.utterance_records),
        frames=builder.sums.moments.count,
    )
    utterances = np.array(builder.utterance_records, UTTERANCE_DTYPE)
    record = ShardRecord(info, writer.blocks(), utterances, builder.sums.moments)
    write_atomic(_record_path(out, shard), record.to_bytes())


class _BlockBuilder:
    """Collects utterances until they make a block, and hands it to the writer."""

    def __init__(self, plan: Plan, writer: ShardWriter) -> None:
        self.utterance_records: list[tuple[int, int, int, int]] = []
        self.sums = BlockMoments(plan.num_features)
        self._plan = plan
        self._writer = writer
        self._classes = {name: index for index, name in enumerate(plan.speakers)}
        self._buffer = np.empty((2 * plan.layout.block_frames, plan.num_features), plan.layout.dtype)
        self._num_frames = 0
        self._pending: list[Utterance] = []
        self._lengths: list[int] = []

    def add(self, utterance: Utterance, source: Source) -> int:
        """Load one utterance, append its frames, close the block if it is full; return the number of frames."""
        frames = source.load(utterance)
        where = source.where(utterance)
        self._check_shape(frames, where)
        if not self.sums.append(frames, self._room_for(len(frames))):
            raise _not_finite(frames, where)
        self._num_frames += len(frames)
        self._pending.append(utterance)
        self._lengths.append(len(frames))
        if self._num_frames >= self._plan.layout.block_frames:
            self.flush()
        return len(frames)

    def flush(self) -> None:
        """Write the block in hand, if there is one."""
        if not self._pending:
            return
        labels = np.array([self._classes[u.speaker] for u in self._pending], "<i4")
        first = len(self.utterance_records)
        block = len(self._writer.block_records)
        self._writer.write_block(
            self._buffer[: self._num_frames], np.array(self._lengths, "<i4"), labels, first, self._info(block)
        )
        self.utterance_records += [
            (key_hash(utterance.key), length, int(label), block)
            for utterance, length, label in zip(self._pending, self._lengths, labels, strict=True)
        ]
        self.sums.close_block()
        self._num_frames = 0
        self._pending.clear()
        self._lengths.clear()

    def _info(self, block: int) -> dict[str, Any]:
        keys = [utterance.key for utterance in self._pending]
        speakers = [utterance.speaker for utterance in self._pending]
        return block_info(keys, speakers, self._plan.source["kind"], self._plan.describe() if block == 0 else None)

    def _check_shape(self, frames: NDArray[np.float32], where: str) -> None:
        if len(frames) == 0:
            raise InputError(f"{where}: 0 frames; expected at least 1: remove the utterance from the list")
        if frames.shape[1] != self._plan.num_features:
            raise InputError(
                f"{where}: {frames.shape[1]} features per frame, but {self._plan.first_read} has "
                f"{self._plan.num_features}; all files of a dataset need the same number: compute them again alike"
            )

    def _room_for(self, num_frames: int) -> NDArray[Any]:
        end = self._num_frames + num_frames
        if end > len(self._buffer):
            grown = np.empty((2 * end, self._buffer.shape[1]), self._buffer.dtype)
            grown[: self._num_frames] = self._buffer[: self._num_frames]
            self._buffer = grown
        return self._buffer[self._num_frames : end]


def _not_finite(frames: NDArray[np.float32], where: str) -> InputError:
    frame, feature = (int(i) for i in np.argwhere(~np.isfinite(frames))[0])
    return InputError(
        f"{where}: frame {frame}, feature {feature} is {frames[frame, feature]}; expected finite numbers: "
        "compute the file again, or remove the utterance from the list"
    )


@dataclass(frozen=True)
class ShardRecord:
    """What a task leaves beside its shard; blocks and utterances count from 0 within the shard."""

    info: ShardInfo
    blocks: NDArray[Any]
    utterances: NDArray[Any]
    moments: Moments

    def to_bytes(self) -> bytes:
        """The record as an .npz file."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            info=np.array(json.dumps(asdict(self.info))),
            blocks=self.blocks,
            utterances=self.utterances,
            count=self.moments.count,
            mean=self.moments.mean,
            squares=self.moments.squares,
        )
        return buffer.getvalue()

    @staticmethod
    def load(path: Path) -> "ShardRecord":
        """Read a record that `to_bytes` made."""
        with np.load(path, allow_pickle=False) as arrays:
            return ShardRecord(
                ShardInfo(**json.loads(str(arrays["info"]))),
                arrays["blocks"],
                arrays["utterances"],
                Moments(int(arrays["count"]), arrays["mean"], arrays["squares"]),
            )


def merge(plan: Plan, out: Path) -> Manifest:
    """Join the records of all tasks into tables and manifest, and publish them; the manifest last.

    Raises:
        InputError: the disk is full.
    """
    records = [ShardRecord.load(_record_path(out, shard)) for shard in range(plan.num_shards)]
    manifest, tables = assemble(records, plan.describe(), plan.num_features)
    publish(manifest, tables, out)
    _remove_job_files(out)
    return manifest


def assemble(
    records: list[ShardRecord], dataset: dict[str, Any], num_features: int
) -> tuple[Manifest, dict[str, bytes]]:
    """Join the records of all shards, in order: the manifest, and the tables' files by name.

    `dataset` is what each shard keeps of the whole (`Manifest.dataset`). The records' rows are renumbered in place.
    """
    moments = Moments.empty(num_features)
    num_blocks = num_utterances = 0
    for shard, record in enumerate(records):
        record.blocks["shard"] = shard
        record.blocks["first_utterance"] += num_utterances
        record.utterances["block"] += num_blocks
        num_blocks += len(record.blocks)
        num_utterances += len(record.utterances)
        moments = moments.join(record.moments)
    tables = {
        BLOCKS_NAME: _table_bytes(np.concatenate([record.blocks for record in records])),
        UTTERANCES_NAME: _table_bytes(np.concatenate([record.utterances for record in records])),
    }
    manifest = Manifest(
        **dataset,
        num_features=num_features,
        num_utterances=num_utterances,
        num_frames=moments.count,
        mean=moments.mean.tolist(),
        std=moments.std.tolist(),
        tables={
            name: TableInfo(bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data)) for name, data in tables.items()
        },
        shards=[record.info for record in records],
    )
    return manifest, tables


def publish(manifest: Manifest, tables: dict[str, bytes], out: Path) -> None:
    """Write the tables, then the manifest. Raises InputError where they can't be written."""
    for name, data in tables.items():
        write_atomic(out / name, data)
    manifest.save(out)


def _table_bytes(table: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()


def _record_path(out: Path, shard: int) -> Path:
    return out / RECORDS_NAME / f"shard-{shard:06d}.npz"


def _remove_job_files(out: Path) -> None:
    """Remove what only an unfinished job needs."""
    shutil.rmtree(out / RECORDS_NAME, ignore_errors=True)
    (out / JOB_NAME).unlink(missing_ok=True)
    for leftover in out.glob(f"*{TEMPORARY_MARK}*"):
        leftover.unlink(missing_ok=True)
