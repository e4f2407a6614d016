"""The conversion job: carries out a plan, one shard a task, by this process or by any `concurrent.futures.Executor`.

A task publishes its shard and then its record; the manifest is written when all records are there (`shards.merge`). A job
that was cut short continues: tasks with a record are not done again. A task's bytes follow from the plan alone, so it does
not matter who does it, in which order, or twice.
"""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.blocks import BlockBuilder
from shards.errors import InputError
from shards.files import TEMPORARY_MARK, atomic_writer, make_folder, write_atomic, write_json
from shards.layout import MANIFEST_NAME, UTTERANCE_DTYPE, Manifest, ShardInfo, shard_name
from shards.merge import JOB_NAME, load_job, merge, remove_job_files
from shards.plan import Job, Plan, ShardTask
from shards.record import RECORDS_NAME, ShardRecord, record_path
from shards.sources import Source
from shards.writer import ShardWriter

TASKS_AHEAD = 2  # tasks handed out beforehand, a worker: their utterances are in memory

Progress = Callable[[int, int], None]
"""Called with (utterances, frames) done since the last call."""


def _no_progress(_utterances: int, _frames: int) -> None:
    """What is shown where nobody looks."""


def convert(
    plan: Plan,
    source: Source,
    out: Path,
    progress: Progress = _no_progress,
    *,
    workers: int = 1,
    executor: Executor | None = None,
) -> Manifest:
    """Carry out `plan` in the folder `out` and return the manifest; a finished job is not done again.

    Args:
        plan: what to do.
        source: where the frames come from; it is pickled where there are workers.
        out: the dataset's folder; every worker must see it under this name.
        progress: called in this process as work gets done; after each shard where there are workers.
        workers: processes; 1 works in this process. With `executor`: how many tasks it does at a time.
        executor: does the tasks instead.

    Raises:
        InputError: a feature file is missing or damaged, `out` holds something else, the disk is full, or a worker
            was killed.
    """
    finished = claim_folder(plan.job, out)
    if finished is not None:
        return finished
    shards = range(plan.job.num_shards)
    convert_tasks(plan, source, out, shards, progress, workers=workers, executor=executor)
    return merge(out)


def convert_tasks(
    plan: Plan,
    source: Source,
    out: Path,
    shards: Sequence[int],
    progress: Progress = _no_progress,
    *,
    workers: int = 1,
    executor: Executor | None = None,
) -> None:
    """Carry out those tasks of `shards` that have no record yet, in the folder that `claim_folder` made.

    Arguments and errors as of `convert`.
    """
    missing = [shard for shard in shards if not record_path(out, shard).exists()]
    convert_one = _Conversion(source, out)
    if executor is None and min(workers, len(missing)) <= 1:
        for shard in missing:
            convert_shard(plan.task(shard), source, out, progress)
    elif executor is None:
        with process_pool(min(workers, len(missing))) as pool:
            _run_tasks(plan, missing, convert_one, pool, workers, progress)
    else:
        _run_tasks(plan, missing, convert_one, executor, workers, progress)


@dataclass(frozen=True)
class _Conversion:
    """What a worker calls for a task: pickled with it."""

    source: Source
    out: Path

    def __call__(self, task: ShardTask) -> tuple[int, int]:
        """Make the shard; return its utterances and frames."""
        info = convert_shard(task, self.source, self.out)
        return len(task.utterances), info.frames


def _run_tasks(
    plan: Plan,
    shards: Sequence[int],
    convert_one: _Conversion,
    executor: Executor,
    workers: int,
    progress: Progress,
) -> None:
    """Hand the tasks to `executor`, a few ahead; the first error ends the job, and is raised."""
    waiting: set[Future[tuple[int, int]]] = set()
    todo = iter(shards)
    try:
        while True:
            while len(waiting) < TASKS_AHEAD * workers and (shard := next(todo, None)) is not None:
                waiting.add(executor.submit(convert_one, plan.task(shard)))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                progress(*future.result())
    except BrokenExecutor as error:
        raise InputError(
            "a worker process ended abruptly (killed, or out of memory); finished shards are kept: run the same "
            "command again, perhaps with fewer --workers"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends."""
    # spawn: a forked copy of a process that has threads (the progress bar's) may hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone: a parent that was killed can't tell it."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def claim_folder(job: Job, out: Path) -> Manifest | None:
    """Make `out` the folder of this job, or find that it is; return the manifest of a finished one.

    Raises:
        InputError: the folder holds something else, or another job.
    """
    make_folder(out)
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.load(out)
        _check_identity(manifest.job, job, out, "a dataset")
        remove_job_files(out)
        return manifest
    found = load_job(out)
    if found is not None:
        _check_identity(found.identity, job, out, "an unfinished job")
        _remove_dead_writers_files(out)
    elif any(TEMPORARY_MARK not in path.name for path in out.iterdir()):
        raise InputError(f"{out}: this folder holds something else; give --out a new or empty folder")
    else:
        write_json(out / JOB_NAME, job.to_json())
    make_folder(out / RECORDS_NAME)
    return None


def _check_identity(found: str, job: Job, out: Path, what: str) -> None:
    if found != job.identity:
        raise InputError(
            f"{out}: holds {what} of another list or other options (job {found}, this is {job.identity}); "
            "choose another --out, or delete that folder"
        )


def _remove_dead_writers_files(out: Path) -> None:
    """Give back the room that killed processes of this host hold with unfinished files."""
    host = f"{TEMPORARY_MARK}{socket.gethostname()}-"
    for path in (*out.glob(f"*{host}*"), *(out / RECORDS_NAME).glob(f"*{host}*")):
        process = path.name.rpartition("-")[2]
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            path.unlink(missing_ok=True)


def convert_shard(task: ShardTask, source: Source, out: Path, progress: Progress = _no_progress) -> ShardInfo:
    """Carry out one task: publish the shard's tar, then its record. Raises InputError as `convert`."""
    name = shard_name(task.shard)
    with atomic_writer(out / name) as file:
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
    write_atomic(record_path(out, task.shard), record.to_bytes())
    return info
