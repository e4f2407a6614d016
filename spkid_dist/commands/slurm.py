"""Submit a Slurm array through submitit, wait for it, and report failed tasks with their logs.

Owns what is about the scheduler; what a task does is the caller's, and must be safe to do again: a task that failed is
submitted anew by the next run. submitit is imported when an array is asked for, not before. Documented at
github.com/facebookincubator/submitit.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import InputError, SpkidError, UsageError
from shards.extras import import_extra
from shards.files import make_folder
from spkid_dist.config import SlurmFlags
from spkid_dist.ranks.console import RunLog

POLL_SECONDS = 0.5  # between looks for results; Slurm itself is asked far less often
SHOWN_LINES = 3  # of the log of a task that left no result

Result = TypeVar("Result")


def run_array(
    tasks: Mapping[str, Callable[[], Result | SpkidError]], flags: SlurmFlags, cpus: int, log: RunLog
) -> list[Result]:
    """Do `tasks`, by name, as the tasks of one array, and return their results in order.

    All tasks are waited for, also when one fails: what they finish is not to be done again. An interruption cancels them.

    Args:
        tasks: pickled, so functions of a module; a user's mistake is returned, not raised, to arrive as it is.
        flags: how they are submitted.
        cpus: of a task.
        log: says which task is done or failed.

    Raises:
        InputError: the scheduler refused the array, or a task failed or was killed; names its log.
        UsageError: submitit is not installed, or there is no Slurm here.
    """
    submitit = import_extra("submitit", "slurm", "--slurm_array")
    folder = _new_folder(flags.log_dir)
    jobs = _submit(submitit, list(tasks.values()), flags, cpus, folder)
    log.line(f"{len(jobs)} tasks submitted as {jobs[0].job_id} and on; their logs: {folder}")
    results: dict[int, Result] = {}
    failures: dict[int, str] = {}
    names = list(tasks)
    with log.bar(len(jobs), "tasks") as bar:
        for index in _as_they_end(jobs):
            outcome = _outcome(submitit, jobs[index])
            bar.advance(1)
            if isinstance(outcome, SpkidError):
                failures[index] = f"{names[index]}: {outcome}; its log: {jobs[index].paths.stderr}"
                log.line(f"failed: {failures[index]}")
            else:
                results[index] = outcome
                log.line(f"{names[index]}: done")
    if failures:
        raise InputError(
            f"{len(failures)} of {len(jobs)} tasks failed, the first: {failures[min(failures)]}; finished shards are kept: "
            "run the same command again"
        )
    return [results[index] for index in range(len(jobs))]


def _new_folder(log_dir: Path) -> Path:
    """A folder of this run's own: submitit takes a file that a job of the same number left for the job's result."""
    make_folder(log_dir)
    try:
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=log_dir.absolute()))
    except OSError as error:
        raise InputError(f"{log_dir}: can't write the logs: {error.strerror}; choose another --slurm.log_dir") from None


def _submit(
    submitit: Any, functions: Sequence[Callable[[], Any]], flags: SlurmFlags, cpus: int, folder: Path
) -> list[Any]:
    output = io.StringIO()  # submitit prints what sbatch says, and raises it
    try:
        with contextlib.redirect_stderr(output):
            executor = submitit.AutoExecutor(folder, cluster=flags.cluster)
            executor.update_parameters(
                name="spkid-shard",
                timeout_min=flags.timeout_min,
                cpus_per_task=cpus,
                mem_gb=flags.mem_gb,
                slurm_additional_parameters=flags.sbatch_options(),
            )
            return list(executor.submit_array(functions))
    except RuntimeError as error:  # no srun, or sbatch failed
        if isinstance(error, submitit.core.utils.UncompletedJobError | submitit.core.utils.FailedSubmissionError):
            raise InputError(
                f"sbatch refused the array: {_one_line(str(error))}; change --slurm.* and run again"
            ) from None
        raise UsageError(
            f"--slurm_array: {error}; give the command where sbatch runs, or try it with --slurm.cluster local"
        ) from None


def _as_they_end(jobs: Sequence[Any]) -> Iterator[int]:
    """The jobs' indices as they end, well or not; the others are cancelled when the caller stops."""
    waiting = dict(enumerate(jobs))
    try:
        while waiting:
            ended = [index for index, job in waiting.items() if job.done()]
            for index in ended:
                del waiting[index]
                yield index
            if waiting:
                time.sleep(POLL_SECONDS)
    finally:
        for job in waiting.values():
            job.cancel(check=False)


def _outcome(submitit: Any, job: Any) -> Any:
    """What the task of an ended job returned; an InputError where it raised, or was killed and left no result."""
    try:
        return job.result()
    except submitit.core.utils.FailedJobError as error:
        # The text: an introduction, then the traceback between two rulers, whose last line tells the exception.
        trace = str(error).split("-" * 22)[1].strip()
        return InputError(_one_line(trace.splitlines()[-1]))
    except submitit.core.utils.UncompletedJobError:
        return InputError(f"it ended without a result (killed, or out of time or memory); {_log_end(job.paths.stderr)}")


def _log_end(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
    except OSError as error:
        return f"it has no log ({error.strerror})"
    return f"its log ends with {_one_line(' | '.join(lines))!r}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
