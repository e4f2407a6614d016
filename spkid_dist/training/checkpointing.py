"""Keeps a training safe while it runs: when checkpoints are written, and when all ranks stop.

Its methods are called by all ranks at the same places of the loop.
"""

from accelerate import Accelerator

from shards.errors import Stopped
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.trained import ID_NAME, options_of
from spkid_dist.training.checkpoint import CheckpointFolder
from spkid_dist.training.losses import FiniteGuard
from spkid_dist.training.preemption import Lookout, Seen, StopRequest
from spkid_dist.training.state import TrainingState
from spkid_dist.training.steplog import StepLog
from spkid_dist.training.stopwatch import Watch


class Keeper:
    """Writes the checkpoints of one training to `folder`, and stops it when `request` says so.

    `data` is what a continued training must have too: what is trained and validated on -> its fingerprint. `training_id` is
    the training's name (`spkid_dist.trained`).
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        log: RunLog,
        *,
        state: TrainingState,
        guard: FiniteGuard,
        request: StopRequest,
        folder: CheckpointFolder,
        data: dict[str, str],
        training_id: str,
        watch: Watch,
        step_log: StepLog,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._log = log
        self._state = state
        self._guard = guard
        self._request = request
        self._folder = folder
        self._data, self._training_id = data, training_id
        self._watch = watch
        self._step_log = step_log
        self._lookout = Lookout(accelerator, request, config.checkpoint_minutes, guard.seen)

    def steps_until_due(self, epoch: int, step: int, steps: int) -> int:
        """Steps from `step` on, of `steps` in the epoch, up to the next one that a checkpoint or the epoch's end follows."""
        every = self._config.checkpoint_steps or steps
        return min(every - (epoch * steps + step) % every, steps - step)

    def after_steps(self, epoch: int, step: int, steps: int, *, count: int) -> None:
        """After `count` steps, the last of them step `step` (from 0) of `steps` in the epoch.

        Raises:
            InputError: the loss is not finite; a checkpoint can't be written.
            Stopped: a request was noted; the checkpoint is written.
        """
        done = epoch * steps + step + 1
        due = self._config.checkpoint_steps is not None and done % self._config.checkpoint_steps == 0
        seen = self._lookout.look(now=due or step + 1 == steps, steps=count)
        if seen is None:
            return
        if seen.not_finite:
            self._guard.fail(epoch, step)
        if due or seen.checkpoint_due or seen.stop:
            self._step_log.say(step)  # its figures belong to the checkpoint
            self._save(best=False)
        self._stop_if(seen)

    def in_validation(self, count: int) -> None:
        """After `count` more batches of a validation, which a continued training begins anew.

        Raises:
            InputError: a checkpoint can't be written.
            Stopped: a request was noted; the checkpoint is written.
        """
        seen = self._lookout.look(steps=count)
        if seen is not None and seen.stop:
            self._save(best=False)
            self._stop_if(seen)

    def after_epoch(self, best: bool, finished: bool) -> None:
        """After an epoch's validation; `finished` where no epoch follows.

        Raises:
            InputError: the checkpoint can't be written.
            Stopped: a request was noted; the checkpoint is written.
        """
        seen = self._lookout.look(now=True)
        self._save(best)
        if seen is not None and not finished:
            self._stop_if(seen)

    def _save(self, best: bool) -> None:
        with self._watch.during("checkpoints"):
            self._write(best)

    def _write(self, best: bool) -> None:
        values = self._state.values() | {"data": self._data, "options": options_of(self._config)}
        values[ID_NAME] = self._training_id
        place = self._state.place
        path = by_main(
            self._accelerator, lambda: self._folder.save(place["epoch"], values, self._state.tensors(), best)
        )
        self._lookout.saved()
        self._log.line(f"checkpoint: epoch {place['epoch']}, window {place['position']}: {path}")

    def _stop_if(self, seen: Seen) -> None:
        if seen.stop is None:
            return
        if self._accelerator.is_main_process:
            self._request.remove_file()
        place = self._state.place
        raise_everywhere(
            Stopped(
                f"stopped by {seen.stop} in epoch {place['epoch']} at window {place['position']}; the same command with "
                "--resume auto goes on"
            )
        )
