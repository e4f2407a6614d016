"""Run commands as users do, each in a process of its own, and say what became of it: exit code, output, time, memory.

Starting Python and loading torch takes seconds, so most processes are forked from this one, which has imported everything and
done nothing with it; the child then does what ``python -m spkid_dist`` does, in its own folder and with its own output. A
`fresh` process is started from nothing. Whatever passes the limits of time and memory is killed, with all its children.
"""

import atexit
import contextlib
import ctypes
import multiprocessing.connection
import os
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 60.0
MOST_BYTES = 1 << 30  # of resident memory, the bound that is judged
KILL_BYTES = 3 << 30  # where a process is ended, for the sake of the machine
MOST_OUTPUT = 1 << 20
ENDS_WITHIN = 10.0  # seconds in which the children of an ended process end
CAPABILITIES = 0x20080522  # version 3 of the kernel's interface
LIBRARIES = ("soundfile", "kaldi_native_fbank", "kaldiio", "pyarrow.parquet", "safetensors.torch", "aiohttp", "fsspec")


@dataclass(frozen=True, kw_only=True)
class Process:
    """How a command is run: `words` behind ``spkid``, in `folder`.

    `fresh`: not forked. `powerless`: without root's rights over files. `file_bytes`: no file may grow beyond.
    """

    words: Sequence[str]
    folder: Path
    fresh: bool = False
    powerless: bool = False
    file_bytes: int | None = None
    most_seconds: float = MOST_SECONDS

    @property
    def shown(self) -> str:
        """The command, as a user would type it."""
        return shlex.join(["spkid", *self.words])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a process: its exit code (negative: the signal that ended it), output, seconds, and peak memory.

    `stopped` says by which limit of ours it was killed, if so; `left` is whether it left processes behind.
    """

    code: int
    output: str
    error: str
    seconds: float
    peak_bytes: int
    stopped: str = ""
    left: bool = False


_capset = ctypes.CDLL(None).capset


def import_everything() -> None:
    """Import what the commands import, so that forked processes need not."""
    from spkid_dist.commands.registry import COMMANDS

    for _, module, _ in COMMANDS.values():
        import_module(module)
    for name in LIBRARIES:
        import_module(name)


def run(process: Process) -> Outcome:
    """Run a command to its end."""
    return wait(process, start(process))


def start(process: Process) -> int:
    """Start a command; returns the number of its process, which leads a group of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(process)
    return child


def wait(process: Process, child: int, began: float | None = None) -> Outcome:
    """Wait for the end of a process that was started, or end it at its limits."""
    began = time.monotonic() if began is None else began
    stopped, pause = "", 0.001
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        seconds = time.monotonic() - began
        stopped = "time" if seconds > process.most_seconds else "memory" if _resident(child) > KILL_BYTES else ""
        if stopped:
            _kill_group(child)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    left = not stopped and group_lives(child, ENDS_WITHIN)
    _kill_group(child)
    out, err = (process.folder.parent / f"{child}.{name}" for name in ("out", "err"))
    texts = [_read(path) for path in (out, err)]
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        output=texts[0],
        error=texts[1],
        seconds=time.monotonic() - began,
        peak_bytes=usage.ru_maxrss * 1024,
        stopped=stopped,
        left=left,
    )


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def group_lives(leader: int, seconds: float) -> bool:
    """Whether the group of an ended process still has members after so many seconds."""
    until = time.monotonic() + seconds
    while _members(leader):
        if time.monotonic() > until:
            return True
        time.sleep(0.02)
    return False


def _members(leader: int) -> bool:
    """Whether a group of processes has members other than its leader that have not ended."""
    try:
        os.killpg(leader, 0)  # most groups have none at all
    except ProcessLookupError:
        return False
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, group = (path / "stat").read_bytes().rpartition(b")")[2].split()[:3]
            if int(group) == leader and state != b"Z" and path.name != str(leader):
                return True
    return False


def _read(path: Path) -> str:
    if not path.exists():
        return ""  # it was killed at once
    with path.open("rb") as file:
        text = file.read(MOST_OUTPUT).decode(errors="surrogateescape")
    path.unlink()
    return text


def _become(process: Process) -> None:
    """Turn the forked child into the command; never returns."""
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            path = process.folder.parent / f"{os.getpid()}.{name}"
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(process.folder)
        _set_up(process)
        if process.fresh:
            os.execv(sys.executable, [sys.executable, "-m", "spkid_dist", *process.words])  # noqa: S606
        code = _run_here(process.words)
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported
        traceback.print_exc(file=sys.__stderr__)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _set_up(process: Process) -> None:
    here = process.folder
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "SPKID"))}
    home = {"HOME": str(here), "TMPDIR": str(here.parent / "tmp"), "XDG_CACHE_HOME": str(here / "home-cache")}
    os.environ.clear()
    os.environ.update(kept | home | environment())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if process.file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python starts: writing fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (process.file_bytes, process.file_bytes))
    if process.powerless and _capset(ctypes.byref((ctypes.c_uint32 * 2)(CAPABILITIES, 0)), (ctypes.c_uint32 * 6)()):
        raise OSError("can't give up the rights of root")


def environment() -> dict[str, str]:
    """Variables of all commands: CPUs, one thread each, so that equal runs give equal bytes."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return threads | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def _run_here(words: Sequence[str]) -> int:
    """Do what ``python -m spkid_dist`` does; the exit code."""
    from spkid_dist.commands import cli

    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the process's own
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["spkid", *words]
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of a program: waits for threads
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


def spread(function: Callable[[Any], Any], cases: Sequence[Any], processes: int) -> Iterator[Any]:
    """The results of `function` for all cases, in whatever order, by forked processes that each take every n-th case."""
    readers = {}
    for number in range(min(processes, len(cases))):
        reader, writer = multiprocessing.connection.Pipe(duplex=False)
        child = os.fork()
        if child == 0:
            reader.close()
            _work(function, cases[number::processes], writer)
        writer.close()
        readers[reader] = child
    while readers:
        for reader in multiprocessing.connection.wait(list(readers)):
            try:
                yield reader.recv()  # type: ignore[union-attr]
            except EOFError:
                _, status = os.waitpid(readers.pop(reader), 0)  # type: ignore[index, arg-type]
                if status:
                    raise RuntimeError("a process of the campaign failed: its message is above") from None


def _work(function: Callable[[Any], Any], cases: Iterable[Any], writer: Connection) -> None:
    code = 1
    try:
        for case in cases:
            writer.send(function(case))
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is reported
        traceback.print_exc()
    finally:
        writer.close()
        sys.stderr.flush()
        os._exit(code)
