"""Turn mean log-probabilities into calibrated scores: posteriors of the speakers, and log-likelihood ratios of claims.

The windows of an utterance overlap and share a channel, so the sum of their log-probabilities grows far too fast with their
number: posteriors of such sums read 1.000 for wrong utterances too. Calibrated log-probabilities are therefore

    s = mean * N^length_exponent / temperature

with N windows an utterance. An exponent of 0 takes the mean, one of 1 the sum. Both numbers are fitted on a development list.
The uncalibrated scores have temperature 1 and exponent 0. Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern
neural networks", 2017.

Shapes: U utterances, K speakers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEMPERATURES = 1e-20, 1e20  # far beyond what any log-probabilities need, and far within float32
SMALLEST_SUM = 1e-290  # of likelihoods relative to the best one; below it float64 loses digits


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How mean log-probabilities become those of an utterance; the defaults leave them as they are.

    Raises:
        ValueError: a value is no such number, as of a damaged file.
    """

    temperature: float = 1.0
    length_exponent: float = 0.0

    def __post_init__(self) -> None:
        """Check the values: scores of other ones are not finite, or turn the order of speakers round."""
        low, high = TEMPERATURES
        if not (_is_within(self.temperature, low, high) and _is_within(self.length_exponent, 0, 1)):
            raise ValueError(
                f"temperature {self.temperature!r} and length_exponent {self.length_exponent!r}, expected numbers from {low:g} "
                f"to {high:g}, and from 0 to 1"
            )

    def scaled(self, means: NDArray[np.float64], windows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores (U, K) of mean log-probabilities (U, K) over `windows` (U,)."""
        factors = windows.astype(np.float64) ** self.length_exponent / self.temperature
        scaled: NDArray[np.float64] = means * factors[:, None]
        return scaled


def _is_within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def log_posteriors(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the speakers' posteriors, (U, K), for scores (U, K) and equal priors."""
    highest = scores.max(axis=1, keepdims=True)
    shifted = scores - highest
    posteriors: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return posteriors


def log_likelihood_ratios(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each claim, the score minus the log-mean of its rivals' likelihoods, (U, K), for scores (U, K) of K >= 2 speakers.

    That is the logit of the posterior plus log(K - 1). The rivals' sum is taken without the claimed speaker, and not as 1 minus
    its posterior, which would be 0 where that rounds to 1.
    """
    rows = np.arange(len(scores))
    best = scores.argmax(axis=1)
    highest = scores[rows, best]
    likelihoods = scores - highest[:, None]
    np.exp(likelihoods, out=likelihoods)
    likelihoods[rows, best] = 0
    # The best speaker's rivals: a sum of their own, as taking 1 from a total near 1 leaves no digits.
    sums = likelihoods.sum(axis=1)
    log_rivals_of_best = _log_sums_without(scores, best, sums)
    # The others' rivals: 1 or more, as the best one is among them.
    np.subtract(1 + sums[:, None], likelihoods, out=likelihoods)
    np.log(likelihoods, out=likelihoods)
    likelihoods[rows, best] = log_rivals_of_best
    ratios: NDArray[np.float64] = scores - likelihoods
    ratios += (np.log(scores.shape[1] - 1) - highest)[:, None]
    return ratios


def log_posteriors_of(ratios: NDArray[np.float64], num_speakers: int) -> NDArray[np.float64]:
    """Logarithms of the posteriors of claims with these log-likelihood ratios, for equal priors of all speakers; any shape."""
    posteriors: NDArray[np.float64] = -np.logaddexp(0, np.log(num_speakers - 1) - ratios)
    return posteriors


def _log_sums_without(
    scores: NDArray[np.float64], best: NDArray[np.int64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithms of the others' summed likelihoods relative to the best class (U,): of `sums` (U,), but where these vanish."""
    vanished = np.flatnonzero(sums < SMALLEST_SUM)
    logs = np.log(np.maximum(sums, SMALLEST_SUM))
    if not len(vanished):
        return logs
    logs[vanished] = -np.inf
    others = scores[vanished]
    rows = np.arange(len(vanished))
    highest = others[rows, best[vanished]]
    others[rows, best[vanished]] = -np.inf
    second = others.max(axis=1)
    some = second > -np.inf
    spread = np.exp(others[some] - second[some, None]).sum(axis=1)
    logs[vanished[some]] = second[some] - highest[some] + np.log(spread)
    return logs
