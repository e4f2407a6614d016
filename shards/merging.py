"""The end of a job: the records of all tasks become tables and manifest, and the folder a dataset.

One pass over the records, a few of them in memory at a time: of 10^5 shards the manifest's part, 50 MB, stays.
"""

import json
from collections.abc import Container, Iterable, Iterator
from contextlib import closing

from shards.assembly import assembling
from shards.errors import InputError, UsageError
from shards.folder import Folder
from shards.layout import MANIFEST_NAME, Manifest, shard_name
from shards.parallel import in_order
from shards.plan import Job
from shards.record import RECORDS_NAME, ShardRecord, record_name

JOB_NAME = "job.json"
SHOWN_GAPS = 5
READERS = 8  # records read at a time: a store takes its time for each


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
        with assembling(out) as assembly:
            for record in _all_records(job, out):
                assembly.add(record)
            manifest = assembly.finish(job.describe())
        out.write(MANIFEST_NAME, manifest.to_bytes())
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


def _all_records(job: Job, out: Folder) -> Iterator[ShardRecord]:
    """The records of all shards, in order, checked."""
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
    found = 0
    names = [record_name(shard) for shard in range(job.num_shards)]
    with closing(in_order(out.read, names, READERS)) as contents:
        for name, data in zip(names, contents, strict=True):
            record = ShardRecord.parse(data, out.where(name), job.identity)
            num_features = len(record.moments.mean)
            if num_features != job.num_features:
                raise InputError(
                    f"{out.where(name)}: {num_features} features per frame, but the job's have {job.num_features}; delete it "
                    "and run its task again on the feature files of the others"
                )
            size = sizes.get(record.info.name)
            if size != record.info.bytes:
                raise InputError(
                    f"{out.where(record.info.name)}: {size} bytes, but {record.info.bytes} were written; delete "
                    f"{out.where(name)}, run its task again, then merge"
                )
            found += record.info.utterances
            yield record
    if found != job.num_utterances:
        raise InputError(
            f"{out}: its shards have {found} utterances together, but the job has {job.num_utterances}; delete the "
            "folder and shard again"
        )


def missing_shards(shards: Iterable[int], names: Container[str]) -> list[int]:
    """Those of `shards` that are not done: without a tar or without a record."""
    return [shard for shard in shards if record_name(shard) not in names or shard_name(shard) not in names]


def remove_job_files(out: Folder) -> None:
    """Remove what only an unfinished job needs."""
    for name in out.sizes():
        if name == JOB_NAME or name.startswith(RECORDS_NAME):
            out.remove(name)
    out.remove_unfinished()
