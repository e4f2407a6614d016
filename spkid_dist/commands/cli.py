"""The entry of the command line: ``spkid COMMAND [flags]``.

Signals are caught before anything else is imported, as that takes seconds; the commands are in `spkid_dist.commands.registry`.

Exit codes: 0 done, 1 failed, 2 used wrongly, 75 stopped when told to and to be continued, 130 interrupted by Ctrl-C; 143 and
129 where SIGTERM and SIGHUP ended a command that has nothing to continue.
"""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from spkid_dist.process.interruption import ENDING, Interrupted, catch_signals, end_quietly

TRAINING = "train"
# Rounds that a thread of OpenMP spins while it waits for the others, before it sleeps: some 50 us, as long as such a wait takes
# where each thread has a core. The library's own 300,000 are milliseconds, taken from whoever the others wait for.
SPINS = "1000"
EXIT_STOPPED = 75  # as shards.errors has it, which is not imported yet where this is needed
# A training that is told to stop before it has begun can be started again, so its launcher should requeue it.
STOPPING = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1), EXIT_STOPPED)


def main() -> NoReturn:
    """The entry of the console command ``spkid``."""

    def run() -> int:
        from spkid_dist.commands.registry import run_arguments

        return run_arguments(sys.argv[1:])

    _leave_with(run, sys.argv[1:2] == [TRAINING])


def run_command(command: str) -> NoReturn:
    """Run one command with the process's arguments as its flags."""

    def run() -> int:
        from spkid_dist.commands.registry import run_flags

        return run_flags(command)

    _leave_with(run, command == TRAINING)


def _leave_with(run: Callable[[], int], is_training: bool) -> NoReturn:
    """End the process with the exit code that `run` returns, or with that of the signal that interrupts it."""
    exit_codes = ENDING | STOPPING if is_training else ENDING
    try:
        catch_signals(exit_codes)
        _bound_spinning()
        _print_anything()
        exit_code = run()
        end_quietly(exit_code)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        exit_code = exit_codes[number]
        _say_interrupted(number, exit_code)
        end_quietly(exit_code)
    sys.exit(exit_code)


def _bound_spinning() -> None:
    """Have OpenMP's waiting threads sleep soon, unless the user said how they wait. It is read when torch is loaded."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _say_interrupted(number: signal.Signals, exit_code: int) -> None:
    text = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    if exit_code == EXIT_STOPPED:
        text += " before the training began"
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"spkid: {text}", file=sys.stderr, flush=True)


class _Terminal(io.FileIO):
    """A terminal that may be closed at any time: what is written from then on goes nowhere, and the work goes on."""

    def write(self, data: Any, /) -> int:
        """Write what the terminal takes."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def _print_anything() -> None:
    """Escape what the output's encoding lacks, such as a speaker's name or a path that is not UTF-8."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.isatty():
            raw = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True))
        else:
            stream.reconfigure(errors="backslashreplace")
