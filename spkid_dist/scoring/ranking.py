"""Rank the speakers of an utterance by their mean log-probabilities: the best N, and the margin of the best.

Shapes: U utterances, K speakers, N of them.
"""

import numpy as np
from numpy.typing import NDArray


def margins_of(means: NDArray[np.float64], best: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much the best class (U,) exceeds the second best, (U,), in means (U, K); infinite for one speaker.

    `means` is changed meanwhile, as a copy would take longer than all the rest.
    """
    rows = np.arange(len(means))
    highest = means[rows, best]
    means[rows, best] = -np.inf
    second = means.max(axis=1)
    means[rows, best] = highest
    margins: NDArray[np.float64] = highest - second  # infinite where no other speaker is possible
    return margins


def best_speakers(means: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """The `most` best classes of means (U, K), best first, (U, N) with N = min(most, K); of equal ones the first class.

    That is a stable sort's beginning, without sorting all: whatever lies below the N-th best value is never looked at again.
    """
    num_utterances, num_classes = means.shape
    if most >= num_classes:
        return np.argsort(-means, axis=1, kind="stable")
    least = np.partition(means, num_classes - most, axis=1)[:, num_classes - most]
    chosen = means >= least[:, None]
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > most):  # several are equal to the N-th best
        chosen[row, np.argsort(-means[row], kind="stable")[most:]] = False
    classes = np.nonzero(chosen)[1].reshape(num_utterances, most)
    order = np.argsort(-np.take_along_axis(means, classes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(classes, order, axis=1)
