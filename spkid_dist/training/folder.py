"""Keep the folder of a training (`save_path`): one training at a time holds it, and all files in it are of one training.

`open` takes the folder before anything else is done. `begin` makes it the new training's when the training is sure to start:
what an earlier training left is removed (--overwrite), cut back to the checkpoint that this training goes on from, or brought
from the folder of that checkpoint. Only rank 0 calls these methods.
"""

from pathlib import Path
from typing import Any

import torch

from shards.contentdigest import with_digest
from shards.errors import InputError, UsageError
from shards.files import real_path, write_json
from shards.holding import FolderHold
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.console import RunLog
from spkid_dist.trained import OPTIONS_NAME
from spkid_dist.trainedfolder import STATISTICS_NAME, TrainStatistics, averaged_name, weights_name
from spkid_dist.training.checkpoint import FOLDER_NAME, NAME_PATTERN, Checkpoint, CheckpointFolder
from spkid_dist.training.outputs import (
    bring_summary,
    bring_weights,
    check_best_weights,
    names_in,
    outputs_of,
    remove_calibrations,
    remove_earlier_averages,
    remove_outputs,
    remove_stale_weights,
    remove_weights,
)
from spkid_dist.training.preemption import STOP_NAME
from spkid_dist.training.report import PLOTS_NAME, SUMMARY_NAME, Summary, plot_curves
from spkid_dist.weights.file import ID_NAME, save_weights

LOG_NAME = "train.log"


class TrainingFolder:
    """The folder of one training, from `open` to `close`."""

    def __init__(self, config: TrainConfig, log: RunLog) -> None:
        self.path = config.save_path
        self._config, self._log = config, log
        self._hold: FolderHold | None = None
        self._options: dict[str, Any] = {}
        self._options_are_there = False
        self.checkpoints = CheckpointFolder(self.path / FOLDER_NAME, config.keep_checkpoints, self.check)

    @property
    def training_id(self) -> str:
        """The name of the training, once it has begun; known to rank 0."""
        return str(self._options[ID_NAME])

    def open(self) -> None:
        """Take the folder, and open the log in it; a request to stop that was left there is removed.

        Raises:
            InputError: another training holds the folder, or it can't be written.
            UsageError: it holds files of a training that this one would mix with its own.
        """
        self._hold = FolderHold(self.path, "give another --save_path", self._log.line)
        self._check_unused()
        self._log.open_file(self.path / LOG_NAME)
        stop_file = self.path / STOP_NAME
        if stop_file.is_dir():
            raise InputError(
                f"{stop_file}: is a folder, but a file of this name is how a training is told to stop; rename the folder"
            )
        if stop_file.exists():
            stop_file.unlink()
            self._log.line(f"{stop_file}: left from an earlier training, removed")

    def close(self) -> None:
        """Let the folder go."""
        if self._hold is not None:
            self._hold.release()

    def _check_unused(self) -> None:
        config = self._config
        origin = None if config.resume in ("never", "auto") else folder_of_checkpoint(Path(config.resume))
        goes_on_here = config.resume == "auto" or (origin is not None and real_path(origin) == real_path(self.path))
        if config.overwrite and goes_on_here:
            raise UsageError(
                f"--overwrite, --resume {config.resume}: --overwrite would delete the checkpoints that --resume continues "
                "from; give one of the two"
            )
        used = outputs_of(self.path)
        if used and not (config.overwrite or goes_on_here):
            remedy = "--resume auto to continue that training, --overwrite to delete its files"
            raise UsageError(
                f"{self.path}: holds files of an earlier training ({_shown(used)}); give another --save_path, {remedy}"
            )

    def begin(self, checkpoint: Checkpoint | None, statistics: TrainStatistics, options: dict[str, Any]) -> None:
        """Make the folder that of a training that is sure to start now, from `checkpoint` or from the beginning.

        Args:
            checkpoint: what the training goes on from.
            statistics: of the training so far.
            options: what `train.opts` is to hold.

        Raises:
            InputError: the weights of the best epoch so far are missing; or the folder can't be written.
            UsageError: there is no checkpoint to go on from, but files of another training.
        """
        self._options = options
        if checkpoint is None:
            self._begin_anew()
            return
        origin, name = checkpoint.path.parent.parent, options[ID_NAME]
        is_elsewhere = real_path(origin) != real_path(self.path)
        if is_elsewhere:
            self._remove_outputs()
            bring_weights(origin, self.path, statistics, name)
        else:
            self.checkpoints.settle()
            remove_stale_weights(self.path, statistics, name)
            check_best_weights(origin, self.path, statistics)
        self._bring_reports(origin, statistics)
        if is_elsewhere:  # last: a folder without a checkpoint is no training that could be gone on with
            best = statistics.best_epoch == statistics.epochs - 1 >= 0
            self.checkpoints.save(checkpoint.values["stream"]["epoch"], checkpoint.values, checkpoint.state, best)

    def _begin_anew(self) -> None:
        used = outputs_of(self.path)
        if self._config.resume == "auto" and not names_in(self.path) <= {self._options[ID_NAME]}:
            raise UsageError(
                f"{self.path}: holds files of another training ({_shown(used)}), and no checkpoint that --resume auto could "
                "continue from; give another --save_path, or --overwrite instead of --resume to delete them"
            )
        self._remove_outputs()

    def _remove_outputs(self) -> None:
        used = outputs_of(self.path)
        if used:
            self._log.line(f"{self.path}: the files of an earlier training are removed ({_shown(used)})")
        remove_outputs(self.path)

    def _bring_reports(self, origin: Path, statistics: TrainStatistics) -> None:
        """Make options, statistics, curves and summary those of the training so far; none before its first weights."""
        if not statistics.epochs:
            for name in (PLOTS_NAME, SUMMARY_NAME, STATISTICS_NAME, OPTIONS_NAME):
                (self.path / name).unlink(missing_ok=True)
            return
        self._save_options()
        if statistics.save(self.path) or not (self.path / PLOTS_NAME).exists():
            plot_curves(statistics, self.path)
        if statistics.is_finished(self._config.epoch, self._config.patience):
            bring_summary(origin, self.path, statistics.epochs)
        else:
            (self.path / SUMMARY_NAME).unlink(missing_ok=True)

    def check(self) -> None:
        """Called before each write. Raises InputError where another training has taken the folder over, or it is gone."""
        if self._hold is not None:
            self._hold.check()

    def save_weights(self, model: torch.nn.Module, epoch: int, best: bool) -> None:
        """Write an epoch's weights, and before the first ones of this run the options; a summary is out of date then.

        Raises:
            InputError: it can't be written, or this training no longer holds the folder.
        """
        self.check()
        try:
            if not self._options_are_there:
                self._save_options()
            remove_calibrations(self.path / weights_name(epoch, best))
            save_weights(model, self.path / weights_name(epoch, best), self._options[ID_NAME])
        except InputError:
            self.check()  # where the folder was deleted, that is what is wrong
            raise
        remove_weights(self.path / weights_name(epoch, not best))
        (self.path / SUMMARY_NAME).unlink(missing_ok=True)

    def save_average(self, network: torch.nn.Module, epoch: int) -> None:
        """Write the averaged weights after an epoch. Raises InputError as `save_weights`."""
        self.check()
        remove_calibrations(self.path / averaged_name(epoch))
        save_weights(network, self.path / averaged_name(epoch), self._options[ID_NAME])

    def has_average(self, epoch: int) -> bool:
        """Whether the averaged weights after an epoch are there."""
        return (self.path / averaged_name(epoch)).is_file()

    def remove_earlier_averages(self, epoch: int) -> None:
        """Remove the averaged weights of epochs before this one, which a resumed training needs no more. Raises InputError."""
        self.check()
        remove_earlier_averages(self.path, epoch)

    def save_summary(self, summary: Summary) -> None:
        """Write the summary. Raises InputError as `save_weights`."""
        self.check()
        summary.save(self.path)

    @property
    def has_summary(self) -> bool:
        """Whether the folder holds the summary of a training that has ended."""
        return (self.path / SUMMARY_NAME).exists()

    def _save_options(self) -> None:
        write_json(self.path / OPTIONS_NAME, with_digest(self._options))
        self._options_are_there = True


def folder_of_checkpoint(path: Path) -> Path:
    """The folder of the training that `--resume PATH` names: by its own path, that of its checkpoints, or one of them."""
    path = path.absolute()
    if NAME_PATTERN.fullmatch(path.name) and path.is_dir():
        return path.parent.parent
    return path.parent if path.name == FOLDER_NAME else path


def _shown(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
