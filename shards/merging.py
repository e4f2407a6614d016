"""The end of a job: the records of all tasks become tables and manifest, and the folder a dataset."""

import io
import json
from collections.abc import Container, Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.folder import Folder
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME, Manifest, TableInfo, shard_name
from shards.moments import Moments
from shards.plan import Job
from shards.record import RECORDS_NAME, ShardRecord, record_name

JOB_NAME = "job.json"
SHOWN_GAPS = 5


def merge(out: Folder) -> Manifest:
    """Publish the dataset of a job whose tasks are all done; one that is published already stays as it is.

    Raises:
        InputError: `out` holds no job, a task is not done, a record is not of this job, or the disk is full.
    """
    manifest = load_manifest(out)
    if manifest is None:
        job = load_job(out)
        if job is None:
            raise InputError(f"{out}: holds no conversion job; give the --out folder of `spkid shard --task`")
        manifest, tables = assemble(_all_records(job, out), job.describe(), job.num_features)
        publish(manifest, tables, out)
    remove_job_files(out)
    return manifest


def load_manifest(out: Folder) -> Manifest | None:
    """The manifest of a finished job; None where there is none. Raises InputError where it is damaged."""
    try:
        return Manifest.parse(out.read(MANIFEST_NAME), out.where(MANIFEST_NAME))
    except FileNotFoundError:
        return None


def load_job(out: Folder) -> Job | None:
    """The unfinished job of the folder `out`; None where there is none. Raises InputError where its file is damaged."""
    try:
        return Job.from_json(json.loads(out.read(JOB_NAME)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{out.where(JOB_NAME)}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise InputError(f"{out.where(JOB_NAME)}: damaged ({error}); delete the folder and shard again") from None


def _all_records(job: Job, out: Folder) -> list[ShardRecord]:
    expected = {record_name(shard) for shard in range(job.num_shards)}
    sizes = out.sizes()
    missing = missing_shards(range(job.num_shards), sizes)
    if missing:
        shown = ", ".join(shard_name(shard) for shard in missing[:SHOWN_GAPS])
        raise InputError(
            f"{out}: {len(missing)} of {job.num_shards} shards are not done: {shown}"
            f"{', ...' if len(missing) > SHOWN_GAPS else ''}; run their tasks, then merge again"
        )
    for name in sorted(name for name in sizes if name.startswith(RECORDS_NAME) and name not in expected):
        raise InputError(
            f"{out.where(name)}: a record of a shard that this job of {job.num_shards} shards lacks; delete it"
        )
    records = [ShardRecord.load(out, shard, job.identity) for shard in range(job.num_shards)]
    for shard, record in enumerate(records):
        num_features = len(record.moments.mean)
        if num_features != job.num_features:
            raise InputError(
                f"{out.where(record_name(shard))}: {num_features} features per frame, but the job's have "
                f"{job.num_features}; delete it and run its task again on the feature files of the others"
            )
        if sizes[record.info.name] != record.info.bytes:
            raise InputError(
                f"{out.where(record.info.name)}: {sizes[record.info.name]} bytes, but {record.info.bytes} were written; "
                f"delete {out.where(record_name(shard))}, run its task again, then merge"
            )
    found = sum(record.info.utterances for record in records)
    if found != job.num_utterances:
        raise InputError(
            f"{out}: its shards have {found} utterances together, but the job has {job.num_utterances}; delete the "
            "folder and shard again"
        )
    return records


def missing_shards(shards: Iterable[int], names: Container[str]) -> list[int]:
    """Those of `shards` that are not done: without a tar or without a record."""
    return [shard for shard in shards if record_name(shard) not in names or shard_name(shard) not in names]


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


def publish(manifest: Manifest, tables: dict[str, bytes], out: Folder) -> None:
    """Write the tables, then the manifest. Raises InputError where they can't be written."""
    for name, data in tables.items():
        out.write(name, data)
    out.write(MANIFEST_NAME, manifest.to_bytes())


def _table_bytes(table: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()


def remove_job_files(out: Folder) -> None:
    """Remove what only an unfinished job needs."""
    for name in out.sizes():
        if name == JOB_NAME or name.startswith(RECORDS_NAME):
            out.remove(name)
    out.remove_unfinished()
