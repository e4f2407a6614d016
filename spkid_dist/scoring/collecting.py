"""Collect the mean log-probabilities of all speakers from all processes, for as many utterances as memory is meant for.

Shapes: U utterances, K speakers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.finite import check_all_speakers
from spkid_dist.scoring.run import ScoringRun
from spkid_dist.scoring.utterances import Utterances

MOST_SCORES = 2**26  # 256 MB; a calibration needs some of these arrays, and has two numbers to fit


@dataclass(frozen=True, kw_only=True)
class CollectedScores:
    """What a calibration is fitted to: U utterances whose true speakers are the model's, in the order of the list.

    `means` (U, K) float64 are their mean log-probabilities over `windows` (U,) int64, `true` (U,) int64 their classes. They are
    every `step`-th utterance.
    """

    means: NDArray[np.float64]
    windows: NDArray[np.int64]
    true: NDArray[np.int64]
    step: int


def collect_scores(run: ScoringRun, utterances: Utterances) -> CollectedScores:
    """Score utterances, and keep all speakers' scores of those with a speaker of the model; the same on every process.

    Of more than MOST_SCORES scores in all, those of every second, third, ... utterance are kept. Scores are rounded to
    float32, so that their sum over processes is exact.

    Raises:
        InputError: an utterance can't be read, or has a log-probability that is not finite.
    """
    width = len(run.model.speakers)
    step = max(1, -(-utterances.count * width // MOST_SCORES))
    count = -(-utterances.count // step)
    means, facts = np.zeros((count, width), np.float32), np.zeros((count, 2))
    for scores in run.score(utterances):
        check_all_speakers(scores)  # the posterior of an impossible speaker has no logarithm that a fit could improve
        kept = scores.group.positions % step == 0
        rows = scores.group.positions[kept] // step
        means[rows] = scores.means[kept]
        facts[rows] = np.stack((scores.windows[kept], np.maximum(scores.group.true[kept], -1) + 1), axis=1)
    summed = run.processes.sum(means.view(np.int32)).view(np.float32)  # each row is one process's: the bits are kept
    windows, true = run.processes.sum(facts).astype(np.int64).T
    known = true > 0
    return CollectedScores(
        means=summed[known].astype(np.float64), windows=windows[known], true=true[known] - 1, step=step
    )
