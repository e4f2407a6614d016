"""Find which share of a job this machine does: given as i/N, or known to the scheduler."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import UsageError


@dataclass(frozen=True)
class TaskShare:
    """Share `index` of `count`, from 0."""

    index: int
    count: int

    def shards(self, num_shards: int) -> range:
        """The shards of this share: contiguous, disjoint and complete over the shares."""
        return range(self.index * num_shards // self.count, (self.index + 1) * num_shards // self.count)


def parse_share(text: str, environment: Mapping[str, str] = os.environ) -> TaskShare:
    """The share that ``i/N``, ``auto`` or ``auto/N`` names, with 0 <= i < N.

    ``auto`` asks a Slurm array, a Slurm step, or (with ``auto/N``) a Kubernetes Indexed Job.

    Raises:
        UsageError: the text is something else, i is out of range, or no scheduler set its variables.
    """
    found = re.fullmatch(r"(auto|\d+)(?:/(\d+))?", text)
    if found is None or (found[1] != "auto" and found[2] is None):
        raise UsageError(f"--task {text}: expected i/N with i from 0 to N-1, such as 0/8, or auto")
    if found[1] == "auto":
        index, count = _scheduled(environment, found[2])
    else:
        index, count = int(found[1]), int(found[2])
    if not index < count:
        raise UsageError(f"--task {text}: task {index} of {count}: expected i from 0 to {count - 1}")
    return TaskShare(index, count)


def _scheduled(environment: Mapping[str, str], count: str | None) -> tuple[int, int]:
    """(index, count) as the scheduler says; the array first, because its tasks are steps of their own too."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step, int(environment["SLURM_ARRAY_TASK_COUNT"])
    if "SLURM_PROCID" in environment:
        return int(environment["SLURM_PROCID"]), int(environment.get("SLURM_NTASKS", "1"))
    if "JOB_COMPLETION_INDEX" in environment:
        if count is None:
            raise UsageError("--task auto: a Kubernetes job does not tell its pods their number; give --task auto/N")
        return int(environment["JOB_COMPLETION_INDEX"]), int(count)
    raise UsageError(
        "--task auto: found none of SLURM_ARRAY_TASK_ID, SLURM_PROCID and JOB_COMPLETION_INDEX; give --task i/N"
    )
