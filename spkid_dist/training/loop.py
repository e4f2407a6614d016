"""Run the loop of a training: epochs of global batches, each followed by a validation and a checkpoint.

Every rank takes its share of each global batch, and the loss is weighted so that the gradient is the mean over the global
batch, whatever the shares' sizes: W ranks learn what one learns.
"""

from accelerate.utils import gather_object

from spkid_dist.process.replay import STEPS_A_GRAPH
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.streaming.ledger import LedgerError
from spkid_dist.training.checkpointing import CheckpointPolicy
from spkid_dist.training.feed import Feed
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.learner import Learner
from spkid_dist.training.profiling import StepProfile
from spkid_dist.training.state import join_ledgers
from spkid_dist.training.step import Engine
from spkid_dist.training.steplog import StepLog
from spkid_dist.training.validation import Validation


class TrainingLoop:
    """Goes through the epochs of a training, from where the learner and the data stand; `folder` gets what it leaves."""

    def __init__(self, job: Job, folder: TrainingFolder, learner: Learner, data: TrainingData, engine: Engine) -> None:
        self._job, self._config = job, job.config
        self._folder = folder
        self._learner = learner
        self._data = data
        self._engine = engine
        self.step_log = StepLog(job, learner, data.training)
        self._checkpoints = CheckpointPolicy(job, folder, learner, data, self.step_log)
        self._validation = Validation(job, folder, learner, data)
        self._profile = StepProfile(
            job.config.profile,
            job.config.save_path / f"profile-rank{job.accelerator.process_index}.json",
            on_device=job.accelerator.device.type != "cpu",
            say=job.log.line,
        )

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the last `patience` of them were not better."""
        return self._learner.statistics.is_finished(self._config.epoch, self._config.patience)

    def run(self) -> None:
        """Train to the end.

        Raises:
            InputError: data are damaged, a file can't be written, or the training diverged.
            Stopped: it was told to stop, and can be continued.
        """
        training = self._data.training
        if (training.epoch, training.position) == (
            self._learner.statistics.epochs,
            0,
        ):  # the network is the last epoch's
            self._validation.write_missing_average()
        if self.is_finished:
            self._job.log.line("this training is finished: nothing to do")
        with self._profile:
            while not self.is_finished:
                self._go_through_epoch()

    def _go_through_epoch(self) -> None:
        """An epoch, or the rest of it: training, validation, checkpoint."""
        statistics, stopwatch = self._learner.statistics, self.step_log.stopwatch
        epoch = statistics.epochs
        if (
            self._data.training.epoch == epoch
        ):  # else it was stopped after the last batch, and goes on with the validation
            with stopwatch.during("training"):
                self._train_epoch()
        with stopwatch.during("validation"):
            self._validation.run(epoch, after_steps=self._checkpoints.in_validation)
        self._checkpoints.after_epoch(best=statistics.best_epoch == epoch, finished=self.is_finished)
        by_main(self._job.accelerator, lambda: self._folder.remove_earlier_averages(epoch))

    def _train_epoch(self) -> None:
        """The steps of an epoch, or of the rest of it."""
        data, step_log = self._data.training, self.step_log
        self._learner.model.train()
        epoch, steps = data.epoch, len(data)
        step = -(-data.position // self._config.batch_size)
        step_log.stopwatch.begin_epoch(data.position)
        feed = Feed(data)
        with self._job.log.bar(steps, "batches") as bar:
            bar.advance(step)
            while step < steps:
                count = self._take_steps(feed, epoch, step)
                step += count
                if shown := step_log.say(step - 1):
                    bar.describe(shown)
                bar.advance(count)
                if step % self._config.log_freq == 0 or step == steps:
                    step_log.note(epoch, step - 1)
                    if step == steps or not data.is_placed:
                        bar.describe(step_log.say(step - 1) or "")
                if step == steps:
                    self._check_epoch(epoch)
                self._checkpoints.after_steps(epoch, step - 1, steps, count=count)

    def _take_steps(self, feed: Feed, epoch: int, step: int) -> int:
        """Take the steps from `step` on up to the next one after which there is something else to do; returns how many."""
        data = self._data.training
        due = 1
        if data.is_placed and not self._profile.is_recording:
            due = min(
                self.step_log.steps_until_due(step, len(data)),
                self._checkpoints.steps_until_due(epoch, step, len(data)),
                STEPS_A_GRAPH,
            )
        taken = 0
        while taken < due:  # ranks may get them in other pieces
            with self.step_log.stopwatch.during("waiting"):
                work = feed.next(due - taken)
            self._engine.run(work, epoch, step + taken)
            taken += len(work)
            self._profile.step()
        return taken

    def _check_epoch(self, epoch: int) -> None:
        """Compare what all ranks have consumed with the epoch, and tell of windows that were passed over."""
        data = self._data.training
        everyone = gather_object([(data.ended_ledger, data.skipped_windows, list(data.bad_blocks.values()))])
        consumed = join_ledgers([ledger for ledger, _, _ in everyone])
        if consumed is not None:
            try:
                data.check_epoch(consumed, epoch)
            except LedgerError as error:
                raise_everywhere(error)
        for rank, (_, skipped, reasons) in enumerate(everyone):
            if skipped:
                self._job.log.line(
                    f"rank {rank}: {skipped} windows passed over so far, of {len(reasons)} bad blocks: {reasons[0]}"
                )
