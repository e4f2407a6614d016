"""Decide whether an utterance is of any of the model's speakers: the threshold, and the figures of open-set identification.

An utterance is accepted where the log-likelihood ratio of its found speaker is at least the threshold; else it is unknown. The
figures are those of Phillips, Grother, Micheals, "Evaluation methods in face recognition", Handbook of Face Recognition, 2011:

    false acceptances         utterances of unknown speakers that were given a name
    false rejections          utterances of the model's speakers that were called unknown
    misidentifications        utterances of the model's speakers that were given another's name
    identification rate       utterances of the model's speakers that were given the right name, of all of theirs

Shapes: U utterances.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from spkid_dist.scoring.confusion import ErrorRate, error_rate


@dataclass(frozen=True, kw_only=True)
class OpenSetFigures:
    """Counts at one threshold; None where there are no utterances of that kind. `identified` counts right ones."""

    threshold: float
    false_acceptances: ErrorRate | None
    false_rejections: ErrorRate | None
    misidentifications: ErrorRate | None
    identified: ErrorRate | None

    def say(self, say: Callable[[str], None]) -> None:
        """Print them, a line each."""
        say(f"open set, threshold {self.threshold:.4f} on the log-likelihood ratio of the found speaker:")
        for what, rate in self._named():
            if rate is not None:
                say(f"  {what}: {rate}")
        if self.false_acceptances is None:
            say("  no utterance is of an unknown speaker, so there are no false acceptances to count")
        if self.false_rejections is None:
            say("  no utterance is of a speaker of the model, so there are no false rejections to count")

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        rates: dict[str, Any] = {what.replace(" ", "_"): rate and rate.facts() for what, rate in self._named()}
        if rates["identification_rate"] is not None:
            rates["identification_rate"]["right"] = rates["identification_rate"].pop("errors")
        return {"threshold": self.threshold} | rates

    def _named(self) -> list[tuple[str, ErrorRate | None]]:
        return [
            ("false acceptances", self.false_acceptances),
            ("false rejections", self.false_rejections),
            ("misidentifications", self.misidentifications),
            ("identification rate", self.identified),
        ]


@dataclass(frozen=True, kw_only=True)
class OpenSetCurve:
    """Rates at thresholds (P,), from the highest, which accepts nothing: each between 0 and 1."""

    thresholds: NDArray[np.float64]
    false_acceptances: NDArray[np.float64]
    false_rejections: NDArray[np.float64]
    identified: NDArray[np.float64]


def open_set_figures(
    ratios: NDArray[np.float64], known: NDArray[np.bool_], right: NDArray[np.bool_], threshold: float
) -> OpenSetFigures:
    """The figures of utterances with the log-likelihood ratios (U,) of their found speakers.

    `known` (U,) says whether the true speaker is one of the model's, `right` (U,) whether it was found.
    """
    accepted = ratios >= threshold

    def rate(counted: NDArray[np.bool_], among: NDArray[np.bool_]) -> ErrorRate | None:
        return error_rate(counted[among]) if among.any() else None

    return OpenSetFigures(
        threshold=threshold,
        false_acceptances=rate(accepted, ~known),
        false_rejections=rate(~accepted, known),
        misidentifications=rate(accepted & ~right, known),
        identified=rate(accepted & right, known),
    )


def open_set_curve(
    ratios: NDArray[np.float64], known: NDArray[np.bool_], right: NDArray[np.bool_]
) -> OpenSetCurve | None:
    """The rates at every threshold, for arrays as `open_set_figures` has them; None where all are known, or none."""
    if known.all() or not known.any():
        return None
    order = np.argsort(-ratios, kind="stable")
    ends = np.flatnonzero(np.append(ratios[order[1:]] != ratios[order[:-1]], True))  # the last of equal ratios
    start, num_known = np.zeros(1), known.sum()
    counts = {
        name: np.concatenate((start, np.cumsum(which[order])[ends]))
        for name, which in (("unknown", ~known), ("known", known), ("right", known & right))
    }
    return OpenSetCurve(
        thresholds=np.concatenate(([np.inf], ratios[order][ends])),
        false_acceptances=counts["unknown"] / (len(known) - num_known),
        false_rejections=1 - counts["known"] / num_known,
        identified=counts["right"] / num_known,
    )


def equal_error_threshold(curve: OpenSetCurve) -> float:
    """The threshold at which false acceptances and false rejections are as near to equal as these utterances let them be.

    It lies half way between the lowest ratio that it accepts and the highest one that it rejects.

    Raises:
        InputError: one of them is infinite.
    """
    distance = np.abs(curve.false_acceptances - curve.false_rejections)
    nearest = np.flatnonzero(distance == distance.min())
    errors = curve.false_acceptances + curve.false_rejections
    at = int(nearest[np.argmin(errors[nearest])])
    at = min(max(at, 1), len(curve.thresholds) - 1)  # accepting nothing has no finite threshold
    lowest = curve.thresholds[at]
    highest_rejected = curve.thresholds[at + 1] if at + 1 < len(curve.thresholds) else lowest
    if not np.isfinite([lowest, highest_rejected]).all():
        raise InputError(
            f"the threshold would lie between the log-likelihood ratios {highest_rejected} and {lowest}, so there is none; "
            "look at the features of the utterances"
        )
    return float((lowest + highest_rejected) / 2)
