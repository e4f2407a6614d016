"""Tell how good the weights in a training's folder are: the statistics of its epochs, and the names of its weights.

Scoring, export and tables of results read them, and need nothing of training.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from shards.errors import InputError
from shards.files import json_bytes, write_atomic
from shards.jsontext import from_json, read_json, shown
from spkid_dist.config.choices import BestBy
from spkid_dist.trained import OPTIONS_NAME, read_options

STATISTICS_NAME = "train_stats.json"
WEIGHTS = ".ckpt"  # the ending of weights files
MOST_STATISTICS_BYTES = 256_000_000  # some 5 million log lines
Number = float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a validation found: mean loss and accuracy of windows, and how many of `utterances` were given a wrong speaker.

    Numbers of utterances are None where they were not counted, as by earlier versions.
    """

    loss: float
    accuracy: float
    wrong: int | None
    utterances: int | None

    def __str__(self) -> str:
        """The figures as a log line has them."""
        counted = "" if self.wrong is None else f" wrong utterances: {self.wrong} of {self.utterances}"
        return f"loss: {self.loss:.4f} acc: {self.accuracy:.4f}{counted}"

    @property
    def in_words(self) -> str:
        """The figures as part of a sentence."""
        counted = "" if self.wrong is None else f", {self.wrong} of {self.utterances} utterances wrong"
        return f"loss {self.loss:.4f}, acc {self.accuracy:.4f}{counted}"


@dataclass(kw_only=True)
class TrainStatistics:
    """The history of a training: `tr_*` has a value per log line, all else a value per epoch.

    Losses are mean negative log-likelihoods per window, accuracies shares of windows, `wrong` numbers of utterances out of
    `va_utterances`. What begins with `va_` is of the weights after the epoch, what begins with `avg_` of their average; nothing
    is there where no average is made. Values that are not known are None.
    `best_by` says by what epochs are compared. It stands in train.opts.
    """

    tr_loss: list[Number] = field(default_factory=list)
    tr_acc: list[Number] = field(default_factory=list)
    va_loss: list[Number] = field(default_factory=list)
    va_acc: list[Number] = field(default_factory=list)
    va_wrong: list[int | None] = field(default_factory=list)
    va_utterances: list[int | None] = field(default_factory=list)
    avg_loss: list[Number] = field(default_factory=list)
    avg_acc: list[Number] = field(default_factory=list)
    avg_wrong: list[int | None] = field(default_factory=list)
    best_by: BestBy = "loss"

    def add(self, found: Figures, of_average: Figures | None) -> None:
        """Note the validation of an epoch."""
        self.va_loss.append(found.loss)
        self.va_acc.append(found.accuracy)
        self.va_wrong.append(found.wrong)
        self.va_utterances.append(found.utterances)
        self.avg_loss.append(None if of_average is None else of_average.loss)
        self.avg_acc.append(None if of_average is None else of_average.accuracy)
        self.avg_wrong.append(None if of_average is None else of_average.wrong)

    @property
    def epochs(self) -> int:
        """Epochs that were trained and validated."""
        return len(self.va_loss)

    def figures(self, epoch: int) -> Figures:
        """What the validation after an epoch found of its weights."""
        return self._figures(epoch, self.va_loss, self.va_acc, self.va_wrong)

    def average_figures(self, epoch: int) -> Figures | None:
        """What the validation after an epoch found of the average; None where there was none."""
        if epoch < 0 or self.avg_loss[epoch] is None:
            return None
        return self._figures(epoch, self.avg_loss, self.avg_acc, self.avg_wrong)

    def _figures(self, epoch: int, losses: list[Number], accuracies: list[Number], wrong: list[int | None]) -> Figures:
        loss, accuracy = (math.nan if value is None else value for value in (losses[epoch], accuracies[epoch]))
        return Figures(loss=loss, accuracy=accuracy, wrong=wrong[epoch], utterances=self.va_utterances[epoch])

    @property
    def best_epoch(self) -> int:
        """The first of the best epochs by `best_by`; -1 where none is known. A loss that is not finite is not known.

        The loss decides among epochs of equal accuracy, or of as many wrong utterances.
        """
        known = [epoch for epoch in range(self.epochs) if math.isfinite(self.figures(epoch).loss)]
        return min(known, key=self._rank, default=-1)

    def _rank(self, epoch: int) -> tuple[float, ...]:
        """What is smaller for a better epoch."""
        found = self.figures(epoch)
        if self.best_by == "accuracy":
            return -found.accuracy, found.loss
        if self.best_by == "utterances":
            return math.inf if found.wrong is None else found.wrong, found.loss
        return (found.loss,)

    @property
    def is_average_better(self) -> bool:
        """Whether the averaged weights of the last epoch did better than those of the best epoch: in utterances, then in loss.

        False where one of them is not known.
        """
        best, averaged = self.best_epoch, self.average_figures(self.epochs - 1)
        if best < 0 or averaged is None or averaged.wrong is None:
            return False
        found = self.figures(best)
        return found.wrong is not None and (averaged.wrong, averaged.loss) < (found.wrong, found.loss)

    @property
    def were_best(self) -> list[bool]:
        """Of each epoch, whether it was the best one when it was validated."""
        found, lowest = list[bool](), None
        for epoch in range(self.epochs):
            rank = self._rank(epoch)
            is_best = math.isfinite(self.figures(epoch).loss) and (lowest is None or rank < lowest)
            lowest = rank if is_best else lowest
            found.append(is_best)
        return found

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether the last `patience` epochs were not better."""
        return bool(self.epochs) and self.epochs - 1 - self.best_epoch >= patience

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether a training of so many epochs, at most, has ended."""
        return self.epochs >= epochs or self.is_out_of_patience(patience)

    def columns(self) -> dict[str, list[Any]]:
        """The values as JSON has them, by name."""
        return {name: values for name, values in asdict(self).items() if name != "best_by"}

    def take_over(self, columns: Mapping[str, Any]) -> None:
        """Have the values of `columns`, as JSON has them; what an earlier version did not keep is None for its epochs.

        Raises:
            ValueError: these are no such values; nothing is taken over then.
        """
        kept: _Kept = from_json(_Kept, columns)
        epochs = len(kept.va_loss)
        taken = {name: [None] * epochs if values is None else values for name, values in vars(kept).items()}
        for name, values in taken.items():
            like = "tr_loss" if name.startswith("tr_") else "va_loss"
            if len(values) != len(taken[like]):
                raise ValueError(f"{len(taken[like])} values of {like}, {len(values)} of {name}")
        for name, values in taken.items():
            setattr(self, name, values)

    def save(self, folder: Path) -> bool:
        """Write the statistics into `folder`; returns whether there were none, or others."""
        path = folder / STATISTICS_NAME
        data = json_bytes(self.columns())
        if path.exists() and path.read_bytes() == data:
            return False
        write_atomic(path, data)
        return True


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The columns of `TrainStatistics` as a file has them; None are those of an earlier version, which did not keep them."""

    tr_loss: list[Number]
    tr_acc: list[Number]
    va_loss: list[Number]
    va_acc: list[Number]
    va_wrong: list[int | None] | None = None
    va_utterances: list[int | None] | None = None
    avg_loss: list[Number] | None = None
    avg_acc: list[Number] | None = None
    avg_wrong: list[int | None] | None = None


def weights_name(epoch: int, best: bool) -> str:
    """The file of an epoch's weights; `best` where the epoch was the best one so far."""
    return f"{'bestval_' if best else ''}e{epoch}_weights.ckpt"


def averaged_name(epoch: int) -> str:
    """The file of the averaged weights after an epoch."""
    return f"averaged_e{epoch}_weights.ckpt"


def read_statistics(folder: Path, options: Mapping[str, Any]) -> TrainStatistics:
    """The statistics of the training in a folder, which has these options; none where no epoch has ended.

    Raises:
        InputError: a file is damaged.
    """
    best_by = options.get("best_by", "loss")  # earlier versions had no choice
    if best_by not in get_args(BestBy):
        raise InputError(
            f"{folder / OPTIONS_NAME}: best_by is {shown(best_by)}, expected one of {', '.join(get_args(BestBy))}"
        )
    statistics, path = TrainStatistics(best_by=best_by), folder / STATISTICS_NAME
    if path.exists():
        columns = read_json(path, "the statistics of a training", "train again", most_bytes=MOST_STATISTICS_BYTES)
        try:
            statistics.take_over(columns)
        except ValueError as error:
            raise InputError(f"{path}: not the statistics of a training: {error}; train again") from None
    return statistics


def check_training(folder: Path, *, by_flag: bool = False) -> None:
    """Raise InputError where `folder` is not that of a training, with what it is; `by_flag`: --weights_ckpt takes files."""
    if folder.is_file():
        advice = f"{folder.parent}{', or the file by --weights_ckpt' if by_flag else ''}"
        raise InputError(
            f"{folder}: is a file, expected the folder of a training; give "
            f"{advice if folder.suffix == WEIGHTS else 'the --save_path of one'}"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: does not exist; give the folder of a training, its --save_path")
    if not (folder / OPTIONS_NAME).is_file():
        raise InputError(f"{folder}: holds no {OPTIONS_NAME}, so it is no training; give the --save_path of one")


def best_weights(folder: Path) -> Path:
    """The weights in a training's folder that did best in its validation.

    These are those of the best epoch, or the averaged ones of the last epoch, if they are there: whichever gave fewer
    utterances a wrong speaker, and where both gave as many, whichever has the lower loss.

    Raises:
        InputError: this is no training's folder, no epoch has ended, or the weights are missing.
    """
    check_training(folder, by_flag=True)
    statistics = read_statistics(folder, read_options(folder / OPTIONS_NAME))
    best, last = statistics.best_epoch, statistics.epochs - 1
    if best < 0:
        raise InputError(f"{folder}: no epoch of this training has ended yet, so it has no weights; train it on")
    averaged, of_best = folder / averaged_name(last), folder / weights_name(best, best=True)
    # Between a resume from an older checkpoint and the end of the epoch there are no averaged weights.
    if statistics.is_average_better and averaged.is_file():
        return averaged
    if not of_best.is_file():
        raise InputError(f"{of_best}: the weights of the best epoch are missing; restore them, or give others")
    return of_best
