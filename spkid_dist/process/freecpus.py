"""Measure how many of this process's CPUs other programs leave free, while the process starts.

The threads of a training step meet after each operation. A thread that shares its CPU with another program comes late to each
of these meetings, so two threads beside two busy programs are slower than one. The time in which a process starts is long
enough to see how busy the CPUs are, and costs nothing.
"""

import os
import time
from collections.abc import Callable

import psutil
import torch

from shards.resources import available_cpus
from spkid_dist.process.threads import are_threads_given

Say = Callable[[str], None]

SHORTEST_SECONDS = 0.2  # that tell something: the system counts in hundredths of a second
TOLERATED = 0.25  # of a CPU: what a machine does by itself


class FreeCpus:
    """Counts the CPUs that other programs leave free, from the moment when this is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy, self._own = busy_seconds(), own_seconds()

    def used_by_others(self) -> float:
        """CPUs that other programs have used since then, on average, of those that this process may use.

        Waits until there is something to be known.
        """
        time.sleep(max(0.0, SHORTEST_SECONDS - (time.perf_counter() - self._began)))
        seconds = time.perf_counter() - self._began
        others = (busy_seconds() - self._busy) - (own_seconds() - self._own)
        return max(0.0, others / seconds)


def leave_cpus_to_others(free: FreeCpus, say: Say) -> None:
    """Have torch compute with no more threads than there are free CPUs, and `say` so; nothing where the user gave a number."""
    before = torch.get_num_threads()
    if before == 1 or are_threads_given():
        return
    used = free.used_by_others()
    count = min(before, whole_cpus(available_cpus(), used))
    if count < before:
        torch.set_num_threads(count)
        say(
            f"{count} of {before} threads: other programs use {used:.1f} of the {available_cpus()} CPUs, and threads that wait "
            "for a CPU make each other wait; set OMP_NUM_THREADS to choose the number yourself"
        )


def go_on_with_threads(count: int, say: Say) -> None:
    """Compute with the `count` threads that a training had before, so that no bit changes; nothing where a number was given."""
    if are_threads_given() or count == torch.get_num_threads() or count > available_cpus():
        return
    torch.set_num_threads(count)
    say(f"continuing with {count} threads, as before; set OMP_NUM_THREADS to choose the number yourself")


def whole_cpus(available: int, used: float) -> int:
    """CPUs of the `available` ones that are free while others use `used` of them; 1 at least."""
    return max(1, int(available - used + TOLERATED))


def busy_seconds() -> float:
    """CPU time of all programs on the CPUs of this process; 0 where the system does not say."""
    try:
        times = psutil.cpu_times(percpu=True)
        ours = [times[cpu] for cpu in os.sched_getaffinity(0) if cpu < len(times)]
    except (OSError, RuntimeError, AttributeError):
        return 0.0
    return float(sum(sum(getattr(one, name, 0.0) for name in ("user", "nice", "system")) for one in ours))


def own_seconds() -> float:
    """CPU time of this process, and of the processes that it has started and that have ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system
