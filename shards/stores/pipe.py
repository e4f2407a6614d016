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
from typing import IO

from shards.errors import InputError, UsageError
from shards.plaintext import NAME_MARK, PIPE_PREFIX, shown_place
from shards.stores.retry import MESSAGE_CHARACTERS, Attempt, RetryPolicy, WrongBytesError, writing_to_target

CHUNK_BYTES = 1 << 20
SLOWEST_BYTES_PER_SECOND = 100_000  # a command may read from a tape, or over a slow line


@dataclass(frozen=True)
class PipeFiles:
    """The files that `command`, with ``{name}`` replaced, writes to its standard output. It is run by /bin/sh.

    A command is ended that writes nothing for `policy.timeout_seconds`, or goes on for so long after its last byte; that
    takes longer than `policy.total_seconds` and a second more for each 100 kB; or that writes more than was asked for.
    Nothing is repeated: what fails is the command's to repeat.

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

    def read(self, name: str, most_bytes: int, check: Callable[[bytes], None] = lambda _data: None) -> bytes:
        """A whole file; `check` raises WrongBytesError where it is not what was written.

        Raises:
            InputError: as `download`.
            WrongBytesError: the command writes more than `most_bytes`.
        """
        pieces: list[bytes] = []
        self._run(name, pieces.append, most_bytes, threading.Event())
        data = b"".join(pieces)
        check(data)
        return data

    def download(self, name: str, target: IO[bytes], num_bytes: int, stop: threading.Event | None = None) -> None:
        """Write a whole file of `num_bytes` into the open file `target`, replacing what is in it.

        `stop`, once set, ends the command.

        Raises:
            InputError: the command failed, or wrote nothing for too long, or too slowly.
            TargetError: `target` can't be written.
            WrongBytesError: it wrote another number of bytes.
        """

        def write(chunk: bytes) -> None:
            with writing_to_target():
                target.write(chunk)

        with writing_to_target():
            target.seek(0)
            target.truncate()
        written = self._run(name, write, num_bytes, stop or threading.Event())
        if written != num_bytes:
            raise WrongBytesError(f"{written} bytes, expected {num_bytes}")

    def _run(self, name: str, use: Callable[[bytes], object], most_bytes: int, stop: threading.Event) -> int:
        """Call `use` for what the command writes, up to `most_bytes`; returns their number."""
        where, command, written = self.where(name), self.command.replace(NAME_MARK, shlex.quote(name)), 0
        with tempfile.TemporaryFile() as messages, _shell(command, messages) as process:
            for chunk in self._chunks(process, where, stop):
                written += len(chunk)
                if written > most_bytes:
                    raise WrongBytesError(f"more than the {most_bytes} bytes expected")
                use(chunk)
            status = self._status(process, where)
            if status:
                size = messages.seek(0, os.SEEK_END)
                messages.seek(max(0, size - MESSAGE_CHARACTERS))
                tail = " ".join(messages.read().decode(errors="replace").split())
                raise InputError(f"{where}: the command ended with status {status}: {tail or 'it said nothing'}")
        return written

    def _status(self, process: "subprocess.Popen[bytes]", where: str) -> int:
        try:
            return process.wait(self.policy.timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{where}: the command wrote its output, but went on for {error.timeout:.0f} s more and was ended; try it "
                "in a shell"
            ) from None

    def _chunks(self, process: "subprocess.Popen[bytes]", where: str, stop: threading.Event) -> Iterator[bytes]:
        """What the command writes, until it closes its output."""
        assert process.stdout is not None
        attempt = Attempt(self.policy.total_seconds, SLOWEST_BYTES_PER_SECOND)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            last = time.monotonic()
            while attempt.seconds_left > 0:
                if selector.select(min(1.0, self.policy.timeout_seconds)):
                    chunk = os.read(process.stdout.fileno(), CHUNK_BYTES)
                    if not chunk:
                        return
                    last = time.monotonic()
                    attempt.received += len(chunk)
                    yield chunk
                elif time.monotonic() - last > self.policy.timeout_seconds or stop.is_set():
                    raise InputError(
                        f"{where}: the command wrote nothing for {time.monotonic() - last:.0f} s and was ended; try it "
                        "in a shell"
                    )
        raise InputError(
            f"{where}: the command wrote only {attempt.received} bytes in {self.policy.total_seconds:.0f} s or more, and was "
            "ended; try it in a shell"
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
