"""How many CPUs this process may use, and torch's threads by that.

`taskset`, a batch system or a container may grant a process fewer CPUs than the machine has. Two things limit it: the CPUs that
it may run on (its affinity), and the CPU time that its control groups grant (a quota, as `docker run --cpus` sets it).
OpenMP, and so torch, looks at the first only; threads beyond the quota make each other wait.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from spkid_dist.cgroups import granted_cpus


def available_cpus() -> int:
    """CPUs that this process may use, 1 or more: by its affinity and the quotas of its control groups, rounded down."""
    by_affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([by_affinity, *granted_cpus()])))


def filling_threads() -> int:
    """Threads that may fill a process's pools: half of its share of the CPUs, beside those that work on the batches."""
    of_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, available_cpus() // of_host // 2)


def are_threads_given() -> bool:
    """Whether the user, or the launcher of several processes, said how many threads a process is to have."""
    return "OMP_NUM_THREADS" in os.environ


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[int]:
    """Let torch use `count` threads in the block, and as many as before after it; yields their number.

    Without `count`: as many as torch has chosen, or OMP_NUM_THREADS says. Where nobody said how many, no more than
    `available_cpus`, shared by the processes of this machine's launch.
    """
    import torch

    before = torch.get_num_threads()
    if count is None:
        of_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        count = before if are_threads_given() else min(before, max(1, available_cpus() // of_host))
    if count != before:
        torch.set_num_threads(count)
    try:
        yield count
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
