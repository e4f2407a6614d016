"""Decide with a calibration: how sure the model is of each speaker it found, and which utterances it calls unknown.

Shapes: U utterances.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from spkid_dist.scoring.calibration import log_posteriors_of
from spkid_dist.scoring.calibrationfile import Calibration
from spkid_dist.scoring.openset import OpenSetCurve, OpenSetFigures, open_set_curve, open_set_figures
from spkid_dist.scoring.reliability import Reliability, reliability_of
from spkid_dist.scoring.utterances import UNNAMED

UNKNOWN_WORD = "unknown"  # in the place of a speaker's name


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What a calibration makes of U utterances.

    Attributes:
        calibration: what scores were calibrated with.
        threshold: that decides who is unknown; None where nobody is.
        ratios: log-likelihood ratio of the found speaker against the others, (U,) float64.
        posteriors: of the found speaker, for equal priors of the model's speakers, (U,) float64.
        accepted: whether the utterance is of a speaker of the model, (U,) bool; True without a threshold.
        reliability: how right the posteriors are; None where no true speaker is known.
        open_set: the figures of the threshold; None without one, or where nobody names speakers.
        curve: the figures of all thresholds; None where the utterances are all of the model's speakers, or all of others.
    """

    calibration: Calibration
    threshold: float | None
    ratios: NDArray[np.float64]
    posteriors: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    reliability: Reliability | None
    open_set: OpenSetFigures | None
    curve: OpenSetCurve | None

    def say(self, say: Callable[[str], None]) -> None:
        """Print the figures, a line each."""
        if self.reliability is not None:
            say(
                f"calibrated: utterance NLL {self.reliability.nll:.4f}, expected calibration error "
                f"{self.reliability.expected_error:.4f}"
            )
        if self.threshold is not None:
            say(f"{int((~self.accepted).sum())} of {len(self.accepted)} utterances are called {UNKNOWN_WORD}")
        if self.open_set is not None:
            self.open_set.say(say)

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        facts: dict[str, Any] = {"calibration": str(self.calibration.path)}
        if self.reliability is not None:
            facts["confidence"] = self.reliability.facts()
        if self.threshold is not None:
            facts["called_unknown"] = int((~self.accepted).sum())
        if self.open_set is not None:
            facts["open_set"] = self.open_set.facts()
        return facts


def choose_threshold(given: float | None, calibration: Calibration | None, speakers: list[str]) -> float | None:
    """The threshold that is `given`, or that of the calibration; None for none, as where -inf is given.

    Raises:
        InputError: a speaker has the name that unknown ones get.
        UsageError: one is given, but there is no calibration.
    """
    if given is not None and calibration is None:
        raise UsageError(
            f"--threshold {given}: the scores are not calibrated, and the threshold is one of calibrated scores; run spkid "
            "calibrate first"
        )
    threshold = given if given is not None else calibration.threshold if calibration is not None else None
    if threshold is None or threshold == -inf:
        return None
    if UNKNOWN_WORD in speakers:
        raise InputError(
            f"the model has a speaker named {UNKNOWN_WORD!r}, the word for utterances below the threshold; rename the speaker, "
            "or give --threshold=-inf to take every utterance for one of the model's speakers"
        )
    return threshold


def decide(
    calibration: Calibration,
    threshold: float | None,
    num_speakers: int,
    *,
    found: NDArray[np.int64],
    true: NDArray[np.int64],
    ratios: NDArray[np.float64],
    true_ratios: NDArray[np.float64],
) -> Decisions:
    """What a calibration makes of U utterances.

    Args:
        calibration: what the ratios were calibrated with.
        threshold: that decides who is unknown; None for nobody.
        num_speakers: of the model.
        found: classes, (U,).
        true: classes, (U,); -1 for a speaker that the model does not know, -2 where nobody names the speaker.
        ratios: log-likelihood ratios of the found speakers, (U,).
        true_ratios: those of the true speakers, (U,); anything where the class is below 0.
    """
    known, named = true >= 0, true != UNNAMED
    posteriors = np.exp(log_posteriors_of(ratios, num_speakers))
    right = found == true
    reliability = None
    if known.any():
        log_posteriors = log_posteriors_of(true_ratios[known], num_speakers)
        reliability = reliability_of(posteriors[known], right[known], log_posteriors)
    counted = threshold is not None and bool(named.any())
    return Decisions(
        calibration=calibration,
        threshold=threshold,
        ratios=ratios,
        posteriors=posteriors,
        accepted=np.ones(len(ratios), np.bool_) if threshold is None else ratios >= threshold,
        reliability=reliability,
        open_set=open_set_figures(ratios[named], known[named], right[named], threshold)
        if counted and threshold is not None
        else None,
        curve=open_set_curve(ratios[named], known[named], right[named]) if counted else None,
    )
