"""Error rates with their confidence, and who is taken for whom."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964  # two-sided 95 % of the normal distribution
WORST_PAIRS = 10


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


def worst_pairs(true: NDArray[np.int64], found: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(true class, found class, how often) of the most frequent confusions, most frequent first."""
    wrong = true != found
    counts = Counter(zip(true[wrong].tolist(), found[wrong].tolist(), strict=True))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(a, b, count) for (a, b), count in ordered[:WORST_PAIRS]]


def print_errors(
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    windows: NDArray[np.int64],
    wrong_windows: NDArray[np.int64],
    speakers: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Say the utterance and frame error rates over the utterances whose true speaker is known (class >= 0)."""
    known = true >= 0
    if not known.any():
        say("no true speaker is known, so no error rate: the list's lines name no speaker of the model")
        return
    if not known.all():
        say(f"{int((~known).sum())} utterances of unknown speakers are left out of the error rates")
    true, found, windows, wrong_windows = true[known], found[known], windows[known], wrong_windows[known]
    wrong = int((true != found).sum())
    _say_rate("utterance", wrong, len(true), wilson_interval(wrong, len(true)), say)
    _say_rate("frame", int(wrong_windows.sum()), int(windows.sum()), ratio_interval(wrong_windows, windows), say)
    for a, b, count in worst_pairs(true, found):
        say(f"  {speakers[a]} taken for {speakers[b]}: {count}")


def _say_rate(what: str, wrong: int, total: int, interval: tuple[float, float], say: Callable[[str], None]) -> None:
    low, high = interval
    say(f"{what} errors: {wrong} of {total} = {wrong / total:.2%} (95 % interval {low:.2%} to {high:.2%})")
