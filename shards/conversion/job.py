"""Carry out a plan, one shard per task, in this process or by any `concurrent.futures.Executor`.

A task publishes its shard and then its record; the manifest is written when all records are there (`merging`). A job that was
cut short continues: tasks with a record are not done again. A task's bytes follow from the plan alone, so it does not matter
who does it, in which order, or twice.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.conversion.blocks import BlockBuilder
from shards.conversion.folder import Folder, open_folder
from shards.conversion.merging import (
    check_base,
    load_job,
    load_manifest,
    merge,
    missing_shards,
    remove_job_files,
)
from shards.conversion.plan import Job, Plan, ShardTask
from shards.conversion.record import RECORDS_NAME, ShardRecord, record_name
from shards.conversion.workers import broken_workers_explained, process_pool
from shards.conversion.writer import ShardWriter
from shards.errors import InputError, SpkidError
from shards.layout import JOB_NAME, UTTERANCE_DTYPE, ShardInfo, shard_name
from shards.manifest import Manifest
from shards.sources import Source

TASKS_AHEAD = 2  # tasks handed out beforehand, a worker: their utterances are in memory

Progress = Callable[[int, int], None]
"""Called with (utterances, frames) done since the last call."""


@dataclass(frozen=True)
class ConvertedShard:
    """What a task has done; `rounding_error` is that of `shards.conversion.blocks.BlockBuilder`."""

    info: ShardInfo
    rounding_error: float


def _no_progress(_utterances: int, _frames: int) -> None:
    """What is shown where nobody looks."""


def convert(
    plan: Plan,
    source: Source,
    out: str | Path,
    progress: Progress = _no_progress,
    *,
    workers: int = 1,
    executor: Executor | None = None,
) -> Manifest:
    """Carry out `plan` in the folder `out` and return the manifest; a finished job is not done again.

    Args:
        plan: what to do.
        source: where the frames come from; it is pickled where there are workers.
        out: the dataset's folder, or its URL for fsspec; every worker must reach it under this name.
        progress: called in this process as work gets done; after each shard where there are workers.
        workers: processes; 1 works in this process. With `executor`: how many tasks it does at a time.
        executor: does the tasks instead.

    Raises:
        InputError: a feature file is missing or damaged, `out` holds something else, the disk is full, or a worker
            was killed; with `executor`, also whatever else it raises.
    """
    folder = open_folder(out)
    finished = claim_folder(plan.job, folder)
    if finished is not None:
        return finished
    convert_tasks(plan, source, folder, plan.job.shards, progress, workers=workers, executor=executor)
    return merge(folder)


def convert_tasks(
    plan: Plan,
    source: Source,
    out: Folder,
    shards: Sequence[int],
    progress: Progress = _no_progress,
    *,
    workers: int = 1,
    executor: Executor | None = None,
) -> list[ConvertedShard]:
    """Carry out those tasks of `shards` that are not done yet, in the folder that `claim_folder` made.

    Returns what was done, in the order in which it ended. Arguments and errors as of `convert`.
    """
    missing = missing_shards(shards, out.sizes())
    convert_one = _Conversion(source, out)
    if executor is not None:
        with _executor_failures_explained():
            return _run_tasks(plan, missing, convert_one, executor, workers, progress)
    if min(workers, len(missing)) <= 1:
        return [convert_shard(task, source, out, progress) for task in plan.tasks(missing)]
    with process_pool(min(workers, len(missing))) as pool:
        return _run_tasks(plan, missing, convert_one, pool, workers, progress)


@dataclass(frozen=True)
class _Conversion:
    """What a worker calls for a task: pickled with it."""

    source: Source
    out: Folder

    def __call__(self, task: ShardTask) -> ConvertedShard:
        """Make the shard."""
        return convert_shard(task, self.source, self.out)


def _run_tasks(
    plan: Plan,
    shards: Sequence[int],
    convert_one: _Conversion,
    executor: Executor,
    workers: int,
    progress: Progress,
) -> list[ConvertedShard]:
    """Hand the tasks to `executor`, a few ahead; the first error ends the job, and is raised."""
    results: list[ConvertedShard] = []
    waiting: set[Future[ConvertedShard]] = set()
    todo = plan.tasks(shards)
    try:
        while True:
            while len(waiting) < TASKS_AHEAD * workers and (task := next(todo, None)) is not None:
                waiting.add(executor.submit(convert_one, task))
            if not waiting:
                return results
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                results.append(future.result())
                progress(results[-1].info.utterances, results[-1].info.frames)
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def _executor_failures_explained() -> Iterator[None]:
    """Raise InputError where somebody else's executor fails, with errors of its own: Dask's KilledWorker for example."""
    try:
        with broken_workers_explained():
            yield
    except SpkidError:
        raise
    except Exception as error:
        raise InputError(
            f"the executor failed: {type(error).__name__}: {' '.join(str(error).split())}; finished shards are kept: run the "
            "same command again"
        ) from error


def claim_folder(job: Job, out: Folder) -> Manifest | None:
    """Make `out` the folder of this job, or find that it is; return the manifest of a finished one.

    Raises:
        InputError: the folder holds something else, or another job.
    """
    manifest = load_manifest(out)
    if manifest is not None and job.is_in(manifest):
        remove_job_files(out, manifest)
        return manifest
    if manifest is not None and not job.part:
        raise _other_job(out, "a dataset", "choose another --out, delete that folder, or add to it with --append")
    check_base(job, manifest, out)
    # Listed before the job is looked for: another task may be just making it.
    names = out.sizes()
    found = load_job(out)
    if found is None and names and manifest is None:
        raise InputError(f"{out}: this folder holds something else; give --out a new or empty folder")
    if found is not None and manifest is not None and found.is_in(manifest):
        out.remove(JOB_NAME)
        found = None
    if found is None and not out.write_new(JOB_NAME, json.dumps(job.to_json()).encode()):
        found = load_job(out)  # of a task or another job that came at the same moment
    if found is not None and dataclasses.replace(found, first_read=job.first_read) != job:
        if job.part:
            remedy = (
                f"finish that one by its own command, or delete {out.where(JOB_NAME)} and {out.where(RECORDS_NAME)}"
            )
        else:
            remedy = "choose another --out, or delete that folder"
        raise _other_job(out, "an unfinished job", remedy)
    out.remove_unfinished()
    return None


def _other_job(out: Folder, what: str, remedy: str) -> InputError:
    return InputError(f"{out}: holds {what} of another list, other options or other features; {remedy}")


def convert_shard(task: ShardTask, source: Source, out: Folder, progress: Progress = _no_progress) -> ConvertedShard:
    """Carry out one task: publish the shard's tar, then its record. Raises InputError as `convert`."""
    name = shard_name(task.shard)
    with out.create(name) as file:
        writer = ShardWriter(file, task.shard)
        builder = BlockBuilder(task.job, writer)
        for utterance in task.utterances:
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
    record = ShardRecord(
        job=task.job.identity,
        info=info,
        blocks=writer.blocks(),
        utterances=np.array(builder.utterance_records, UTTERANCE_DTYPE),
        moments=builder.sums.moments,
        rounding_error=builder.rounding_error,
    )
    out.write(record_name(task.shard), record.to_bytes())
    return ConvertedShard(info, builder.rounding_error)
