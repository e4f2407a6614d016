"""Validate after an epoch, and write its weights and the curves."""

import math
from collections.abc import Callable

from shards.errors import InputError
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.training.evaluator import Evaluator
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner
from spkid_dist.training.losses import check_finite
from spkid_dist.training.preemption import Timer
from spkid_dist.training.report import weights_name
from spkid_dist.training.tracking import track

PLOT_SECONDS = 30.0  # from one drawing of the curves to the next: it takes as long as a short epoch


class Validation:
    """Validates a learner after each epoch, and writes its weights and the statistics so far to `folder`."""

    def __init__(self, job: Job, folder: TrainingFolder, learner: Learner, data: TrainingData) -> None:
        self._job, self._config = job, job.config
        self._folder = folder
        self._learner = learner
        self._data = data
        self._evaluator = Evaluator(job.accelerator, learner.network, data.validation.batch_size)
        self._plots = Timer(PLOT_SECONDS)

    def run(self, epoch: int, after_steps: Callable[[int], None]) -> None:
        """Loss and accuracy after an epoch, its weights and statistics; calls `after_steps` with numbers of steps done.

        Raises:
            InputError: weights or validation loss are not finite; a file can't be written.
        """
        learner, statistics, accelerator = self._learner, self._learner.statistics, self._job.accelerator
        by_main(accelerator, lambda: check_finite(learner.network.state_dict()))
        va_loss, va_acc = self._evaluator.evaluate(self._data.validation, after_steps)
        _check_loss(va_loss, epoch)
        statistics.va_loss.append(va_loss)
        statistics.va_acc.append(va_acc)
        best = statistics.best_epoch == epoch
        by_main(accelerator, lambda: self._save(epoch, best))
        track(accelerator, "validation", {"loss": va_loss, "accuracy": va_acc}, (epoch + 1) * len(learner.steps))
        if learner.schedule.after_validation(va_loss):
            self._job.log.line(f"learning rate: multiplied by {self._config.step_factor}")
        self._job.log.line(
            f"VALIDATION: epoch {epoch} loss: {va_loss:.4f} acc: {va_acc:.4f} "
            f"{'better' if best else 'not better'}, saved {self._config.save_path / weights_name(epoch, best)}"
        )

    def _save(self, epoch: int, best: bool) -> None:
        statistics, save_path = self._learner.statistics, self._config.save_path
        self._folder.save_weights(self._learner.network, epoch, best)
        statistics.save(save_path)
        if statistics.is_finished(self._config.epoch, self._config.patience) or self._plots.is_due():
            statistics.plot(save_path)


def _check_loss(loss: float, epoch: int) -> None:
    """Raise InputError, on all ranks, where an epoch's validation loss is not finite: it would be neither better nor worse."""
    if not math.isfinite(loss):
        raise_everywhere(
            InputError(
                f"epoch {epoch}: the validation loss is {loss}, although the weights are finite; the training diverged: give a "
                "smaller --lr (or --mixed_precision no, where frames of the validation set are extreme)"
            )
        )
