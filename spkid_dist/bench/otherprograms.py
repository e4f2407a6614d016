"""What other programs do on this machine's CPUs while a stage is measured."""

import os
import time

import psutil

from spkid_dist.cpus import available_cpus

NOTICED_CPUS = 0.25  # used by others: less is what any system does


class OtherPrograms:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), _busy_seconds(), _own_seconds()

    def note(self) -> str | None:
        """A sentence where others used a good part of a CPU; None where they did not."""
        seconds = time.monotonic() - self._began
        used = (_busy_seconds() - self._busy - (_own_seconds() - self._ours)) / max(seconds, 1e-9)
        if used < NOTICED_CPUS or seconds < 1.0:  # the clock of CPUs has steps of 10 ms
            return None
        return (
            f"other programs used {used:.1f} of {available_cpus()} CPUs meanwhile: rates are below those of an idle machine, "
            "most of all those of several threads"
        )


def _busy_seconds() -> float:
    """CPU time of all programs on the CPUs of this process; 0 where the system does not say."""
    try:
        times = psutil.cpu_times(percpu=True)
        ours = [times[cpu] for cpu in os.sched_getaffinity(0) if cpu < len(times)]
    except (OSError, RuntimeError, AttributeError):
        return 0.0
    return float(sum(sum(getattr(one, name, 0.0) for name in ("user", "nice", "system")) for one in ours))


def _own_seconds() -> float:
    """CPU time of this process, and of the processes that it has started and that have ended."""
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system
