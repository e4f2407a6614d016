"""Tell whether a process still lives, from what it left in a file, or in the name of one.

The answer is yes, no, or that it can't be told from here. A process's number alone does not tell: another process may have the
number by now, and in another container the number means another process. So a mark holds the kernel's boot, the namespaces of
numbers and of times, and when the process started. That time is in the kernel's own ticks, which no setting of a clock moves.
Nobody is taken for dead because nothing is seen of them: /proc may be of another namespace, or hide what others run.
"""

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE_FIELD, STARTED_FIELD = 0, 19  # of /proc/PID/stat, counted behind the name of the program
ENDED = (b"Z", b"X")  # it does nothing any more, and waits for its parent to notice
DIGEST_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class ProcessMark:
    """What tells one process from all others: `boot` of its kernel, `namespace` of `process`, its number there.

    `started` is in ticks of the kernel since its boot, as they are counted in the namespace of times `clock`. 0 or an empty
    text is for what the system does not tell.
    """

    host: str
    boot: str
    namespace: int
    process: int
    started: int
    clock: int = 0

    @classmethod
    def of_this(cls) -> "ProcessMark":
        """The mark of this process."""
        return cls(
            host=socket.gethostname(),
            boot=boot_id(),
            namespace=_namespace("pid"),
            process=os.getpid(),
            started=_own_start(),
            clock=_namespace("time"),
        )

    @classmethod
    def parse(cls, value: Any) -> "ProcessMark":
        """The mark in a JSON object of its fields. Raises ValueError where it is none."""
        kinds = {"host": str, "boot": str, "namespace": int, "process": int, "started": int, "clock": int}
        if isinstance(value, dict):
            value = {"clock": 0} | value  # marks of version 0.1 have none
        if not isinstance(value, dict) or any(type(value.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError("it names no process")
        if not 0 < value["process"] < 2**31:
            raise ValueError("it names no process")
        return cls(**{name: value[name] for name in kinds})

    @property
    def kernel_digest(self) -> str:
        """The run of the kernel as digits for a name; another one each time where the system does not tell."""
        return _digest(self.boot) if self.boot else os.urandom(DIGEST_DIGITS // 2).hex()

    @property
    def place_digest(self) -> str:
        """Kernel and namespaces as digits for a name: within one place, processes know each other by number and start."""
        return _digest(f"{self.kernel_digest} {self.namespace} {self.clock}")

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether the process runs, or ran, under the kernel of this one, in a container perhaps."""
        return bool(self.boot) and self.boot == boot_id()

    @property
    def lives(self) -> bool | None:
        """Whether the process lives; None where this can't be told from here, of another container or host."""
        here = (_namespace("pid"), _namespace("time"))
        if not self.is_of_this_kernel or not self.namespace or (self.namespace, self.clock) != here:
            return None
        return process_lives(self.process, self.started)


def process_lives(process: int, started: int) -> bool | None:
    """Whether the process that has, or had, this number in this namespace lives; None where this can't be told.

    Args:
        process: its number.
        started: in ticks since the boot; 0 where it is not known.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    fields = _stat(process) if _sees_own_processes() else []
    if not fields or not started:
        return None  # somebody has the number, but who?
    return int(fields[STARTED_FIELD]) == started and fields[STATE_FIELD] not in ENDED


@functools.cache
def boot_id() -> str:
    """What names the present run of this machine's kernel; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace(kind: str) -> int:
    """The number of this process's namespace of that kind; 0 where the system does not tell."""
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino
    except OSError:
        return 0


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=DIGEST_DIGITS // 2).hexdigest()


def _sees_own_processes() -> bool:
    """Whether /proc has the numbers of this process's own namespace: one that was mounted outside has others."""
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith(b"NSpid:")), None)
    return numbers == [b"%d" % os.getpid()]


def _own_start() -> int:
    fields = _stat("self")
    return int(fields[STARTED_FIELD]) if fields else 0


def _stat(process: int | str) -> list[bytes]:
    """The fields of /proc/PID/stat behind the name of the program; none where it can't be read."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
