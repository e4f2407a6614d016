"""Decide whose a folder is: the first job that makes `job.json` there has it, until its dataset is published.

Other processes of an equal job take part in it. Those of another job are refused. Processes claim, publish and clear away in
turn (`Folder.in_turn`), and look again when their turn has come: of what was seen before, nothing may be true any more. Reading
needs no turn. `job.json` is removed last, when the manifest is there, so whoever reads looks for `job.json` first.
"""

import dataclasses
import json
from collections.abc import Callable

from shards.conversion.folder import Folder
from shards.conversion.merging import has_leftovers, load_job, load_manifest, remove_job_files
from shards.conversion.plan import Job
from shards.conversion.record import RECORDS_NAME
from shards.errors import InputError
from shards.holding import Holder, Say, say_nothing
from shards.layout import JOB_NAME, shard_name
from shards.liveness import ProcessMark
from shards.manifest import Manifest


class JobOverError(InputError):
    """The folder is no longer of this job: it is finished, or the folder was deleted or given to another job."""


def claim_folder(job: Job, out: Folder, say: Say = say_nothing) -> Manifest | None:
    """Make `out` the folder of this job, or find that it is; return the manifest of a finished one.

    `say` is told of other processes that are waited for.

    Raises:
        InputError: the folder holds something else, or another job.
    """
    found, manifest = load_job(out), load_manifest(out)
    if manifest is not None and job.is_in(manifest):
        if not has_leftovers(out, manifest, found):
            out.remove_unfinished()
            return manifest
    elif found is not None and _is_same(found, job):
        out.remove_unfinished()
        return None
    else:
        _check_folder(job, out, found, manifest)
    with out.in_turn(say) as check:
        return _claim(job, out, check)


def _claim(job: Job, out: Folder, check: Callable[[], None]) -> Manifest | None:
    """What `claim_folder` does when its turn has come."""
    found, manifest = load_job(out), load_manifest(out)
    if manifest is not None and (found is None or found.is_in(manifest)) and has_leftovers(out, manifest, found):
        check()
        remove_job_files(out, manifest)
        found = None
    if manifest is not None and job.is_in(manifest):
        return manifest
    if found is None and out.has(JOB_NAME):  # empty: whoever was making it was killed
        check()
        out.remove(JOB_NAME)
    _check_folder(job, out, found, manifest)
    if found is None:
        check()
        begun = dataclasses.replace(job, begun_by=str(Holder.this()))
        if not out.write_new(JOB_NAME, json.dumps(begun.to_json()).encode()):
            found = load_job(out)  # where nothing is held, of one that came at the same moment
            _check_folder(job, out, found, manifest)
    out.remove_unfinished()
    return None


def _check_folder(job: Job, out: Folder, found: Job | None, manifest: Manifest | None) -> None:
    """Raise InputError where `out`, with such a job and manifest, can't be the folder of this job, which is not finished."""
    if manifest is not None and not job.part:
        remedy = "choose another --out, delete that folder, or add to it with --append"
        raise InputError(f"{out}: holds a dataset of another list, other options or other features; {remedy}")
    if found is not None and manifest is not None and found.is_in(manifest):
        found = None  # it is only to be cleared away
    if found is not None and not _is_same(found, job):
        raise _other_job(job, out, found)
    if job.base != ("" if manifest is None else manifest.fingerprint):
        raise InputError(
            f"{out}: the dataset is not the one that this job goes with: it was appended to, or replaced, since the command "
            "began; run the command again"
        )
    if found is None and manifest is None and out.sizes().keys() - {JOB_NAME}:
        began_or_ended = load_job(out) is not None or load_manifest(out) is not None  # since the first look
        if not began_or_ended:
            raise InputError(f"{out}: this folder holds something else; give --out a new or empty folder")


def _is_same(found: Job, job: Job) -> bool:
    """Whether two jobs write the same bytes."""
    return dataclasses.replace(found, first_read=job.first_read, begun_by=job.begun_by) == job


def _other_job(job: Job, out: Folder, found: Job) -> InputError:
    if job.part:
        first = out.where(shard_name(found.first_shard))
        remedy = (
            f"finish that one by its own command; or, to give it up, delete {out.where(JOB_NAME)}, {out.where(RECORDS_NAME)} "
            f"and the shards from {first} on"
        )
    else:
        remedy = "choose another --out, or delete that folder"
    begun = f", begun by {found.begun_by}" if found.begun_by else ""
    return InputError(
        f"{out}: holds an unfinished job of another list, other options or other features: {found.num_utterances} utterances "
        f"in {found.num_shards} shards{begun}; {remedy}"
    )


def check_claim(job: Job, out: Folder) -> None:
    """Called before anything of a job is published; cheap, as the file is searched and not parsed.

    Raises:
        JobOverError: the folder is no longer of this job.
    """
    try:
        data = out.read(JOB_NAME)
    except FileNotFoundError:
        data = b""
    if not (job.identity.encode() in data and job.sample.encode() in data):
        raise JobOverError(
            f"{out}: no longer the folder of this job: {JOB_NAME} is gone, or of another job; nothing more is written there"
        )


def has_joined(out: Folder) -> bool:
    """Whether another process has begun the job in `out`, or an earlier one: this one takes part in it, or continues it."""
    job, mark = load_job(out), ProcessMark.of_this()
    return job is not None and not job.begun_by.startswith(f"process {mark.process} on {mark.host} ")


def is_finished(job: Job, out: Folder) -> bool:
    """Whether the dataset in `out` has this job in it."""
    manifest = load_manifest(out)
    return manifest is not None and job.is_in(manifest)
