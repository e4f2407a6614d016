"""End a command cleanly when a signal arrives, with a documented exit code, whenever that is.

Imports the standard library alone, so that a command can call `catch_signals` before its own imports, which take seconds.
The first signal raises `Interrupted` where the main thread is, so that temporary files are removed and worker processes end,
as after Ctrl-C. A second one ends the process at once. A signal that was ignored already, as SIGHUP is under `nohup`, stays
ignored. A training takes over those of its signals that are requests to stop (`spkid_dist.training.preemption`).
"""

import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

# signal -> what a shell reports for a process that it ends: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
ENDING = {number: 128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


class Interrupted(KeyboardInterrupt):
    """The process received signal `number`; like Ctrl-C it is no Exception, which libraries catch and forget."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


class _State:
    """What the handler knows: each signal's exit code, and that of the end which has begun, if one has."""

    exit_codes: Mapping[signal.Signals, int] = ENDING
    ending_with: int | None = None


def catch_signals(exit_codes: Mapping[signal.Signals, int]) -> None:
    """Have these signals raise `Interrupted`; those that this process ignores stay ignored. Main thread only."""
    _State.exit_codes, _State.ending_with = exit_codes, None
    for number in exit_codes:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def end_quietly(exit_code: int) -> None:
    """Flush what was printed; a signal from now on ends the process with `exit_code`, and says nothing."""
    _State.ending_with = exit_code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever read it is gone: Python's own flush at the end would fail too
            _discard(stream)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if _State.ending_with is not None:
        os._exit(_State.ending_with)
    _State.ending_with = _State.exit_codes[signal.Signals(number)]
    raise Interrupted(number)


def _discard(stream: Any) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return
