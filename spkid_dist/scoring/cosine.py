"""Score trials by embeddings: the cosine between an enrolment and an utterance, so that speakers need not have been trained on.

An enrolment is an utterance of the file, or a speaker, whose embedding is the mean of those of the enrolment utterances, each
brought to length 1 first. Activations are mostly above 0, so embeddings point in similar directions; subtracting the mean of a
cohort's embeddings before that takes away what all have in common. Source: Dehak, Kenny, Dehak, Dumouchel, Ouellet, "Front-end
factor analysis for speaker verification", 2011.

Shapes: N trials, U utterances, E values of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.files import read_text
from shards.lines import split_columns
from spkid_dist.scoring.embeddingfile import Embeddings, read_embeddings
from spkid_dist.scoring.triallist import TrialList

COSINE = "cosine"
ENROL_REMEDY = "give lines SPEAKER UTTERANCE [UTTERANCE ...], as in Kaldi's spk2utt"
TRIALS_AT_A_TIME = 1 << 16


class CosineScores:
    """Scores by embeddings of files; speakers are enrolled as the file `enrol` says, or each claim is an utterance.

    Args:
        paths: files of embeddings of one model, for tests and enrolments.
        enrol: lines SPEAKER UTTERANCE [UTTERANCE ...]; a speaker may have several lines.
        center: a file of embeddings whose mean is subtracted from all.

    Raises:
        InputError: a file is missing, damaged or of other embeddings; an utterance has two embeddings, or none; or one has no
            direction, because all its values are 0.
    """

    kind = COSINE
    calibrated = False

    def __init__(self, paths: Sequence[Path], enrol: Path | None, center: Path | None) -> None:
        self._paths = ", ".join(map(str, paths))
        held = _join(paths)
        self._rows = {key: row for row, key in enumerate(held.keys)}
        vectors = held.vectors.astype(np.float64)
        if center is not None:
            vectors -= _mean_of(center, vectors.shape[1], paths[0])
        self._vectors = _to_length_one(vectors, held.keys)
        self._enrolled = None if enrol is None else self._enrol(enrol)
        self._enrol_path = enrol
        self.facts: dict[str, Any] = {
            "embeddings": [str(path) for path in paths],
            "enrol": None if enrol is None else str(enrol),
            "center": None if center is None else str(center),
        }

    def score(self, trials: TrialList) -> NDArray[np.float64]:
        """The cosines of N trials, (N,)."""
        remedy = f"embed it too, or remove the trial; {self._paths} has {len(self._rows)} utterances"
        rows = trials.resolve_utterances(self._rows, f"in {self._paths}", remedy)[trials.utterance]
        if self._enrolled is None:
            more = f"{remedy}; or say by --enrol which utterances enrol a speaker"
            claims, enrolled = trials.resolve_claims(self._rows, f"in {self._paths}", more), self._vectors
        else:
            names, enrolled = self._enrolled
            claims = trials.resolve_claims(names, f"in {self._enrol_path}", "enrol it there, or remove the trial")
        scores = np.empty(len(trials))
        for first in range(0, len(trials), TRIALS_AT_A_TIME):
            part = slice(first, first + TRIALS_AT_A_TIME)
            pairs = enrolled[claims[trials.claim[part]]], self._vectors[rows[part]]
            scores[part] = np.einsum("ne,ne->n", *pairs)
        return scores

    def _enrol(self, path: Path) -> tuple[dict[str, int], NDArray[np.float64]]:
        """The row of each speaker, and the speakers' embeddings of length 1."""
        utterances = read_enrolments(path)
        sums = np.zeros((len(utterances), self._vectors.shape[1]))
        for row, (speaker, keys) in enumerate(utterances.items()):
            for key, number in keys.items():
                if key not in self._rows:
                    swapped = (
                        f"; its lines seem to be UTTERANCE SPEAKER: {ENROL_REMEDY}" if speaker in self._rows else ""
                    )
                    raise InputError(
                        f"{path}:{number}: utterance {key!r} is not in {self._paths}"
                        + (swapped or "; embed it too, or remove it here")
                    )
                sums[row] += self._vectors[self._rows[key]]
        return {speaker: row for row, speaker in enumerate(utterances)}, _to_length_one(sums, list(utterances))


def read_enrolments(path: Path) -> dict[str, dict[str, int]]:
    """Each speaker's utterances in a file of lines SPEAKER UTTERANCE [UTTERANCE ...], with the lines' numbers, from 1.

    Raises:
        InputError: the file is missing or empty, a line is not of that form, or an utterance enrols a speaker twice.
    """
    speakers: dict[str, dict[str, int]] = {}
    lines = read_text(path, "the enrolments", ENROL_REMEDY).split("\n")
    for number, words in enumerate((split_columns(line) for line in lines), start=1):
        if len(words) == 1:
            raise InputError(f"{path}:{number}: {words[0]!r} stands alone; {ENROL_REMEDY}")
        for key in words[1:]:
            utterances = speakers.setdefault(words[0], {})
            if key in utterances:
                raise InputError(
                    f"{path}:{number}: utterance {key!r} enrols {words[0]!r} already, in line {utterances[key]}; remove it once"
                )
            utterances[key] = number
    if not speakers:
        raise InputError(f"{path}: holds no enrolments; {ENROL_REMEDY}")
    return speakers


def _join(paths: Sequence[Path]) -> Embeddings:
    """The embeddings of all files together."""
    held = [read_embeddings(path) for path in paths]
    where: dict[str, Path] = {}
    for path, one in zip(paths, held, strict=True):
        _check_size(path, one.vectors.shape[1], held[0].vectors.shape[1], paths[0])
        for key in one.keys:
            if key in where:
                raise InputError(f"{path}: utterance {key!r} is in {where[key]}, too; give each utterance once")
            where[key] = path
    return Embeddings(keys=list(where), vectors=np.concatenate([one.vectors for one in held]))


def _mean_of(path: Path, size: int, other: Path) -> NDArray[np.float64]:
    """The mean (E,) of a file's embeddings."""
    vectors = read_embeddings(path).vectors
    _check_size(path, vectors.shape[1], size, other)
    mean: NDArray[np.float64] = vectors.mean(axis=0, dtype=np.float64)
    return mean


def _check_size(path: Path, size: int, expected: int, other: Path) -> None:
    if size != expected:
        raise InputError(
            f"{path}: its embeddings have {size} values, those of {other} {expected}; embed both with the same model"
        )


def _to_length_one(vectors: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """The rows, each brought to length 1; `names` are for messages."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    zero = np.flatnonzero(lengths == 0)
    if len(zero):
        raise InputError(
            f"the embedding of {names[zero[0]]!r} is 0 in all its values, so it has no direction ({len(zero)} of {len(names)} "
            "are); remove it, or embed with other weights"
        )
    scaled: NDArray[np.float64] = vectors / lengths
    return scaled
