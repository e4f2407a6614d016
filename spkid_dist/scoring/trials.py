"""Count detection trials in bounded memory: the DET curve and the equal error rate of claimed speakers.

A trial is a pair of an utterance and a claimed speaker of the model. Its score is the claim's log-likelihood ratio against the
other speakers of the model (`spkid_dist.scoring.calibration`). It is a target trial where the claim is true. U utterances of
K speakers make U targets and U (K - 1) others.

DET curve: Martin, Doddington, Kamm, Ordowski, Przybocki, "The DET curve in assessment of detection task performance",
Eurospeech 1997. The equal error rate is where the curve, its operating points joined by straight lines, has as many misses
as false alarms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkid_dist.order import starts_of

# Scores are counted by the upper bits of their float32 pattern, which for numbers >= 0 are in the order of the numbers (as
# in HdrHistogram): bins are 2^-11 of the score wide, whatever its size, and bins of all ranks add up. Numbers below 0 have
# bins of their own.
DROPPED_BITS = 12
INFINITY = 0x7F800000  # its pattern
MAGNITUDE = 0x7FFFFFFF  # the bits without the sign
BINS_OF_A_SIGN = (INFINITY >> DROPPED_BITS) + 1
NUM_BINS = 2 * BINS_OF_A_SIGN


class TrialCounts:
    """Trials by score: `targets` and `others` (NUM_BINS,) int64, best scores first. Every trial is counted."""

    def __init__(self) -> None:
        self.targets = np.zeros(NUM_BINS, np.int64)
        self.others = np.zeros(NUM_BINS, np.int64)

    def add(self, scores: NDArray[np.float64], true: NDArray[np.int64]) -> None:
        """Count all pairs of utterances and speakers: scores (U, K), infinite ones too but not NaN, and true classes (U,)."""
        bins = bins_of(scores)
        rows = np.arange(len(true))
        np.add.at(self.targets, bins[rows, true], 1)
        np.add.at(self.others, bins.ravel(), 1)
        np.subtract.at(self.others, bins[rows, true], 1)


def bins_of(scores: NDArray[np.float64]) -> NDArray[np.int32]:
    """The bin of each score, 0 for the best; of the same shape. -0 is counted as 0."""
    with np.errstate(over="ignore"):  # what float32 can't hold is in the bin of the infinite ones
        patterns = (scores + 0.0).astype(np.float32).view(np.int32)
    patterns ^= (patterns >> 31) & MAGNITUDE  # of numbers below 0 all other bits turn: now in the order of all numbers
    bins: NDArray[np.int32] = BINS_OF_A_SIGN - 1 - (patterns >> DROPPED_BITS)
    return bins


def lowest_scores(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """The lowest score that is counted in each of `bins`: a trial of that bin, or a better one, has this score or more."""
    positive = bins < BINS_OF_A_SIGN
    least = (BINS_OF_A_SIGN - 1 - bins) << DROPPED_BITS
    largest = np.minimum(((bins - BINS_OF_A_SIGN + 1) << DROPPED_BITS) - 1, INFINITY)
    sizes = np.where(positive, least, largest).astype(np.int32).view(np.float32).astype(np.float64)
    lowest: NDArray[np.float64] = np.where(positive, sizes, -sizes)
    return lowest


@dataclass(frozen=True)
class DetCurve:
    """Operating points (P,), from accepting nothing to accepting all: rates of false alarms and of misses.

    A trial is accepted where its score is at least the point's `thresholds` value.
    """

    thresholds: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    misses: NDArray[np.float64]
    num_targets: int
    num_others: int

    @property
    def equal_error(self) -> tuple[float, float]:
        """The rate at which misses and false alarms are equal, and its threshold: linear between the nearest points."""
        difference = self.misses - self.false_alarms  # falls from 1 to -1
        after = int(np.argmax(difference <= 0))
        before = after - 1
        part = float(difference[before] / (difference[before] - difference[after]))
        rate = self.false_alarms[before] + part * (self.false_alarms[after] - self.false_alarms[before])
        if not np.isfinite(self.thresholds[[before, after]]).all():  # accepting nothing has no finite threshold
            return float(rate), float(self.thresholds[after])
        threshold = self.thresholds[before] + part * (self.thresholds[after] - self.thresholds[before])
        return float(rate), float(threshold)


def det_curve(counts: TrialCounts) -> DetCurve | None:
    """The curve through all bins that hold trials; None without a target or without another trial."""
    num_targets, num_others = int(counts.targets.sum()), int(counts.others.sum())
    if num_targets == 0 or num_others == 0:
        return None
    held = np.flatnonzero(counts.targets + counts.others)
    accepted_targets = starts_of(counts.targets[held])
    accepted_others = starts_of(counts.others[held])
    return DetCurve(
        np.concatenate(([np.inf], lowest_scores(held))),
        accepted_others / num_others,
        1 - accepted_targets / num_targets,
        num_targets,
        num_others,
    )
