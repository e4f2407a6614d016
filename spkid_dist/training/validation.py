"""Validate after an epoch, and write its weights, their average and the curves."""

import math
from collections.abc import Callable

from shards.errors import InputError
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.trainedfolder import Figures, averaged_name, weights_name
from spkid_dist.training.averaging import compute_batch_statistics
from spkid_dist.training.evaluator import Evaluator
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner
from spkid_dist.training.losses import check_finite
from spkid_dist.training.preemption import Timer
from spkid_dist.training.report import plot_curves
from spkid_dist.training.tracking import track

PLOT_SECONDS = 30.0  # from one drawing of the curves to the next: it takes as long as a short epoch


class Validation:
    """Validates a learner after each epoch, and writes its weights and the statistics so far to `folder`."""

    def __init__(self, job: Job, folder: TrainingFolder, learner: Learner, data: TrainingData) -> None:
        self._job, self._config = job, job.config
        self._folder = folder
        self._learner = learner
        self._data = data
        averaged = [] if learner.average is None else [learner.average.network]
        self._evaluator = Evaluator(job.accelerator, [learner.network, *averaged], data.validation)
        self._plots = Timer(PLOT_SECONDS)

    def run(self, epoch: int, after_steps: Callable[[int], None]) -> None:
        """Validate an epoch's weights and their average, and write them; calls `after_steps` with numbers of steps done.

        Raises:
            InputError: weights or validation loss are not finite; a file can't be written.
        """
        learner, statistics, accelerator = self._learner, self._learner.statistics, self._job.accelerator
        by_main(accelerator, lambda: check_finite(learner.network.state_dict()))
        has_average = self._make_average(epoch)
        found, *of_average = self._evaluator.evaluate(1 + has_average, after_steps)
        _check_loss(found.loss, epoch)
        average = of_average[0] if of_average else None
        if average is not None and not math.isfinite(average.loss):
            self._job.log.line(f"averaged weights: none after this epoch, as their validation loss is {average.loss}")
            average = None
        statistics.add(found, average)
        best = statistics.best_epoch == epoch
        by_main(accelerator, lambda: self._save(epoch, best, average is not None))
        self._track(found, average)
        if learner.schedule.after_validation(best):
            self._job.log.line(f"learning rate: multiplied by {self._config.step_factor}")
        self._say(epoch, found, average, best)

    def write_missing_average(self) -> None:
        """Write the averaged weights of the last epoch where a resume from an older checkpoint has left none; by all ranks.

        The epoch after it must not have begun.
        """
        epoch, average = self._learner.statistics.epochs - 1, self._learner.average
        if average is None or self._learner.statistics.average_figures(epoch) is None:
            return
        accelerator = self._job.accelerator
        if not by_main(accelerator, lambda: self._folder.has_average(epoch)) and self._make_average(epoch):
            by_main(accelerator, lambda: self._folder.save_average(average.network, epoch))

    def _make_average(self, epoch: int) -> bool:
        """Make the averaged weights after an epoch; returns whether there are any, and says why where they can't be made."""
        average, accelerator = self._learner.average, self._job.accelerator
        if average is None:
            return False
        missing = average.after_epoch(accelerator, self._learner.statistics, epoch)
        if missing is not None:
            self._job.log.line(f"averaged weights: none after this epoch, as {missing}")
            return False
        compute_batch_statistics(average.network, self._data.training, accelerator)
        return True

    def _save(self, epoch: int, best: bool, has_average: bool) -> None:
        learner, statistics, save_path = self._learner, self._learner.statistics, self._config.save_path
        self._folder.save_weights(learner.network, epoch, best)
        if has_average and learner.average is not None:
            self._folder.save_average(learner.average.network, epoch)
        statistics.save(save_path)
        if statistics.is_finished(self._config.epoch, self._config.patience) or self._plots.is_due():
            plot_curves(statistics, save_path)

    def _track(self, found: Figures, average: Figures | None) -> None:
        steps = self._learner.statistics.epochs * len(self._learner.steps)
        for name, figures in (("validation", found), ("averaged", average)):
            if figures is not None:
                values = {
                    "loss": figures.loss,
                    "accuracy": figures.accuracy,
                    "wrong_utterances": float(figures.wrong or 0),
                }
                track(self._job.accelerator, name, values, steps)

    def _say(self, epoch: int, found: Figures, average: Figures | None, best: bool) -> None:
        folder, log = self._config.save_path, self._job.log
        log.line(
            f"VALIDATION: epoch {epoch} {found} {'better' if best else 'not better'}, "
            f"saved {folder / weights_name(epoch, best)}"
        )
        if average is not None and self._learner.average is not None:
            what = self._learner.average.describe(epoch)
            log.line(f"AVERAGED: {what} {average}, saved {folder / averaged_name(epoch)}")


def _check_loss(loss: float, epoch: int) -> None:
    """Raise InputError, on all ranks, where an epoch's validation loss is not finite: it would be neither better nor worse."""
    if not math.isfinite(loss):
        raise_everywhere(
            InputError(
                f"epoch {epoch}: the validation loss is {loss}, although the weights are finite; the training diverged: give a "
                "smaller --lr (or --mixed_precision no, where frames of the validation set are extreme)"
            )
        )
