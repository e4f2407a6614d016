"""End a job: the records of all tasks become the tables and the manifest of a dataset, or of a larger one.

One pass over the records, a few of them in memory at a time: of 10^5 shards the manifest's part, 50 MB, stays.
"""

import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from shards.conversion.assembly import assembling
from shards.conversion.folder import Folder
from shards.conversion.plan import Job
from shards.conversion.record import RECORDS_NAME, ShardRecord, record_name
from shards.dataset import ShardDataset
from shards.errors import InputError, UsageError
from shards.holding import Say, say_nothing
from shards.jsontext import parse_json
from shards.layout import JOB_NAME, MANIFEST_NAME, shard_name
from shards.manifest import Manifest
from shards.parallel import in_order
from shards.verification.expected import ShardRows, wrong_blocks, wrong_utterances

RECORD_NAME = re.compile(re.escape(RECORDS_NAME) + r"shard-(\d{6,18})\.npz")
DIGEST = re.compile("[0-9a-f]{32}")
TABLE_NAME = re.compile(r"(blocks|utterances)(-\d{4,})?\.npy")
SHOWN_GAPS = 5
READERS = 8  # records read at a time: a store takes its time for each


def merge(out: Folder, say: Say = say_nothing) -> Manifest:
    """Publish the dataset of a job whose tasks are all done; one that is published already stays as it is.

    Of several processes that come at once, one publishes, and the others wait and find it done; `say` is told of that.

    Raises:
        InputError: `out` holds no job, a task is not done, a record is not of this job, it appends to another dataset, or
            the disk is full.
    """
    job, manifest = load_job(out), load_manifest(out)
    if manifest is None and job is None:
        raise InputError(f"{out}: holds no conversion job; give the --out folder of `spkid shard --task`")
    if manifest is not None and not _is_to_be_published(job, manifest) and not has_leftovers(out, manifest, job):
        out.remove_unfinished()
        return manifest
    with out.in_turn(say) as check:
        job, manifest = load_job(out), load_manifest(out)
        if job is not None and _is_to_be_published(job, manifest):
            manifest = _publish(job, manifest, out, check)
        if manifest is None:
            raise InputError(f"{out}: the job that was there is gone; somebody has deleted it")
        check()
        remove_job_files(out, manifest)
    return manifest


def _is_to_be_published(job: Job | None, manifest: Manifest | None) -> bool:
    return job is not None and not (manifest is not None and job.is_in(manifest))


def _publish(job: Job, manifest: Manifest | None, out: Folder, check: Callable[[], None]) -> Manifest:
    """Write the tables of a job that is not published yet, and then its manifest."""
    check_base(job, manifest, out)
    try:
        with assembling(out, job.part + 1) as assembly:
            if job.part:
                assembly.begin_with(ShardDataset(str(out)))
            for record in _all_records(job, out):
                assembly.add(record, job.origin)
            merged = assembly.finish()
            check()
    except InputError:
        # In a store, where nobody waits for a turn, another process may have published it and removed the records.
        published = load_manifest(out)
        if published is not None and job.is_in(published):
            return published
        raise
    check()
    out.write(MANIFEST_NAME, merged.to_bytes())
    return merged


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
        data = out.read(JOB_NAME)
        # Empty for a moment: being made. It names a path, which may be no UTF-8.
        return Job.from_json(parse_json(data, undecodable=True)) if data else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{out.where(JOB_NAME)}: can't be read: {error.strerror}") from None
    except (ValueError, UsageError) as error:
        is_append = out.has(MANIFEST_NAME)
        remedy = f"delete it and {out.where(RECORDS_NAME)}" if is_append else "delete the folder and shard again"
        raise InputError(f"{out.where(JOB_NAME)}: damaged ({error}); {remedy}") from None


def _all_records(job: Job, out: Folder) -> Iterator[ShardRecord]:
    """The records of all shards, in order, checked."""
    sizes = out.sizes()
    _check_done(job, out, sizes)
    names = [record_name(shard) for shard in job.shards]
    # Records before the first are of a job that was finished, but not cleared away.
    extra = (name for name in sizes if name.startswith(RECORDS_NAME) and name > names[-1])
    for name in sorted(extra):
        raise InputError(
            f"{out.where(name)}: a record of a shard that this job of {job.num_shards} shards lacks; delete it"
        )
    found = 0
    with closing(in_order(out.read, names, READERS)) as contents:
        for shard, name, data in zip(job.shards, names, contents, strict=True):
            record = ShardRecord.parse(data, out.where(name), job.identity)
            num_features = len(record.moments.mean)
            if num_features != job.num_features:
                raise InputError(
                    f"{out.where(name)}: {num_features} features per frame, but the job's have {job.num_features}; delete it "
                    "and run its task again on the feature files of the others"
                )
            _check_record(record, shard, job, out.where(name))
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


def _check_done(job: Job, out: Folder, names: Collection[str]) -> None:
    """Raise InputError where shards are not done. What is done is counted: a damaged job may have any number of shards."""
    missing = job.num_shards - sum(
        shard_name(int(found[1])) in names
        for found in map(RECORD_NAME.fullmatch, names)
        if found and int(found[1]) in job.shards
    )
    if missing:
        gaps = (shard for shard in job.shards if record_name(shard) not in names or shard_name(shard) not in names)
        shown = ", ".join(shard_name(shard) for shard in islice(gaps, SHOWN_GAPS))
        raise InputError(
            f"{out}: {missing} of {job.num_shards} shards are not done: {shown}"
            f"{', ...' if missing > SHOWN_GAPS else ''}; run their tasks, then merge again"
        )


def _check_record(record: ShardRecord, shard: int, job: Job, where: str) -> None:
    """Raise InputError where a record is not of this shard, or its parts contradict each other."""
    rows = ShardRows(blocks=record.blocks, utterances=record.utterances, first_block=0, first_utterance=0)
    frame_bytes = job.num_features * np.dtype(job.layout.dtype).itemsize
    wrong = wrong_blocks(rows, record.info, shard, frame_bytes) or wrong_utterances(rows, len(job.speakers))
    if record.info.name != shard_name(shard) or not DIGEST.fullmatch(record.info.digest):
        wrong = f"are of {record.info.name} with the digest {record.info.digest}"
    if wrong is not None:
        raise InputError(f"{where}: this record is damaged (its rows {wrong}); delete it and run its task again")


def missing_shards(shards: Iterable[int], names: Container[str]) -> list[int]:
    """Those of `shards` that are not done: without a tar or without a record."""
    return [shard for shard in shards if record_name(shard) not in names or shard_name(shard) not in names]


def has_leftovers(out: Folder, manifest: Manifest, job: Job | None) -> bool:
    """Whether `out`, with this job found in it, holds what `remove_job_files` would remove, besides unfinished files."""
    if job is not None:
        return job.is_in(manifest)
    return any(_is_job_file(name, manifest) for name in out.sizes())


def remove_job_files(out: Folder, manifest: Manifest) -> None:
    """Remove what only an unfinished job needs, and tables of before, unless a job is unfinished that appends.

    For a process whose turn it is (`Folder.in_turn`): a job that begins meanwhile would lose its files.
    """
    job = load_job(out)
    if job is not None and not job.is_in(manifest):
        return
    for name in out.sizes():
        if _is_job_file(name, manifest):
            out.remove(name)
    out.remove(JOB_NAME)
    out.remove_unfinished()


def _is_job_file(name: str, manifest: Manifest) -> bool:
    return name.startswith(RECORDS_NAME) or bool(TABLE_NAME.fullmatch(name) and name not in manifest.tables)
