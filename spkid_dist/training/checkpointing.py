"""Decide when a running training writes checkpoints, and when all its ranks stop.

Its methods are called by all ranks at the same places of the loop.
"""

from pathlib import Path

from shards.errors import Stopped
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.trained import options_of
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner
from spkid_dist.training.preemption import PollResult, RankPoll
from spkid_dist.training.state import place_of, plain_state, tensor_state
from spkid_dist.training.steplog import StepLog
from spkid_dist.weights.file import ID_NAME


class CheckpointPolicy:
    """Writes the checkpoints of one training to `folder`, and stops it when its job is asked to."""

    def __init__(
        self, job: Job, folder: TrainingFolder, learner: Learner, data: TrainingData, step_log: StepLog
    ) -> None:
        self._job, self._config = job, job.config
        self._folder = folder
        self._learner = learner
        self._data = data
        self._step_log = step_log
        self._poll = RankPoll(job.accelerator, job.request, job.config.checkpoint_minutes, learner.guard.seen)

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
        seen = self._poll.poll(now=due or step + 1 == steps, steps=count)
        if seen is None:
            return
        if seen.not_finite:
            self._learner.guard.fail(epoch, step)
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
        seen = self._poll.poll(steps=count)
        if seen is not None and seen.stop:
            self._save(best=False)
            self._stop_if(seen)

    def after_epoch(self, best: bool, finished: bool) -> None:
        """After an epoch's validation; `finished` where no epoch follows.

        Raises:
            InputError: the checkpoint can't be written.
            Stopped: a request was noted; the checkpoint is written.
        """
        seen = self._poll.poll(now=True)
        self._save(best)
        if seen is not None and not finished:
            self._stop_if(seen)

    def _save(self, best: bool) -> None:
        with self._step_log.stopwatch.during("checkpoints"):
            self._write(best)

    def _write(self, best: bool) -> None:
        learner, data, checkpoints = self._learner, self._data, self._folder.checkpoints
        values = plain_state(learner, data.training)
        values |= {"data": data.fingerprints, "options": options_of(self._config)}
        place = place_of(learner, data.training)

        def save() -> Path:  # on rank 0, which alone has the folder
            named = values | {ID_NAME: self._folder.training_id}
            return checkpoints.save(place["epoch"], named, tensor_state(learner), best)

        path = by_main(self._job.accelerator, save)
        self._poll.saved()
        self._job.log.line(f"checkpoint: epoch {place['epoch']}, window {place['position']}: {path}")

    def _stop_if(self, seen: PollResult) -> None:
        if seen.stop is None:
            return
        if self._job.accelerator.is_main_process:
            self._job.request.remove_file()
        place = place_of(self._learner, self._data.training)
        raise_everywhere(
            Stopped(
                f"stopped by {seen.stop} in epoch {place['epoch']} at window {place['position']}; to continue, give the same "
                "command with --resume auto"
            )
        )
