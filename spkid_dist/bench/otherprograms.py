"""What other programs do on this machine's CPUs while a stage is measured."""

import os
import time
from collections.abc import Mapping

import psutil

from spkid_dist.cpus import available_cpus

NOTICED_CPUS = 0.25


class OtherPrograms:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), _busy_seconds(), _own_seconds()

    def used_cpus(self) -> float:
        """CPUs that other programs used since then, on average; 0 where it is less than any system's own programs use."""
        seconds = time.monotonic() - self._began
        used = (_busy_seconds() - self._busy - (_own_seconds() - self._ours)) / max(seconds, 1e-9)
        return used if used >= NOTICED_CPUS and seconds >= 1.0 else 0.0  # the clock of CPUs has steps of 10 ms


def describe_use(used_cpus: Mapping[str, float]) -> list[str]:
    """A sentence on the CPUs that others used during each of the stages; none where they used none."""
    used = ", ".join(f"{stage} {cpus:.1f}" for stage, cpus in used_cpus.items() if cpus)
    if not used:
        return []
    return [
        f"other programs used CPUs meanwhile, of {available_cpus()}: {used}; rates are below those of an idle machine, most of "
        "all those of several threads"
    ]


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
