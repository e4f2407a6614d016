"""Log the training steps: loss, accuracy, rate, and the time that is left.

Sums are read from a GPU while it goes on: a line is asked for after a step (`note`), and said (`say`) when the device has been
given the steps after that. On a CPU it is said at once.
"""

import math

from spkid_dist.dataset import WindowDataset
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner
from spkid_dist.training.losses import Reading
from spkid_dist.training.stopwatch import Stopwatch, clock
from spkid_dist.training.tracking import track


class StepLog:
    """Says how the training on `data` goes; `stopwatch` counts where its time goes, from when this is made.

    Called by all ranks after the same steps.
    """

    def __init__(self, job: Job, learner: Learner, data: WindowDataset) -> None:
        self._job, self._config = job, job.config
        self._learner = learner
        self._data = data
        self._first_step = (data.epoch + 1) * len(data) - data.steps_left
        self._noted: tuple[int, int, Reading] | None = None
        self.stopwatch = Stopwatch()

    def steps_until_due(self, step: int, steps: int) -> int:
        """Steps from `step` on, of `steps` in the epoch, up to the next one that a line follows."""
        every = self._config.log_freq
        return min(every - step % every, steps - step)

    def note(self, epoch: int, step: int) -> None:
        """Ask for a line on the steps up to `step` since the last one."""
        self._noted = epoch, step, self._learner.tally.read(self._job.accelerator)

    def say(self, last_step: int) -> str | None:
        """Say the line that was asked for, if any; returns what a live bar is to show. `last_step` was the last one taken.

        Raises:
            InputError: the loss is not finite.
        """
        if self._noted is None:
            return None
        (epoch, step, reading), self._noted = self._noted, None
        loss, accuracy = reading.means()
        if not math.isfinite(loss):
            self._learner.guard.fail(epoch, last_step)
        self._learner.statistics.tr_loss.append(loss)
        self._learner.statistics.tr_acc.append(accuracy)
        return self._line(epoch, step, loss, accuracy)

    def _line(self, epoch: int, step: int, loss: float, accuracy: float) -> str:
        data, watch = self._data, self.stopwatch
        steps = len(data)
        rate, waiting = watch.look(min((step + 1) * self._config.batch_size, data.num_windows))
        done = epoch * steps + step + 1
        lr = self._learner.schedule.lr(done - 1)
        seconds_left = watch.seconds_left(done - self._first_step, self._config.epoch * steps - done)
        left = f"lr: {lr:.3g} left: at most {clock(seconds_left)}"  # --patience may end it before
        self._job.log.line(
            f"TRAINING: {step + 1}/{steps} epoch {epoch} loss: {loss:.4f} acc: {accuracy:.4f} "
            f"windows/s: {rate:,.0f} waiting for data: {waiting:.1%} {left}"
        )
        if notice := watch.core_wait.notice():
            self._job.log.line(notice)
        values = {"loss": loss, "accuracy": accuracy, "lr": lr, "windows_per_second": rate}
        track(self._job.accelerator, "training", values, done)
        return f"epoch {epoch} loss {loss:.4f} acc {accuracy:.4f} {left}"
