"""Estimate how long the stages will take: beforehand, and corrected by how long they took.

What is expected follows from the options, from the rate of a few training steps, and from what other rates usually are (on one
core of a server). It is right to a factor of two; the time left, during a stage, to some percent.
"""

import time
from collections.abc import Callable, Mapping

from spkid_dist.config.bench import BenchConfig

RUN_SECONDS = 5.0  # of a run of training steps, or of scoring: fewer of them where the machine is slow
LONGEST_SECONDS = 2 * RUN_SECONDS  # of a run that turns out slower: it ends early
STAGE_SECONDS = 1.0  # of each stage: what comes before its runs
TELLING_SECONDS, MOST_CORRECTION = (
    10.0,
    3.0,
)  # from when on the stages that have ended correct those to come, and how much
PROCESS_SECONDS = 5.0  # from the start of a process to the end of its imports
COPIED_BYTES, SHARDED_BYTES, STREAMED_WINDOWS = 5e9, 1e8, 2e6  # a second
LIMIT_COPIES, SHARD_CASES, STREAM_CASES, TRAIN_CASES, SCORE_CASES, PLACES = 20, 3, 6, 3, 3, 4
SAY_SECONDS = 15.0  # from one line to the next, within a stage


def expected_seconds(
    config: BenchConfig, steps_rate: float | None, num_features: int, process_counts: list[int]
) -> dict[str, float]:
    """Seconds of each stage, by its name.

    Args:
        config: the options.
        steps_rate: windows/s of training steps of all ranks; None where it is not known: as long as a run may take.
        num_features: D.
        process_counts: how many processes `scaling` trains with, one after the other.
    """
    rounds = config.repeats + 1
    run = RUN_SECONDS if steps_rate is None else min(RUN_SECONDS, config.frames / steps_rate)
    frame_bytes = 4 * num_features * config.frames
    seconds = {
        "limits": rounds * LIMIT_COPIES * config.buffer_bytes / COPIED_BYTES,
        "shard": rounds * SHARD_CASES * frame_bytes / SHARDED_BYTES,
        "stream": rounds * STREAM_CASES * config.frames / STREAMED_WINDOWS,
        "train": rounds * TRAIN_CASES * run,
        "score": rounds * SCORE_CASES * run / 3,  # one pass of a step's three
        "resume": config.repeats * PLACES * PROCESS_SECONDS,
        "scaling": config.repeats * sum(PROCESS_SECONDS * (1 + (number > 1)) + 2 * run for number in process_counts),
    }
    return {name: STAGE_SECONDS + of_runs for name, of_runs in seconds.items()}


class Timetable:
    """Says how long the stages will take, and now and then how long is left.

    Args:
        expected: seconds of each stage, in their order.
        say: prints a line.
        clock: seconds, from anywhere.
    """

    def __init__(
        self, expected: Mapping[str, float], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected, self._say, self._clock = dict(expected), say, clock
        self._taken: dict[str, float] = {}
        self._stage: str | None = None
        self._began = self._said = clock()
        self._share = 0.0

    def announce(self) -> None:
        """Say what all of it will take."""
        each = ", ".join(f"{name} {readable_seconds(seconds)}" for name, seconds in self._expected.items())
        total = readable_seconds(sum(self._expected.values()))
        self._say(f"this takes about {total}" + (f": {each}" if len(self._expected) > 1 else ""))

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self._stage, self._share = stage, 0.0
        self._began = self._said = self._clock()
        number = list(self._expected).index(stage) + 1
        self._say(f"measuring: {stage} ({number} of {len(self._expected)}); about {readable_seconds(self.left())} left")

    def at(self, share: float) -> None:
        """So much of the stage is done."""
        self._share = max(self._share, min(share, 1.0))
        if self._stage is not None and self._clock() - self._said >= SAY_SECONDS:
            self._said = self._clock()
            self._say(f"  {self._stage}: {self._share:.0%} done; about {readable_seconds(self.left())} left")

    def end(self) -> None:
        """The stage has ended."""
        assert self._stage is not None
        self._taken[self._stage] = self._clock() - self._began
        self._stage = None

    def left(self) -> float:
        """Seconds until all stages have ended, about."""
        expected = sum(self._expected[name] for name in self._taken)
        factor = sum(self._taken.values()) / expected if expected >= TELLING_SECONDS else 1.0
        factor = min(max(factor, 1 / MOST_CORRECTION), MOST_CORRECTION)
        left = sum(
            seconds for name, seconds in self._expected.items() if name not in self._taken and name != self._stage
        )
        return left * factor + self._left_of_stage(factor)

    def _left_of_stage(self, factor: float) -> float:
        if self._stage is None:
            return 0.0
        elapsed = self._clock() - self._began
        if self._share < 0.1:  # too early to tell by it
            return max(0.0, self._expected[self._stage] * factor - elapsed)
        return elapsed / self._share * (1 - self._share)


def readable_seconds(seconds: float) -> str:
    """A duration that is about right: 40 s, 3 minutes."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
