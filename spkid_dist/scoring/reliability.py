"""Measure whether posteriors mean what they say: expected calibration error, reliability by confidence, and utterance NLL.

The confidence of an utterance is the posterior of the speaker that was found. Utterances are put into 15 bins of equal width by
their confidence; the expected calibration error (ECE) is the mean over utterances of the distance between their bin's share of
right utterances and its mean confidence. Sources: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using
Bayesian binning", AAAI 2015; Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.

Shapes: U utterances, K speakers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.calibration import log_posteriors

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Utterances by the confidence in their speaker.

    Attributes:
        counts: utterances in each bin, (BINS,) int64.
        confidences: sums of their confidences, (BINS,) float64.
        right: those of them whose speaker was found, (BINS,) int64.
        log_loss: the utterances' negative log-posteriors of their true speakers, summed, in nats.
    """

    counts: NDArray[np.int64]
    confidences: NDArray[np.float64]
    right: NDArray[np.int64]
    log_loss: float

    @property
    def utterances(self) -> int:
        """How many utterances there are."""
        return int(self.counts.sum())

    @property
    def expected_error(self) -> float:
        """The expected calibration error, from 0 to 1."""
        return float(np.abs(self.right - self.confidences).sum() / self.utterances)

    @property
    def nll(self) -> float:
        """The mean negative log-posterior of the true speaker, in nats per utterance."""
        return self.log_loss / self.utterances

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            counts=self.counts + other.counts,
            confidences=self.confidences + other.confidences,
            right=self.right + other.right,
            log_loss=self.log_loss + other.log_loss,
        )

    def facts(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {"nll": self.nll, "expected_calibration_error": self.expected_error}


def reliability(scores: NDArray[np.float64], true: NDArray[np.int64]) -> Reliability:
    """The reliability of the posteriors of scores (U, K) with true classes (U,), all known."""
    posteriors, rows = log_posteriors(scores), np.arange(len(true))
    found = scores.argmax(axis=1)
    return reliability_of(np.exp(posteriors[rows, found]), found == true, posteriors[rows, true])


def reliability_of(
    confidences: NDArray[np.float64], right: NDArray[np.bool_], true_log_posteriors: NDArray[np.float64]
) -> Reliability:
    """The reliability of found speakers' posteriors (U,), whether they were `right`, and the true speakers' log-posteriors."""
    bins = np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)  # (0, 1/15], (1/15, 2/15], ...
    return Reliability(
        counts=np.bincount(bins, minlength=BINS),
        confidences=np.bincount(bins, confidences, minlength=BINS).astype(np.float64),
        right=np.bincount(bins[right], minlength=BINS),
        log_loss=max(0.0, -float(true_log_posteriors.sum())),  # never -0, nor less by rounding
    )
