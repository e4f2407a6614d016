"""The end of a job: the records of all tasks become tables and manifest, and the folder a dataset."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import TEMPORARY_MARK, write_atomic
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME, Manifest, TableInfo
from shards.moments import Moments
from shards.plan import Job
from shards.record import RECORDS_NAME, ShardRecord, record_path

JOB_NAME = "job.json"
SHOWN_GAPS = 5


def merge(out: Path) -> Manifest:
    """Publish the dataset of a job whose tasks are all done; one that is published already stays as it is.

    Raises:
        InputError: `out` holds no job, a task is not done, a record is not of this job, or the disk is full.
    """
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.load(out)
        remove_job_files(out)
        return manifest
    job = load_job(out)
    if job is None:
        raise InputError(f"{out}: holds no conversion job; give the --out folder of `spkid shard --task`")
    manifest, tables = assemble(_all_records(job, out), job.describe(), job.num_features)
    publish(manifest, tables, out)
    remove_job_files(out)
    return manifest


def load_job(out: Path) -> Job | None:
    """The unfinished job of the folder `out`; None where there is none. Raises InputError where its file is damaged."""
    path = out / JOB_NAME
    try:
        return Job.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path}: damaged ({error}); delete the folder and shard again") from None


def _all_records(job: Job, out: Path) -> list[ShardRecord]:
    expected = {record_path(out, shard) for shard in range(job.num_shards)}
    present = set((out / RECORDS_NAME).glob("*.npz"))
    missing = sorted(path.stem for path in expected - present)
    if missing:
        shown = ", ".join(missing[:SHOWN_GAPS]) + (", ..." if len(missing) > SHOWN_GAPS else "")
        raise InputError(
            f"{out}: {len(missing)} of {job.num_shards} shards are not done: {shown}; run their tasks, then merge again"
        )
    for path in sorted(present - expected):
        raise InputError(f"{path}: a record of a shard that this job of {job.num_shards} shards lacks; delete it")
    return [ShardRecord.load(record_path(out, shard), job.identity) for shard in range(job.num_shards)]


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


def remove_job_files(out: Path) -> None:
    """Remove what only an unfinished job needs."""
    shutil.rmtree(out / RECORDS_NAME, ignore_errors=True)
    (out / JOB_NAME).unlink(missing_ok=True)
    for leftover in out.glob(f"*{TEMPORARY_MARK}*"):
        leftover.unlink(missing_ok=True)
