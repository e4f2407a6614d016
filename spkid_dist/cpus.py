"""How many CPUs this process may use, and torch's threads by that.

`taskset`, a batch system or a container may grant a process fewer CPUs than the machine has. Two things limit it: the CPUs that
it may run on (its affinity), and the CPU time that its control groups grant (a quota, as `docker run --cpus` sets it).
OpenMP, and so torch, looks at the first only; threads beyond the quota make each other wait.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESS_GROUPS = Path("/proc/self/cgroup")
GROUPS_ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLER = "cpu"


def available_cpus() -> int:
    """CPUs that this process may use, 1 or more: by its affinity and the quotas of its control groups, rounded down."""
    by_affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([by_affinity, *_quotas()])))


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


def _quotas() -> Iterator[float]:
    """The CPUs that each control group of this process grants: its own groups, and those around them."""
    try:
        lines = PROCESS_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or no /proc
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:  # version 2: one tree for all
            yield from (quota for folder in _folders(GROUPS_ROOT, name) if (quota := _v2_quota(folder)))
        elif V1_CONTROLLER in controllers.split(","):
            for mount in dict.fromkeys((controllers, V1_CONTROLLER)):
                yield from (quota for folder in _folders(GROUPS_ROOT / mount, name) if (quota := _v1_quota(folder)))


def _folders(root: Path, name: str) -> list[Path]:
    """The folders of a group and of those around it. In a container only the root may be there: it is the group then."""
    folder = root / name.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _v2_quota(folder: Path) -> float | None:
    """``cpu.max`` holds "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    words = _words(folder / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _v1_quota(folder: Path) -> float | None:
    """Quota and period in microseconds, a file each; the quota is -1 where there is none."""
    words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
