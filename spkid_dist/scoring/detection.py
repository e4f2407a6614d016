"""Compute the figures of detection trials from their scores: equal error rate, detection costs, Cllr, and the DET curve.

The costs are those of the NIST speaker recognition evaluations (SRE 2016 evaluation plan, section 3) and of VoxSRC: with the
costs of a miss and of a false alarm 1, and the prior `p` of a target,

    DCF = (p * P_miss + (1 - p) * P_false_alarm) / min(p, 1 - p)

so that a system that always gives the cheaper answer has a cost of 1. minDCF is the lowest cost of any threshold. actDCF is
the cost of the Bayes threshold log((1 - p) / p), which only calibrated log-likelihood ratios are fit for. Cllr is the mean
cost over all thresholds, in bits. min Cllr is Cllr after the best calibration that keeps the order of scores, by isotonic
regression (pool adjacent violators). Source: Brümmer, du Preez, "Application-independent evaluation of speaker detection",
Computer Speech and Language 20, 2006.

Shapes: N target trials, M other trials, P operating points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.trials import DetCurve


@dataclass(frozen=True, kw_only=True)
class DetectionCost:
    """Normalised detection costs at the prior `p_target`: `minimum` at `threshold`, and `actual` at the Bayes threshold.

    `actual` is None where the scores are not calibrated log-likelihood ratios.
    """

    p_target: float
    minimum: float
    threshold: float
    actual: float | None


@dataclass(frozen=True, kw_only=True)
class DetectionFigures:
    """All figures of trials with targets and others; `cllr` is None where the scores are not calibrated."""

    curve: DetCurve
    costs: list[DetectionCost]
    cllr: float | None
    min_cllr: float

    def say(self, say: Callable[[str], None]) -> None:
        """Print them, a line each."""
        rate, threshold = self.curve.equal_error
        trials = f"{self.curve.num_targets:,} targets, {self.curve.num_others:,} nontargets"
        say(f"equal error rate: {rate:.2%} at a score of {threshold:.4f} ({trials})")
        for cost in self.costs:
            actual = "" if cost.actual is None else f", actDCF {cost.actual:.4f}"
            where = f" at a score of {cost.threshold:.4f}" if isfinite(cost.threshold) else ", by rejecting every claim"
            say(f"p_target {cost.p_target:g}: minDCF {cost.minimum:.4f}{where}{actual}")
        say(f"min Cllr {self.min_cllr:.4f} bits" + ("" if self.cllr is None else f", Cllr {self.cllr:.4f} bits"))

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        rate, threshold = self.curve.equal_error
        return {
            "targets": self.curve.num_targets,
            "others": self.curve.num_others,
            "equal_error_rate": rate,
            "equal_error_threshold": threshold,
            "detection_costs": [
                {"p_target": cost.p_target, "minDCF": cost.minimum, "threshold": cost.threshold, "actDCF": cost.actual}
                for cost in self.costs
            ],
            "cllr": self.cllr,
            "min_cllr": self.min_cllr,
        }


def detection_figures(
    scores: NDArray[np.float64], target: NDArray[np.bool_], p_targets: Sequence[float], *, calibrated: bool
) -> DetectionFigures | None:
    """The figures of trials with finite `scores` and labels `target`, (N + M,) each; None where one of the labels is missing.

    `calibrated` says that scores are calibrated log-likelihood ratios; only then are actDCF and Cllr more than noise.
    """
    if target.all() or not target.any():
        return None
    curve = exact_curve(scores, target)
    costs = []
    for p_target in p_targets:
        minimum, threshold = minimum_cost(curve, p_target)
        actual = actual_cost(scores, target, p_target) if calibrated else None
        costs.append(DetectionCost(p_target=p_target, minimum=minimum, threshold=threshold, actual=actual))
    return DetectionFigures(
        curve=curve,
        costs=costs,
        cllr=log_ratio_cost(scores[target], scores[~target]) if calibrated else None,
        min_cllr=minimum_log_ratio_cost(scores, target),
    )


def exact_curve(scores: NDArray[np.float64], target: NDArray[np.bool_]) -> DetCurve:
    """The DET curve through every distinct score, of trials (N + M,) with both labels."""
    from sklearn.metrics import roc_curve  # takes a second to import

    false_alarms, hits, thresholds = roc_curve(target, scores, drop_intermediate=False)
    num_targets = int(target.sum())
    return DetCurve(thresholds, false_alarms, 1 - hits, num_targets, len(target) - num_targets)


def minimum_cost(curve: DetCurve, p_target: float) -> tuple[float, float]:
    """The lowest normalised cost of any threshold, and that threshold: infinite where accepting nothing is cheapest."""
    costs = _normalised(curve.misses, curve.false_alarms, p_target)
    at = int(np.argmin(costs))
    return float(costs[at]), float(curve.thresholds[at])


def actual_cost(scores: NDArray[np.float64], target: NDArray[np.bool_], p_target: float) -> float:
    """The normalised cost of log-likelihood ratios (N + M,) at the Bayes threshold."""
    accepted = scores >= log((1 - p_target) / p_target)
    misses, false_alarms = 1 - accepted[target].mean(), accepted[~target].mean()
    return float(_normalised(misses, false_alarms, p_target))


def _normalised(misses: Any, false_alarms: Any, p_target: float) -> Any:
    return (p_target * misses + (1 - p_target) * false_alarms) / min(p_target, 1 - p_target)


def log_ratio_cost(targets: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Cllr, in bits, of the log-likelihood ratios of target trials (N,) and of others (M,); infinite ones are allowed."""
    lost_targets = np.logaddexp(0, -targets).mean()
    lost_others = np.logaddexp(0, others).mean()
    return float((lost_targets + lost_others) / 2 / log(2))


def minimum_log_ratio_cost(scores: NDArray[np.float64], target: NDArray[np.bool_]) -> float:
    """Cllr, in bits, of trials (N + M,) after the best calibration that keeps the order of their scores."""
    from sklearn.isotonic import IsotonicRegression

    posteriors = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, target.astype(np.float64))
    prior = target.mean()
    with np.errstate(divide="ignore"):
        ratios = np.log(posteriors) - np.log1p(-posteriors) - log(prior / (1 - prior))
    return log_ratio_cost(ratios[target], ratios[~target])
