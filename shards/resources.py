"""Find what this process was granted of its machine: CPUs by its affinity and control groups, memory by its control groups.

`taskset`, a batch system or a container may grant a process fewer CPUs than the machine has: by the CPUs that it may
run on (its affinity), and by the CPU time that its control groups grant (a quota, as `docker run --cpus` sets it).
OpenMP, and so torch, looks at the first only; threads beyond the quota make each other wait.

A process is in a group, and that in others around it, each of which may limit it. Version 2 has one tree for all
controllers, version 1 a tree for each.

Source: docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html.
"""

import os
from collections.abc import Iterator
from pathlib import Path

PROCESS_GROUPS = Path("/proc/self/cgroup")
GROUPS_ROOT = Path("/sys/fs/cgroup")
MEMORY_FACTS = Path("/proc/meminfo")


def available_cpus() -> int:
    """CPUs that this process may use, 1 or more: by its affinity and the quotas of its control groups, rounded down."""
    by_affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([by_affinity, *granted_cpus()])))


def granted_cpus() -> list[float]:
    """The CPUs that each group grants, where it limits them."""
    quotas = [_v2_quota(folder) if version == 2 else _v1_quota(folder) for version, folder in group_folders("cpu")]
    return [quota for quota in quotas if quota]


def free_bytes() -> list[int]:
    """The bytes of memory that each group still grants, where it limits them.

    What files have in memory counts as free: the system gives it up when it is needed. Datasets lie there.
    """
    found = []
    for version, folder in group_folders("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (words_of(folder / name) for name in names)
        if len(limit) == len(used) == 1 and limit[0].isdigit() and used[0].isdigit():
            taken = int(used[0]) - _bytes_of_files(folder, version)
            found.append(max(0, int(limit[0]) - max(0, taken)))
    return found


def memory_left() -> int | None:
    """The bytes of memory that this process can still take: what the machine has left, and its groups grant; None: unknown."""
    words = words_of(MEMORY_FACTS)
    left = [int(words[words.index("MemAvailable:") + 1]) * 1024] if "MemAvailable:" in words else []
    return min([*left, *free_bytes()], default=None)


def group_folders(controller: str) -> Iterator[tuple[int, Path]]:
    """The folders of the groups that control `controller`, each with its version: this process's own, and those around it."""
    try:
        lines = PROCESS_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or no /proc
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            yield from ((2, folder) for folder in _folders(GROUPS_ROOT, name))
        elif controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                yield from ((1, folder) for folder in _folders(GROUPS_ROOT / mount, name))


def _folders(root: Path, name: str) -> list[Path]:
    """The folders of a group and of those around it. In a container only the root may be there: it is the group then."""
    folder = root / name.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _v2_quota(folder: Path) -> float | None:
    """``cpu.max`` holds "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    words = words_of(folder / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _v1_quota(folder: Path) -> float | None:
    """Quota and period in microseconds, a file each; the quota is -1 where there is none."""
    words = [*words_of(folder / "cpu.cfs_quota_us"), *words_of(folder / "cpu.cfs_period_us")]
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _bytes_of_files(folder: Path, version: int) -> int:
    words = words_of(folder / "memory.stat")
    values = dict(zip(words[::2], words[1::2], strict=False))
    prefix = "" if version == 2 else "total_"
    return sum(int(values.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))


def words_of(path: Path) -> list[str]:
    """The words in a file; none where it can't be read."""
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
