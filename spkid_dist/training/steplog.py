"""The lines of the log about training steps: loss, accuracy, rate, and the time that is left.

Sums are read from a GPU while it goes on: a line is asked for after a step (`note`), and said (`say`) when the device has been
given the steps after that. On a CPU it is said at once.
"""

import math

from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.ranks.console import RunLog
from spkid_dist.training.learning import Schedule
from spkid_dist.training.losses import FiniteGuard, Reading
from spkid_dist.training.state import TrainingState
from spkid_dist.training.stopwatch import Watch, clock
from spkid_dist.training.tracking import track


class StepLog:
    """Says how the training goes; `first_step` is the step of the whole training that this process began with.

    Called by all ranks after the same steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        log: RunLog,
        *,
        state: TrainingState,
        schedule: Schedule,
        guard: FiniteGuard,
        watch: Watch,
        first_step: int,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._log = log
        self._state = state
        self._schedule = schedule
        self._guard = guard
        self._watch = watch
        self._first_step = first_step
        self._noted: tuple[int, int, Reading] | None = None

    def steps_until_due(self, step: int, steps: int) -> int:
        """Steps from `step` on, of `steps` in the epoch, up to the next one that a line follows."""
        every = self._config.log_freq
        return min(every - step % every, steps - step)

    def note(self, epoch: int, step: int) -> None:
        """Ask for a line on the steps up to `step` since the last one."""
        self._noted = epoch, step, self._state.tally.read(self._accelerator)

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
            self._guard.fail(epoch, last_step)
        self._state.statistics.tr_loss.append(loss)
        self._state.statistics.tr_acc.append(accuracy)
        return self._line(epoch, step, loss, accuracy)

    def _line(self, epoch: int, step: int, loss: float, accuracy: float) -> str:
        data: WindowDataset = self._state.data
        steps, watch = len(data), self._watch
        rate, waiting = watch.look(min((step + 1) * self._config.batch_size, data.num_windows))
        done = epoch * steps + step + 1
        lr = self._schedule.lr(done - 1)
        seconds_left = watch.seconds_left(done - self._first_step, self._config.epoch * steps - done)
        left = f"lr: {lr:.3g} left: at most {clock(seconds_left)}"  # --patience may end it before
        self._log.line(
            f"TRAINING: {step + 1}/{steps} epoch {epoch} loss: {loss:.4f} acc: {accuracy:.4f} "
            f"windows/s: {rate:,.0f} waiting for data: {waiting:.1%} {left}"
        )
        if notice := watch.core_wait.notice():
            self._log.line(notice)
        values = {"loss": loss, "accuracy": accuracy, "lr": lr, "windows_per_second": rate}
        track(self._accelerator, "training", values, done)
        return f"epoch {epoch} loss {loss:.4f} acc {accuracy:.4f} {left}"
