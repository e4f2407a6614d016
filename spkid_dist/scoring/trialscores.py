"""Give trials their scores: from a model, or from a file of scores.

A score is the log-likelihood ratio of the claimed speaker against the model's others (`spkid_dist.scoring.calibration`). Each
utterance is scored once, however many trials it has, and only its trials' scores are kept. Another source of scores has the
members of `TrialScores`.

Shapes: N trials, U utterances, K speakers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance, check_key
from shards.errors import InputError
from shards.names import classes_of
from shards.sources import Source
from shards.sources.kaldi import KaldiSource
from spkid_dist.config import TrialsConfig
from spkid_dist.scoring.calibration import Scale, log_likelihood_ratios
from spkid_dist.scoring.calibrationfile import use_calibration
from spkid_dist.scoring.models import ModelFiles
from spkid_dist.scoring.opening import open_source, store_options
from spkid_dist.scoring.run import ScoringRun
from spkid_dist.scoring.scorefile import read_scores
from spkid_dist.scoring.triallist import AUDIO_ENDINGS, TrialList
from spkid_dist.scoring.utterances import ListedFiles, MissingUtterancesError, ShardedUtterances, Utterances
from spkid_dist.trained import TrainedModel

LOG_RATIO = "log_likelihood_ratio"
OF_MODEL = "one of the model's speakers"
SPEAKER_REMEDY = (
    "a model can verify the speakers that it was trained on: remove the trial, or give embeddings of enrolments"
)
ROWS_AT_A_TIME = 2**22  # scores of a file whose ratios are in memory at a time


class TrialScores(Protocol):
    """What scores trials.

    `kind` says what a score is, in one word for programs; `calibrated` whether scores are calibrated log-likelihood ratios;
    `facts` is what the figures' file says of where the scores are from.
    """

    kind: str
    calibrated: bool
    facts: dict[str, Any]

    def score(self, trials: TrialList) -> NDArray[np.float64]:
        """The scores of N trials, (N,); higher for targets.

        Raises:
            InputError: a claim or an utterance is not known, or can't be scored.
        """
        ...


class ModelScores:
    """Scores by a model, with its calibration where there is one. All processes call `score`, and each has all scores."""

    kind = LOG_RATIO

    def __init__(self, config: TrialsConfig, run: ScoringRun) -> None:
        check_rivals(run.model.speakers)
        self._config, self._run = config, run
        calibration = use_calibration(run.weights, run.log.line) if config.calibration else None
        self.calibrated = calibration is not None
        self._scale = Scale() if calibration is None else calibration.scale
        names = [str(path) for path in run.weights]
        self.facts: dict[str, Any] = {
            "weights_ckpt": names[0] if len(names) == 1 else names,
            "calibration": None if calibration is None else str(calibration.path),
        }

    def score(self, trials: TrialList) -> NDArray[np.float64]:
        """The scores of N trials, (N,)."""
        model = self._run.model
        classes = trials.resolve_claims(classes_of(model.speakers), OF_MODEL, SPEAKER_REMEDY)
        utterances, positions = open_trial_utterances(self._config, model, trials)
        picked = PickedScores(trials, classes, positions, utterances.count)
        for scores in self._run.score(utterances):
            picked.add(scores.group.positions, log_likelihood_ratios(self._scale.scaled(scores.means, scores.windows)))
        return self._run.processes.sum(picked.scores)  # each trial is one process's


class FileScores:
    """Scores of a file that `spkid score --scores` wrote, on its calibrated scale where it has one and that is `wanted`."""

    kind = LOG_RATIO

    def __init__(self, path: Path, *, wanted: bool) -> None:
        held = read_scores(path)
        check_rivals(held.speakers)
        if held.means is None:
            width = 0 if held.top_means is None else held.top_means.shape[1]
            raise InputError(
                f"{path}: keeps the best {width} of {len(held.speakers)} speakers, but a log-likelihood ratio takes all; "
                "run spkid score --scores without --top"
            )
        self._path, self._held, self._means = path, held, held.means
        scale = held.scale if wanted else None
        self.calibrated = scale is not None
        self._scale = scale or Scale()
        weights = [] if held.origin is None else list(held.origin.weights.values())
        self.facts: dict[str, Any] = {"scores": str(path), "weights": weights}

    def check_origin(self, models: Sequence[ModelFiles], say: Callable[[str], None]) -> None:
        """Say what the scores are of. Raises InputError where `models` are given, and the scores are by others or don't say."""
        origin = self._held.origin
        if origin is not None:
            say(f"{self._path}: scores {origin}")
            if models:
                origin.check(models, self._path)
        elif models:
            raise InputError(
                f"{self._path}: does not say which weights its scores are by, so nobody can tell whether they are of the given "
                "model; score again, or leave the model out"
            )

    def score(self, trials: TrialList) -> NDArray[np.float64]:
        """The scores of N trials, (N,)."""
        held = self._held
        remedy = f"score it too, or remove the trial; {self._path} has {len(held.keys)} utterances"
        rows = trials.resolve_utterances({key: i for i, key in enumerate(held.keys)}, f"in {self._path}", remedy)
        classes = trials.resolve_claims(classes_of(held.speakers), OF_MODEL, SPEAKER_REMEDY)
        picked = PickedScores(trials, classes, rows, len(held.keys))
        used = np.unique(rows)
        step = max(1, ROWS_AT_A_TIME // len(held.speakers))
        for first in range(0, len(used), step):
            these = used[first : first + step]
            scores = self._scale.scaled(self._means[these].astype(np.float64), held.windows[these])
            picked.add(these, log_likelihood_ratios(scores))
        return picked.scores


class PickedScores:
    """The `scores` (N,) of trials, picked from the scores of all speakers as utterances come; 0 until then.

    Args:
        trials: N of them.
        classes: of each name in `trials.claims`.
        positions: of each name in `trials.utterances`, among all utterances that come.
        count: how many utterances there are.
    """

    def __init__(self, trials: TrialList, classes: NDArray[np.int64], positions: NDArray[np.int64], count: int) -> None:
        self.scores = np.zeros(len(trials))
        self._classes = classes[trials.claim]
        wanted = positions[trials.utterance]
        self._order = np.argsort(wanted, kind="stable")
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(wanted, minlength=count))))

    def add(self, positions: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Pick from the scores (U, K) of the utterances at `positions` (U,)."""
        counts = self._starts[positions + 1] - self._starts[positions]
        ends = np.cumsum(counts)
        offsets = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        chosen = self._order[np.repeat(self._starts[positions], counts) + offsets]
        rows = np.repeat(np.arange(len(positions)), counts)
        self.scores[chosen] = scores[rows, self._classes[chosen]]


def check_rivals(speakers: Sequence[str]) -> None:
    """Raise InputError where a model has one speaker only: a claim has no rivals then."""
    if len(speakers) < 2:
        raise InputError(
            f"the model knows one speaker only, {speakers[0]!r}: posteriors and log-likelihood ratios need another one; "
            "train on two speakers or more"
        )


def open_trial_utterances(
    config: TrialsConfig, model: TrainedModel, trials: TrialList
) -> tuple[Utterances, NDArray[np.int64]]:
    """The utterances that trials name, each once, and the position of each of `trials.utterances` among them.

    Raises:
        InputError: one is not in the dataset, or has no file; or the data are damaged, or of other features.
        UsageError: as `open_utterances`.
    """
    remedy = "correct the trial list, or give the data that have it"
    if config.te_shards is not None:
        return _open_sharded(config.te_shards, config, model, trials, remedy)
    source = open_source(config, model.options)
    ending = f".{source.describe().get('ext', '')}"
    keys = [name.removesuffix(ending) if ending != "." else name for name in trials.utterances]
    listed, positions = _each_once(keys)
    for index, key in enumerate([] if isinstance(source, KaldiSource) else keys):
        check_key(key, f"{trials.path}:{trials.line_of_utterance(index)}")
    there = np.array([_is_there(source, one) for one in listed])
    trials.check_utterances(np.flatnonzero(~there[positions]).tolist(), f"in {config.db_path}", remedy)
    return ListedFiles(listed, source, model), positions


def _open_sharded(
    place: str, config: TrialsConfig, model: TrainedModel, trials: TrialList, remedy: str
) -> tuple[Utterances, NDArray[np.int64]]:
    store = store_options(config)
    names = trials.utterances
    try:
        listed, positions = _each_once(names)
        return ShardedUtterances(place, model, listed, trials.path, store), positions
    except MissingUtterancesError as error:
        missing = {listed[index].key for index in error.indices}
    # Lists of audio files name them with their endings, which keys do not have.
    keys = [_without_ending(name) if name in missing else name for name in names]
    listed, positions = _each_once(keys)
    try:
        return ShardedUtterances(place, model, listed, trials.path, store), positions
    except MissingUtterancesError as error:
        still = np.isin(positions, error.indices)
        trials.check_utterances(np.flatnonzero(still).tolist(), f"in the dataset {place}", remedy)
        raise


def _each_once(keys: Sequence[str]) -> tuple[list[Utterance], NDArray[np.int64]]:
    """The utterances of these keys, each once, and each key's place among them."""
    places: dict[str, int] = {}
    positions = np.array([places.setdefault(key, len(places)) for key in keys], np.int64)
    return [Utterance(key, "") for key in places], positions


def _without_ending(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(AUDIO_ENDINGS) else name


def _is_there(source: Source, utterance: Utterance) -> bool:
    """Whether the source has the utterance, as far as is known without opening a file."""
    try:
        place = source.where(utterance)
    except InputError:
        return False
    return source.describe()["kind"] == "kaldi" or Path(place).exists()
