"""End a job: the records of all tasks become the tables and the manifest of a dataset, or of a larger one.

One pass over the records, a few of them in memory at a time: of 10^5 shards the manifest's part, 50 MB, stays.
"""

import json
import re
from collections.abc import Container, Iterable, Iterator
from contextlib import closing

from shards.conversion.assembly import assembling
from shards.conversion.folder import Folder
from shards.conversion.plan import Job
from shards.conversion.record import RECORDS_NAME, ShardRecord, record_name
from shards.dataset import ShardDataset
from shards.errors import InputError, UsageError
from shards.layout import JOB_NAME, MANIFEST_NAME, shard_name
from shards.manifest import Manifest
from shards.parallel import in_order

TABLE_NAME = re.compile(r"(blocks|utterances)(-\d{4,})?\.npy")
SHOWN_GAPS = 5
READERS = 8  # records read at a time: a store takes its time for each


def merge(out: Folder) -> Manifest:
    """Publish the dataset of a job whose tasks are all done; one that is published already stays as it is.

    Raises:
        InputError: `out` holds no job, a task is not done, a record is not of this job, it appends to another dataset, or
            the disk is full.
    """
    manifest, job = load_manifest(out), load_job(out)
    if job is not None and not (manifest is not None and job.is_in(manifest)):
        check_base(job, manifest, out)
        with assembling(out, job.part + 1) as assembly:
            if job.part:
                assembly.begin_with(ShardDataset(str(out)))
            for record in _all_records(job, out):
                assembly.add(record, job.origin)
            manifest = assembly.finish()
        out.write(MANIFEST_NAME, manifest.to_bytes())
    if manifest is None:
        raise InputError(f"{out}: holds no conversion job; give the --out folder of `spkid shard --task`")
    remove_job_files(out, manifest)
    return manifest


def check_base(job: Job, manifest: Manifest | None, out: Folder) -> None:
    """Raise InputError where the job is not one that goes with the dataset in `out`, or with none."""
    if job.base != ("" if manifest is None else manifest.fingerprint):
        raise InputError(
            f"{out}: the dataset is not the one that this job goes with; if something was appended to it since, delete "
            f"{out.where(JOB_NAME)} and run the command again"
        )


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
    names = [record_name(shard) for shard in job.shards]
    sizes = out.sizes()
    missing = missing_shards(job.shards, sizes)
    if missing:
        shown = ", ".join(shard_name(shard) for shard in missing[:SHOWN_GAPS])
        raise InputError(
            f"{out}: {len(missing)} of {job.num_shards} shards are not done: {shown}"
            f"{', ...' if len(missing) > SHOWN_GAPS else ''}; run their tasks, then merge again"
        )
    # Records before the first are of a job that was finished, but not cleared away.
    extra = (name for name in sizes if name.startswith(RECORDS_NAME) and name > names[-1])
    for name in sorted(extra):
        raise InputError(
            f"{out.where(name)}: a record of a shard that this job of {job.num_shards} shards lacks; delete it"
        )
    found = 0
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


def remove_job_files(out: Folder, manifest: Manifest) -> None:
    """Remove what only an unfinished job needs, and tables of before, unless a job is unfinished that appends."""
    job = load_job(out)
    if job is not None and not job.is_in(manifest):
        return
    for name in out.sizes():
        if name.startswith(RECORDS_NAME) or (TABLE_NAME.fullmatch(name) and name not in manifest.tables):
            out.remove(name)
    out.remove(JOB_NAME)
    out.remove_unfinished()
