"""Read files from a command: ``pipe:aws s3 cp s3://bucket/train/{name} -`` writes the file {name} to its standard output.

Commands are what the user gave as a dataset's place, never what a manifest says: of a dataset come only file names, which
the manifest's check has compared with the format's own.
"""

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

from shards.errors import InputError, UsageError
from shards.plaintext import NAME_MARK, PIPE_PREFIX, shown_place
from shards.stores.retry import MESSAGE_CHARACTERS, RetryPolicy, WrongBytesError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PipeFiles:
    """The files that `command`, with ``{name}`` replaced, writes to its standard output. It is run by /bin/sh.

    A command that writes nothing for `policy.timeout_seconds` is ended; nothing is repeated: what fails is the command's
    to repeat.

    Raises:
        UsageError: ``{name}`` is not in the command.
    """

    command: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Check the command."""
        if NAME_MARK not in self.command:
            raise UsageError(
                f"{self}: expected {NAME_MARK} in the command, where the name of the file goes, as in "
                f"'{PIPE_PREFIX}aws s3 cp s3://bucket/train/{NAME_MARK} -'"
            )

    def __str__(self) -> str:
        return shown_place(PIPE_PREFIX + self.command)

    def where(self, name: str) -> str:
        """The command that writes the file, for messages: without what may be secret in it."""
        return str(self).replace(NAME_MARK, name)

    def read(self, name: str, check: Callable[[bytes], None] = lambda _data: None) -> bytes:
        """A whole file; `check` raises WrongBytesError where it is not what was written. Raises InputError as `download`."""
        buffer = BytesIO()
        self._run(name, buffer, threading.Event())
        data = buffer.getvalue()
        check(data)
        return data

    def download(self, name: str, target: Path, num_bytes: int, stop: threading.Event | None = None) -> None:
        """Write a whole file of `num_bytes` to `target`, replacing what is there; `stop`, once set, ends the command.

        Raises:
            InputError: the command failed, or wrote nothing for too long.
            WrongBytesError: it wrote another number of bytes.
        """
        with target.open("wb") as file:
            self._run(name, file, stop or threading.Event())
        if target.stat().st_size != num_bytes:
            raise WrongBytesError(f"{target.stat().st_size} bytes, expected {num_bytes}")

    def _run(self, name: str, target: IO[bytes], stop: threading.Event) -> None:
        where, command = self.where(name), self.command.replace(NAME_MARK, shlex.quote(name))
        with tempfile.TemporaryFile() as messages, _shell(command, messages) as process:
            for chunk in self._chunks(process, where, stop):
                target.write(chunk)
            status = process.wait()
            if status:
                size = messages.seek(0, os.SEEK_END)
                messages.seek(max(0, size - MESSAGE_CHARACTERS))
                tail = " ".join(messages.read().decode(errors="replace").split())
                raise InputError(f"{where}: the command ended with status {status}: {tail or 'it said nothing'}")

    def _chunks(self, process: subprocess.Popen[bytes], where: str, stop: threading.Event) -> Iterator[bytes]:
        """What the command writes, until it closes its output."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            last = time.monotonic()
            while True:
                if selector.select(min(1.0, self.policy.timeout_seconds)):
                    chunk = os.read(process.stdout.fileno(), CHUNK_BYTES)
                    if not chunk:
                        return
                    last = time.monotonic()
                    yield chunk
                elif stop.is_set() or time.monotonic() - last > self.policy.timeout_seconds:
                    raise InputError(
                        f"{where}: the command wrote nothing for {time.monotonic() - last:.0f} s and was ended; try it "
                        "in a shell"
                    )


@contextlib.contextmanager
def _shell(command: str, messages: IO[bytes]) -> Iterator["subprocess.Popen[bytes]"]:
    """A command as a process group of its own, which is ended with the block."""
    # The command is the user's own, from the command line: a shell is what it is for.
    process = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=messages,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with process:  # closes the pipe and waits
            pass
