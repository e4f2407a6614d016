"""Say who speaks in a recording: a trained model and its calibration behind one function.

`load_model` opens the folder of a training with its best weights. Where a calibration lies beside them (`spkid calibrate`), an
answer has a confidence, and may be that the speaker is unknown. Without one it has scores only: the posteriors of an
uncalibrated network are no confidence.

Shapes: U recordings, T frames, D features, K speakers.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import InputError, UsageError, first_line
from shards.parallel import in_order
from shards.sources.limits import DEFAULT_LIMIT, MAX_FRAMES, UtteranceLimit
from spkid_dist.process.threads import torch_threads
from spkid_dist.scoring.calibration import log_likelihood_ratios, log_posteriors
from spkid_dist.scoring.calibrationfile import Calibration, read_calibration
from spkid_dist.scoring.finite import answer_errors
from spkid_dist.scoring.recordings import Recording, RecordingReader, name_of
from spkid_dist.scoring.scorer import GroupScores, Scorer
from spkid_dist.scoring.utterances import UNKNOWN, Group
from spkid_dist.trained import OPTIONS_NAME, TrainedModel, load_trained
from spkid_dist.trainedfolder import best_weights, check_training

EXPORT_NAME = "model.json"
TOP = 3  # candidates of an answer
WORKERS = 4  # threads that read ahead
MIXED_UP = "an array of two dimensions is the frames of one recording; give a list of arrays for several"
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A speaker who may have spoken.

    Attributes:
        speaker: name.
        score: mean log-probability over the recording's windows, 0 or less.
        confidence: calibrated probability that this speaker spoke, of the model's; None without a calibration.
    """

    speaker: str
    score: float
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Who speaks in a recording.

    Attributes:
        speaker: name of the best candidate; None where the calibration's threshold says that none of the speakers spoke.
        confidence: the best candidate's.
        score: the best candidate's.
        margin: how much the score of the second candidate is below the best one's; None where the model has one speaker.
        top: the best candidates, the best first.
        windows: how many windows the recording has.
        is_short: whether it is shorter than a window, so that frames were repeated, or zeros put. Networks see no such windows,
            or few, in training, and calibrations few: do not trust the confidence.
    """

    speaker: str | None
    confidence: float | None
    score: float
    margin: float | None
    top: tuple[Candidate, ...]
    windows: int
    is_short: bool


class Model:
    """A trained model that identifies speakers; `load_model` makes one.

    Attributes:
        speakers: names in class order, K.
        weights: the weights file.
        calibration: what the scores are calibrated with; None where there is none beside the weights.
        remarks: lines on what of the weights could not be checked.
    """

    def __init__(
        self,
        trained: TrainedModel,
        weights: Path,
        calibration: Calibration | None,
        device: str,
        limit: UtteranceLimit = DEFAULT_LIMIT,
    ) -> None:
        self.speakers = trained.speakers
        self.weights = weights
        self.calibration = calibration
        self.remarks = trained.remarks
        self._in_frames = trained.in_frames
        self._reader = RecordingReader(trained, limit)
        self._scorer = Scorer(trained, _open_device(device))

    def identify(
        self, recordings: Recording | Iterable[Recording], *, sample_rate: int | None = None, top: int = TOP
    ) -> list[Identification]:
        """Say who speaks in each recording.

        Args:
            recordings: one or several, of paths of files of the kind that the model was trained on, arrays of samples (n,) in
                -1..1, or arrays of frames (T, D).
            sample_rate: of arrays of samples, in Hz.
            top: most candidates of an answer.

        Raises:
            InputError: a recording is missing, damaged, too short, of another kind or sample rate, has no signal, or has values
                that are too large to compute with.
            UsageError: an array is neither samples nor frames.
        """
        answers = list(self.answers(_as_list(recordings), sample_rate=sample_rate, top=top))
        return [_unless_error(answer) for answer in answers]

    def scores(
        self, recordings: Recording | Iterable[Recording], *, sample_rate: int | None = None
    ) -> NDArray[np.float64]:
        """Mean log-probabilities of all speakers, (U, K), uncalibrated; arguments and errors as those of `identify`."""
        listed = _as_list(recordings)
        means = np.empty((len(listed), len(self.speakers)))
        for position, scores, row in self._scored(listed, sample_rate):
            means[position] = _unless_error(scores).means[row]
        return means

    def answers(
        self, recordings: Sequence[Recording], *, sample_rate: int | None = None, top: int = TOP
    ) -> Iterator[Identification | InputError]:
        """The answers of `identify` in the recordings' order; an error stands for a recording that has none."""
        if top < 1:
            raise UsageError(f"top is {top}; expected 1 or more")
        for _, scores, row in self._scored(recordings, sample_rate):
            yield scores if isinstance(scores, InputError) else self._answer(scores, row, top)

    def _scored(
        self, recordings: Sequence[Recording], sample_rate: int | None
    ) -> Iterator[tuple[int, GroupScores | InputError, int]]:
        """Position, scores and the row in them of each recording, in order; an error for one without an answer."""
        failed: dict[int, InputError] = {}
        expected = 0
        with torch_threads():
            for scores in self._scorer.score(self._groups(recordings, sample_rate, failed)):
                without = answer_errors(scores)
                for row, position in enumerate(scores.group.positions.tolist()):
                    yield from ((at, failed[at], 0) for at in range(expected, position))
                    yield position, without[row] or scores, row
                    expected = position + 1
        yield from ((at, failed[at], 0) for at in range(expected, len(recordings)))

    def _groups(
        self, recordings: Sequence[Recording], sample_rate: int | None, failed: dict[int, InputError]
    ) -> Generator[Group, None, None]:
        """The recordings that can be read, each a group; those that can't are put into `failed`."""

        def read(position: int) -> NDArray[np.float32] | InputError:
            try:
                return self._reader.read(recordings[position], sample_rate)
            except InputError as error:
                return error

        for position, frames in enumerate(in_order(read, range(len(recordings)), WORKERS)):
            if isinstance(frames, InputError):
                failed[position] = frames
                continue
            lengths, unknown = np.array([len(frames)], np.int32), np.array([UNKNOWN], np.int64)
            yield Group([name_of(recordings[position])], frames, lengths, np.array([position], np.int64), unknown)

    def _answer(self, scores: GroupScores, row: int, top: int) -> Identification:
        means, windows = scores.means[row : row + 1], scores.windows[row : row + 1]
        order = np.argsort(-means[0], kind="stable")  # of equal ones the first, as scoring has it
        calibrated = None if self.calibration is None else self.calibration.scale.scaled(means, windows)
        posteriors = None if calibrated is None else np.exp(log_posteriors(calibrated))[0]
        candidates = tuple(
            Candidate(
                speaker=self.speakers[one],
                score=float(means[0, one]),
                confidence=None if posteriors is None else float(posteriors[one]),
            )
            for one in order[:top]
        )
        best = candidates[0]
        return Identification(
            speaker=None if self._is_unknown(calibrated, int(order[0])) else best.speaker,
            confidence=best.confidence,
            score=best.score,
            margin=float(means[0, order[0]] - means[0, order[1]]) if len(order) > 1 else None,
            top=candidates,
            windows=int(windows[0]),
            is_short=int(scores.group.lengths[row]) < self._in_frames,
        )

    def _is_unknown(self, calibrated: NDArray[np.float64] | None, best: int) -> bool:
        """Whether the threshold refuses the best speaker; never without one."""
        threshold = None if self.calibration is None else self.calibration.threshold
        if calibrated is None or threshold is None or len(self.speakers) < 2:
            return False
        return bool(log_likelihood_ratios(calibrated)[0, best] < threshold)


def load_model(folder: str | os.PathLike[str], *, device: str = "cpu", max_frames: int = MAX_FRAMES) -> Model:
    """Open the folder of a training, with its best weights and, if it lies beside them, their calibration.

    Args:
        folder: the --save_path of the training.
        device: where the network is computed: cpu, cuda, or cuda:1.
        max_frames: longer recordings are refused, with an error.

    Raises:
        InputError: it is no training's folder, or a file is missing or damaged.
        UsageError: a library that the model's files need is not installed, or this machine has no such device.
    """
    place = Path(folder)
    if not (place / OPTIONS_NAME).exists() and (place / EXPORT_NAME).exists():
        raise InputError(
            f"{place}: is the folder of an export, for programs without spkid-dist; give the folder of the training, its "
            "--save_path"
        )
    check_training(place)
    weights = best_weights(place)
    trained = load_trained(weights, place / OPTIONS_NAME, None)
    return Model(trained, weights, read_calibration([weights]), device, UtteranceLimit(max_frames))


def _open_device(name: str) -> torch.device:
    """The device. Raises UsageError where this machine has no such."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(f"device {name!r}: {first_line(error)}; give cpu, or a device of this machine") from None
    return device


def _as_list(recordings: Recording | Iterable[Recording]) -> list[Recording]:
    """The recordings; a single one may be given by itself."""
    if isinstance(recordings, str | os.PathLike | np.ndarray):
        if isinstance(recordings, np.ndarray) and recordings.ndim > 2:
            raise UsageError(f"an array of shape {recordings.shape}: {MIXED_UP}")
        return [recordings]
    return list(recordings)


def _unless_error(answer: Answer | InputError) -> Answer:
    if isinstance(answer, InputError):
        raise answer
    return answer
