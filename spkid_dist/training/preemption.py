"""Take requests to stop a training, and let its ranks agree on the same step.

SIGTERM, SIGHUP or SIGUSR1 to any of the processes, or a file STOP in `save_path`. A signal that the process ignored before,
as SIGHUP under `nohup`, stays ignored. Until `hold`, while nothing is trained yet that could be lost, a signal ends the
process at once; from then on it is noted. The ranks meet in one small all-reduce about once a second (`RankPoll`), not in each
step, which may take less time than that; which steps these are follows from what was reduced, so it is the same on all ranks.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from spkid_dist.process.interruption import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOP_NAME = "STOP"
SECONDS_BETWEEN = 1.0
MOST_STEPS_BETWEEN = {
    "cpu": 64,
    "cuda": 512,
}  # should steps suddenly take longer; a GPU waits for the host at each meeting


class StopRequest:
    """Notes the requests that reach this process; a context, which puts the signals' handlers back when left."""

    def __init__(self) -> None:
        self._noted = [False] * len(SIGNALS)
        self._stop_file: Path | None = None
        self._before: dict[int, Any] = {}
        self._has_raised = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python has handlers nowhere else
            wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's SIGHUP
            self._before = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._noted[SIGNALS.index(signal.Signals(number))] = True
        if self._stop_file is None and not self._has_raised:
            self._has_raised = True
            raise Interrupted(number)

    def hold(self, stop_file: Path) -> None:
        """From now on note signals, and look at `stop_file` too. Raises Interrupted where one was received before."""
        self._stop_file = stop_file
        for number, noted in zip(SIGNALS, self._noted, strict=True):
            if noted:  # a library has caught what was raised then
                raise Interrupted(number)

    def flags(self, look_at_file: bool) -> list[float]:
        """1 for each of SIGNALS that was received, and for the stop file if it exists and is to be looked at."""
        assert self._stop_file is not None
        exists = look_at_file and self._stop_file.exists() and not self._stop_file.is_dir()
        return [*map(float, self._noted), float(exists)]

    def remove_file(self) -> None:
        """Delete the stop file: its request is done."""
        if self._stop_file is not None:
            with contextlib.suppress(OSError):  # on a disk that can't be written; nothing hangs on it
                self._stop_file.unlink(missing_ok=True)


class Timer:
    """Says when `seconds` have gone by, again and again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Begin the time anew."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Whether it has gone by; if so the time begins anew."""
        due = time.monotonic() - self._since >= self._seconds
        if due:
            self.restart()
        return due


@dataclass(frozen=True)
class PollResult:
    """What the ranks found together: why to stop, or None; whether rank 0's clock calls for a checkpoint; a bad loss."""

    stop: str | None
    checkpoint_due: bool
    not_finite: bool


class RankPoll:
    """Lets the ranks look together, about once a second; all must call `poll` after the same steps.

    `not_finite` is whether this rank had a bad loss: a scalar on the device, 0 or 1.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        request: StopRequest,
        checkpoint_minutes: float | None,
        not_finite: Callable[[], torch.Tensor],
    ) -> None:
        self._accelerator = accelerator
        self._request = request
        self._not_finite = not_finite
        self._checkpoints = Timer(math.inf if checkpoint_minutes is None else checkpoint_minutes * 60)
        self._looked = time.monotonic()
        self._steps, self._interval = 0, 1
        self._most_steps = MOST_STEPS_BETWEEN.get(accelerator.device.type, MOST_STEPS_BETWEEN["cpu"])

    def saved(self) -> None:
        """Begin the time to the next checkpoint anew."""
        self._checkpoints.restart()

    def poll(self, now: bool = False, steps: int = 1) -> PollResult | None:
        """What is to be done after these steps; None if the ranks don't meet now. They do wherever all say `now`."""
        self._steps += steps
        if self._steps < self._interval and not now:
            return None
        is_main = self._accelerator.is_main_process
        due = is_main and self._checkpoints.is_due()
        ours = [*self._request.flags(look_at_file=is_main), float(due), time.monotonic() - self._looked]
        device = self._accelerator.device
        vector = torch.cat([torch.tensor(ours, dtype=torch.float32, device=device), self._not_finite().reshape(1)])
        *stops, due_sum, elapsed, bad = self._accelerator.reduce(vector, reduction="sum").tolist()
        self._set_interval(elapsed / self._accelerator.num_processes / self._steps, restart=now)
        self._steps, self._looked = 0, time.monotonic()
        reasons = [signal.Signals(number).name for number in SIGNALS] + [f"the file {STOP_NAME}"]
        found = next((reason for reason, count in zip(reasons, stops, strict=True) if count), None)
        return PollResult(found, due_sum > 0, bad > 0)

    def _set_interval(self, seconds_per_step: float, restart: bool) -> None:
        """Choose the steps to the next meeting: from 1 on, as after `now` steps of another kind may follow, then more."""
        wanted = int(SECONDS_BETWEEN / max(seconds_per_step, 1e-9))
        self._interval = 1 if restart else max(1, min(wanted, 2 * self._interval, self._most_steps))
