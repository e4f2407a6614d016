"""Measure how fast a run is, where its time goes, and how long the training still takes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

from spkid_dist.process.cpuwait import CoreWait

Activity = Literal["start", "training", "waiting", "validation", "checkpoints"]


class Stopwatch:
    """Counts seconds of each activity, one at a time: an inner one (`during`) interrupts the outer.

    `training` is the steps without `waiting` for data; `validation` has the weights and curves written after it. `windows`
    counts those of all ranks together. `core_wait` tells how long this process waited for cores that others use.
    """

    def __init__(self) -> None:
        self.seconds: dict[Activity, float] = dict.fromkeys(
            ("start", "training", "waiting", "validation", "checkpoints"), 0.0
        )
        self.windows = 0
        self.core_wait = CoreWait()
        self._activity: Activity = "start"
        self._since = self._began = self._epoch_began = self._looked = time.perf_counter()
        self._waited = 0.0
        self._position = 0

    @contextlib.contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Count the time of the block as `activity`, and go on with the one before."""
        before = self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, activity: Activity) -> Activity:
        now, before = time.perf_counter(), self._activity
        self.seconds[before] += now - self._since
        self._since, self._activity = now, activity
        return before

    def begin_epoch(self, position: int) -> None:
        """An epoch, or the rest of it, begins at window `position`."""
        self._epoch_began = self._looked = time.perf_counter()
        self._waited, self._position = self.seconds["waiting"], position

    def look(self, position: int) -> tuple[float, float]:
        """Windows a second since the last look, at window `position` of the epoch; share of the epoch spent waiting."""
        now, windows = time.perf_counter(), position - self._position
        rate = windows / (now - self._looked)
        self._looked, self._position = now, position
        self.windows += windows
        return rate, (self.seconds["waiting"] - self._waited) / (now - self._epoch_began)

    def seconds_left(self, steps_done: int, steps_left: int) -> float:
        """Seconds for `steps_left` at the rate of this run's `steps_done`, with all that was between them."""
        return (time.perf_counter() - self._began) / steps_done * steps_left


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss; hours go on counting beyond a day."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
