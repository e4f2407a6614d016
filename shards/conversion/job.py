"""Carry out a plan, one shard per task, in this process or by any `concurrent.futures.Executor`.

A task publishes its shard and then its record; the manifest is written when all records are there (`merging`). A job that was
cut short continues: tasks with a record are not done again. A task's bytes follow from the plan alone, so it does not matter
who does it, in which order, or twice.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from shards.conversion.blocks import BlockBuilder
from shards.conversion.claiming import JobOverError, check_claim, claim_folder, has_joined, is_finished
from shards.conversion.folder import Folder, open_folder
from shards.conversion.merging import merge, missing_shards
from shards.conversion.plan import Plan, ShardTask
from shards.conversion.record import ShardRecord, record_name
from shards.conversion.workers import broken_workers_explained, process_pool
from shards.conversion.writer import ShardWriter
from shards.errors import InputError, SpkidError
from shards.layout import UTTERANCE_DTYPE, ShardInfo, shard_name
from shards.manifest import Manifest
from shards.sources import Source, source_of_task

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
        source: where the frames come from; where there are workers, what each task needs of it is pickled
            (`shards.sources.DividedSource`).
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
    results: list[ConvertedShard] = []
    todo = _still_missing(plan, missing, out, progress)
    try:
        if executor is not None:
            with _executor_failures_explained():
                _run_tasks(todo, _Conversion(source, out), executor, workers, progress, results)
        elif min(workers, len(missing)) <= 1:
            for task in todo:
                results.append(convert_shard(task, source, out, progress))
        else:
            workers = min(workers, len(missing))
            with process_pool(workers) as pool:
                _run_tasks(todo, _Conversion(source, out), pool, workers, progress, results)
    except JobOverError:
        if not is_finished(plan.job, out):
            raise
    return results


def _still_missing(plan: Plan, shards: Sequence[int], out: Folder, progress: Progress) -> Iterator[ShardTask]:
    """The tasks of `shards` that are not done when their turn comes: other processes may be at work at the same job.

    Whoever takes part in a job that another began starts at a place of its own, so that they meet late.
    """
    first = secrets.randbelow(len(shards)) if shards and has_joined(out) else 0
    for task in chain(plan.tasks(shards[first:]), plan.tasks(shards[:first])):
        check_claim(plan.job, out)
        if out.has(record_name(task.shard)) and out.has(shard_name(task.shard)):
            progress(len(task.utterances), 0)
        else:
            yield task


@dataclass(frozen=True)
class _Conversion:
    """What a worker calls for a task: pickled with it."""

    source: Source
    out: Folder

    def of(self, task: ShardTask) -> "_Conversion":
        """The same, with what the task needs of the source."""
        return _Conversion(source_of_task(self.source, task.utterances), self.out)

    def __call__(self, task: ShardTask) -> ConvertedShard:
        """Make the shard."""
        return convert_shard(task, self.source, self.out)


def _run_tasks(
    todo: Iterator[ShardTask],
    conversion: _Conversion,
    executor: Executor,
    workers: int,
    progress: Progress,
    results: list[ConvertedShard],
) -> None:
    """Hand the tasks to `executor`, a few ahead; the first error ends the job, and is raised."""
    waiting: set[Future[ConvertedShard]] = set()
    try:
        while True:
            while len(waiting) < TASKS_AHEAD * workers and (task := next(todo, None)) is not None:
                waiting.add(executor.submit(conversion.of(task), task))
            if not waiting:
                return
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


def convert_shard(task: ShardTask, source: Source, out: Folder, progress: Progress = _no_progress) -> ConvertedShard:
    """Carry out one task: publish the shard's tar, then its record. Raises InputError as `convert`.

    JobOverError, and nothing is published, where the folder is no longer of the task's job.
    """
    name = shard_name(task.shard)
    with out.create(name) as file:
        writer = ShardWriter(file, task.shard)
        builder = BlockBuilder(task.job, writer)
        for utterance in task.utterances:
            progress(1, builder.add(utterance, source))
        builder.flush()
        digest = writer.finish()
        check_claim(task.job, out)
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
