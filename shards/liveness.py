"""Tell whether a process still lives, from what it left in a file.

A process's number alone does not tell: another process may have the number by now, and in another container the number means
another process. So a mark holds the kernel's boot, the namespace of the numbers, and when the process started. That time is in
the kernel's own ticks, which no setting of a clock moves.
"""

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE_FIELD, STARTED_FIELD = 0, 19  # of /proc/PID/stat, counted behind the name of the program


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """What tells one process from all others: `boot` of its kernel, `namespace` of `process`, its number there.

    `started` is in ticks of the kernel since its boot.
    """

    host: str
    boot: str
    namespace: int
    process: int
    started: int

    @classmethod
    def of_this(cls) -> "ProcessMark":
        """The mark of this process."""
        return cls(
            host=socket.gethostname(),
            boot=boot_id(),
            namespace=process_namespace(),
            process=os.getpid(),
            started=_started(os.getpid()) or 0,
        )

    @classmethod
    def parse(cls, value: Any) -> "ProcessMark":
        """The mark in a JSON object of its fields. Raises ValueError where it is none."""
        kinds = {"host": str, "boot": str, "namespace": int, "process": int, "started": int}
        if not isinstance(value, dict) or any(type(value.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError("it names no process")
        return cls(**{name: value[name] for name in kinds})

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether the process runs, or ran, under the kernel of this one, in a container perhaps."""
        return self.boot == boot_id()

    @property
    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where this can't be told from here, from another container or host."""
        if not self.is_of_this_kernel or self.namespace != process_namespace():
            return None
        return _started(self.process) != self.started


@functools.cache
def boot_id() -> str:
    """What names the present run of this machine's kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"host {socket.gethostname()}"


def process_namespace() -> int:
    """The number of the namespace that process numbers here belong to; 0 where the system does not tell."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def is_running(process: int) -> bool:
    """Whether the process of this number, here, can still do anything."""
    return _started(process) is not None


def _started(process: int) -> int | None:
    """When a process started, in ticks since the boot; None where it has ended, or waits for its parent to notice."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[STATE_FIELD] in (b"Z", b"X") else int(fields[STARTED_FIELD])
