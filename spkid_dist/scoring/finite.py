"""Find utterances without an answer: what the network gives for them is not finite.

A log-probability of minus infinity is an answer: that speaker is impossible by this model, and any other may be found. Where
that of the best speaker is not finite, none is found. Weights are finite once they are loaded (`spkid_dist.trained`), so what
is left are values of frames, or products of both, beyond the largest number of the precision.

Shapes: U utterances, K speakers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from spkid_dist.scoring.scorer import GroupScores
from spkid_dist.scoring.utterances import Group

REMEDY = "look at its features, or give other weights, or --mixed_precision no"


def check_answers(scores: GroupScores) -> None:
    """Raise InputError for the first utterance of a group whose best mean log-probability is not finite."""
    error = next((error for error in answer_errors(scores) if error is not None), None)
    if error is not None:
        raise error


def answer_errors(scores: GroupScores) -> list[InputError | None]:
    """Of each utterance of a group, why it has no answer; None where it has one."""
    best = scores.means.max(axis=1)  # NaN where any is
    errors: list[InputError | None] = [None] * len(best)
    for row in np.flatnonzero(~np.isfinite(best)).tolist():
        what = "no numbers (NaN)" if np.isnan(best[row]) else f"{best[row]} for every speaker"
        errors[row] = _error(scores.group, row, f"the network's log-probabilities are {what}")
    return errors


def check_all_speakers(scores: GroupScores) -> None:
    """Raise InputError for the first utterance of a group that has a log-probability, of any speaker, that is not finite."""
    rows = np.flatnonzero(~np.isfinite(scores.means).all(axis=1))
    if len(rows):
        raise _error(scores.group, int(rows[0]), "not all of the network's log-probabilities are finite")


def check_embeddings(group: Group, vectors: NDArray[np.float32]) -> None:
    """Raise InputError for the first utterance of a group whose embedding, of `vectors` (U, n), is not finite."""
    rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(rows):
        raise _error(group, int(rows[0]), "the network's activations are not finite")


def _error(group: Group, row: int, what: str) -> InputError:
    return InputError(f"utterance {group.keys[row]!r}: {what}: {_frames(group.frames, group.lengths, row)}; {REMEDY}")


def _frames(frames: NDArray[np.float32], lengths: Sequence[int] | NDArray[np.int32], row: int) -> str:
    """What there is to say of the frames of an utterance."""
    end = int(np.sum(lengths[: row + 1], dtype=np.int64))
    own = frames[end - int(lengths[row]) : end]
    if not np.isfinite(own).all():
        return "its frames have values that are not finite"
    return f"its frames have values from {own.min():.4g} to {own.max():.4g}, too large to compute with by these weights"
