"""Watch what other programs do on this machine's CPUs while a stage is measured."""

import os
import time
from collections.abc import Mapping

from shards.resources import available_cpus
from spkid_dist.process.freecpus import busy_seconds, own_seconds

NOTICED_CPUS = 0.25


class OtherPrograms:
    """Measures from its making on."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), busy_seconds(), own_seconds()

    def used_cpus(self) -> float:
        """CPUs that other programs used since then, on average; 0 where it is less than any system's own programs use."""
        seconds = time.monotonic() - self._began
        used = (busy_seconds() - self._busy - (own_seconds() - self._ours)) / max(seconds, 1e-9)
        used = min(used, os.cpu_count() or used)  # the clock of CPUs has steps of 10 ms
        return used if used >= NOTICED_CPUS and seconds >= 1.0 else 0.0


def describe_use(used_cpus: Mapping[str, float]) -> list[str]:
    """A sentence on the CPUs that others used during each of the stages; none where they used none."""
    used = ", ".join(f"{stage} {cpus:.1f}" for stage, cpus in used_cpus.items() if cpus)
    if not used:
        return []
    return [
        f"other programs used CPUs meanwhile, of {available_cpus()}: {used}; rates are below those of an idle machine, most of "
        "all those of several threads"
    ]
