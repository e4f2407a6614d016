"""Measure how long a training's thread waits for a CPU, which shows that other programs use the CPUs.

The threads of a step meet after each of its some 60 operations. Where one of them waits for a core, the others wait for it, so
a step beside busy programs can take ten times as long as alone, and nothing else tells why.

Source: docs.kernel.org/scheduler/sched-stats.html, "/proc/<pid>/schedstat".
"""

import time
from pathlib import Path

import torch

SHORTEST_SECONDS = 5.0  # of a stretch that is judged: a shorter one may be a single other program that starts
LARGEST_SHARE = 0.2  # of it spent waiting for a core, on a machine that others leave alone: below 0.02
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def core_wait_seconds() -> float | None:
    """Seconds that the calling thread was ready to run and had no core, since it began; None where the system can't tell."""
    try:
        return int(_SCHEDSTAT.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


class CoreWait:
    """Notices, once, that the thread which calls it waits for cores; `share` is that of all time since it was made."""

    def __init__(self) -> None:
        self._began = self._since = time.perf_counter()
        self._waited_at_first = self._waited = core_wait_seconds()
        self._noticed = False

    @property
    def share(self) -> float | None:
        """The share of the time since this was made that the thread waited for a core; None where that is not known."""
        waited, seconds = core_wait_seconds(), time.perf_counter() - self._began
        if waited is None or self._waited_at_first is None:
            return None
        return (waited - self._waited_at_first) / seconds if seconds else 0.0

    def notice(self) -> str | None:
        """A line for the user at the end of the first stretch of which the thread waited too much; else None."""
        now, waited = time.perf_counter(), core_wait_seconds()
        seconds = now - self._since
        if self._noticed or waited is None or self._waited is None or seconds < SHORTEST_SECONDS:
            return None
        share = (waited - self._waited) / seconds
        self._since, self._waited = now, waited
        if share <= LARGEST_SHARE:
            return None
        self._noticed = True
        remedy = "end the other programs"
        if torch.get_num_threads() > 1:
            remedy += ", or start the training with OMP_NUM_THREADS set to the number of cores that they leave free"
        return (
            f"other programs use the cores: this process waited for a core for {share:.0%} of the last {seconds:.0f} s, so the "
            f"training is slower than on an idle machine; {remedy}"
        )
