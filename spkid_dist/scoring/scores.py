"""Hold the scores of a scoring, as its file has them, and check that they fit together.

Shapes: U utterances, K speakers, N of them in a file of the best ones.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.scoreorigin import Origin


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of U utterances, in the order of the results.

    Attributes:
        keys: of the utterances, U.
        speakers: the model's, in class order, K.
        found: the class found, (U,) int64.
        true: the true class, (U,) int64; -1 where it is not known.
        margins: by how much the mean log-probability of the class found exceeds the second best, (U,) float32.
        windows: of each utterance, (U,) int64.
        means: mean log-probabilities of all speakers, (U, K) float32; None where only the best are kept.
        top_classes: the N best classes, best first, (U, N) int32; None where all speakers are kept.
        top_means: their mean log-probabilities, (U, N) float32; None where all speakers are kept.
        scale: how means become calibrated scores; None where they are not calibrated, and the next two are None then.
        ratios: calibrated log-likelihood ratio of the found speaker against the others, (U,) float32.
        posteriors: calibrated posterior of the found speaker, (U,) float32.
        threshold: of the ratios, below which utterances are called unknown; None where there was none.
        accepted: whether the ratio, in float64, is at least the threshold, (U,) bool; None where there was none.
        origin: the weights and the utterances; None where the file does not say.
    """

    keys: list[str]
    speakers: list[str]
    found: NDArray[np.int64]
    true: NDArray[np.int64]
    margins: NDArray[np.float32]
    windows: NDArray[np.int64]
    means: NDArray[np.float32] | None = None
    top_classes: NDArray[np.int32] | None = None
    top_means: NDArray[np.float32] | None = None
    scale: Scale | None = None
    ratios: NDArray[np.float32] | None = None
    posteriors: NDArray[np.float32] | None = None
    threshold: float | None = None
    accepted: NDArray[np.bool_] | None = None
    origin: Origin | None = None


def check_scores(scores: Scores) -> None:
    """Raise ValueError where the arrays do not fit together, or are of other types than they should be."""
    count = (len(scores.keys),)
    width = (len(scores.keys), len(scores.speakers))
    kept = width if scores.top_means is None else scores.top_means.shape
    for name, kind, shape in (
        ("found", "i", count),
        ("true", "i", count),
        ("margins", "f", count),
        ("windows", "i", count),
        ("means", "f", width),
        ("top_classes", "i", kept),
        ("top_means", "f", kept),
        ("ratios", "f", count),
        ("posteriors", "f", count),
        ("accepted", "b", count),
    ):
        array = getattr(scores, name)
        if array is not None and (array.dtype.kind != kind or array.shape != shape):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    for name, least in (("found", 0), ("true", -1), ("top_classes", 0)):
        classes = getattr(scores, name)
        if classes is not None and len(classes) and not least <= classes.min() <= classes.max() < width[1]:
            raise ValueError(
                f"{name} has classes {classes.min()} to {classes.max()}, expected {least} to {width[1] - 1}"
            )
    if len(set(scores.speakers)) != width[1]:
        raise ValueError("a speaker stands in it twice")
    _check_numbers(scores)
    if (scores.threshold is None) != (scores.accepted is None):
        raise ValueError("of accepted and threshold it has one only")
    if kept[:1] != count or not 1 <= kept[1] <= width[1]:
        raise ValueError(f"it keeps {kept} scores of {width[0]} utterances and {width[1]} speakers")


def _check_numbers(scores: Scores) -> None:
    """Raise ValueError where an utterance has no speaker: its scores are no numbers, or its best one is not finite."""
    for name in ("means", "top_means"):
        values = getattr(scores, name)
        if values is not None and values.size and not np.isfinite(values.max(axis=1)).all():  # NaN is the largest
            row = int(np.argmin(np.isfinite(values.max(axis=1))))
            raise ValueError(f"the scores of utterance {scores.keys[row]!r} are not finite")
    for name in ("margins", "ratios", "posteriors"):
        values = getattr(scores, name)
        if values is not None and np.isnan(values).any():
            raise ValueError(f"{name} has values that are no numbers (NaN)")
    if scores.threshold is not None and math.isnan(scores.threshold):
        raise ValueError("its threshold is no number (NaN)")
