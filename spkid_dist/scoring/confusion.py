"""Compute error rates with confidence intervals, also by length, and who is taken for whom."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964  # two-sided 95 % of the normal distribution
WORST_PAIRS = 10
LENGTH_GROUPS = 8


def wilson_interval(errors: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion, for independent trials. Source: Wilson, JASA 22, 1927."""
    rate, z2 = errors / trials, Z95 * Z95
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def ratio_interval(errors: NDArray[np.int64], trials: NDArray[np.int64]) -> tuple[float, float]:
    """The 95 % interval of sum(errors) / sum(trials) over clusters (U,), by the ratio estimator's variance.

    The frames of an utterance are alike, so utterances are what is drawn at random. Source: Cochran, Sampling
    Techniques, 3rd ed., 1977, section 6.4. With fewer than two clusters, or no spread, the clusters count as trials.
    """
    clusters, rate = len(trials), errors.sum() / trials.sum()
    residuals = errors - rate * trials
    if clusters < 2 or not residuals.any():
        return wilson_interval(round(rate * clusters), clusters)
    half = Z95 * sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / trials.sum()
    return max(0.0, float(rate - half)), min(1.0, float(rate + half))


def worst_pairs(
    true: NDArray[np.int64], found: NDArray[np.int64], most: int = WORST_PAIRS
) -> list[tuple[int, int, int]]:
    """(true class, found class, how often) of the most frequent confusions, most frequent first."""
    wrong = true != found
    counts = Counter(zip(true[wrong].tolist(), found[wrong].tolist(), strict=True))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(a, b, count) for (a, b), count in ordered[:most]]


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """`errors` of `total`, and the 95 % interval of their rate."""

    errors: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """Errors a trial."""
        return self.errors / self.total

    def __str__(self) -> str:
        """The rate as it is printed."""
        return f"{self.errors} of {self.total} = {self.rate:.2%} (95 % interval {self.low:.2%} to {self.high:.2%})"

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"rate": self.rate}


@dataclass(frozen=True, kw_only=True)
class LengthGroup:
    """The error rate of the utterances of `first` to `last` frames."""

    first: int
    last: int
    utterances: ErrorRate


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Error rates over the utterances whose true speaker is known; `confusions` as `worst_pairs`."""

    num_unknown: int
    utterances: ErrorRate
    frames: ErrorRate
    lengths: list[LengthGroup]
    confusions: list[tuple[int, int, int]]

    def say(self, speakers: Sequence[str], say: Callable[[str], None]) -> None:
        """Print them, a line each."""
        say(f"utterance errors: {self.utterances}")
        say(f"frame errors: {self.frames}")
        if len(self.lengths) > 1:
            say("utterance errors by length:")
        for group in self.lengths if len(self.lengths) > 1 else ():
            say(f"  {group.first:>6} to {group.last:>6} frames: {group.utterances}")
        for a, b, count in self.confusions:
            say(f"  {speakers[a]} taken for {speakers[b]}: {count}")

    def facts(self, speakers: Sequence[str]) -> dict[str, Any]:
        """As JSON values."""
        return {
            "utterances_of_unknown_speakers": self.num_unknown,
            "utterance_errors": self.utterances.facts(),
            "frame_errors": self.frames.facts(),
            "utterance_errors_by_frames": [
                {"first": group.first, "last": group.last} | group.utterances.facts() for group in self.lengths
            ],
            "confusions": [{"true": speakers[a], "found": speakers[b], "count": n} for a, b, n in self.confusions],
        }


def error_rates(
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    frames: NDArray[np.int64],
    windows: NDArray[np.int64],
    wrong_windows: NDArray[np.int64],
) -> ErrorRates | None:
    """Error rates of U utterances, all arrays (U,); None where no true speaker is known (class >= 0)."""
    known = true >= 0
    if not known.any():
        return None
    wrong = (true != found)[known]
    low, high = ratio_interval(wrong_windows[known], windows[known])
    return ErrorRates(
        num_unknown=int((~known).sum()),
        utterances=error_rate(wrong),
        frames=ErrorRate(errors=int(wrong_windows[known].sum()), total=int(windows[known].sum()), low=low, high=high),
        lengths=rates_by_length(frames[known], wrong),
        confusions=worst_pairs(true[known], found[known]),
    )


def rates_by_length(frames: NDArray[np.int64], wrong: NDArray[np.bool_]) -> list[LengthGroup]:
    """The error rates of up to 8 groups of about equally many utterances, by their number of frames (U,), shortest first.

    Equally many, because then the groups' rates are equally sure. Utterances of as many frames are in the same group.
    """
    quantiles = np.quantile(frames, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS, method="lower")
    number = np.searchsorted(np.unique(quantiles), frames, side="left")
    groups = []
    for group in np.unique(number):
        members = number == group
        first, last = int(frames[members].min()), int(frames[members].max())
        groups.append(LengthGroup(first=first, last=last, utterances=error_rate(wrong[members])))
    return groups


def error_rate(wrong: NDArray[np.bool_]) -> ErrorRate:
    """How many of U >= 1 utterances are wrong, (U,), with the interval for independent utterances."""
    errors, total = int(wrong.sum()), len(wrong)
    low, high = wilson_interval(errors, total)
    return ErrorRate(errors=errors, total=total, low=low, high=high)
