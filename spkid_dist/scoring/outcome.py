"""The outcome of a scoring, as Python programs get it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.confusion import ErrorRates
from spkid_dist.scoring.decisions import Decisions
from spkid_dist.scoring.trials import DetCurve


@dataclass(frozen=True)
class ScoreResult:
    """The outcome for U utterances, in the order of the list: the same on every rank.

    Attributes:
        keys: of the utterances, U.
        speakers: the model's, in class order.
        found: the class found, (U,) int64.
        mean_log_probs: the found class's log-probability, mean over the utterance's windows, (U,) float64.
        margins: by how much that exceeds the second best class's, (U,) float64; infinite for a model of one speaker.
        true: the true class, (U,) int64; -1 where it is not known.
        frames, windows: of each utterance, (U,) int64.
        wrong_windows: windows whose largest log-probability is another class's, (U,) int64; 0 where `true` is -1.
        rates: error rates; None where no true speaker is known.
        det: the DET curve of claimed speakers (`spkid_dist.scoring.trials`); None where there is none. Its `equal_error` is a
            pair: the equal error rate, from 0 to 1, and its threshold, a log-likelihood ratio.
        seconds: until the last rank had scored its share.
        top_classes: the N best classes, best first, (U, N) int32; None without `top`.
        top_means: their mean log-probabilities, (U, N) float32; None without `top`.
        decisions: confidences and unknown speakers; None without a calibration.
    """

    keys: list[str]
    speakers: list[str]
    found: NDArray[np.int64]
    mean_log_probs: NDArray[np.float64]
    margins: NDArray[np.float64]
    true: NDArray[np.int64]
    frames: NDArray[np.int64]
    windows: NDArray[np.int64]
    wrong_windows: NDArray[np.int64]
    rates: ErrorRates | None
    det: DetCurve | None
    seconds: float
    top_classes: NDArray[np.int32] | None = None
    top_means: NDArray[np.float32] | None = None
    decisions: Decisions | None = None
