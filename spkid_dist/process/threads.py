"""Choose the number of threads of a process: torch's, and those that fill its pools."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from shards.resources import available_cpus


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
