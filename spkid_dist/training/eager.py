"""The eager engine: accelerate's wrappers, which do all that the options ask for.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs, W ranks.
"""

import contextlib

import torch

from spkid_dist.training.feed import Steps
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner
from spkid_dist.training.learning import seed_dropout, training_loss
from spkid_dist.training.losses import weigh
from spkid_dist.training.step import network_input


class EagerEngine:
    """Each operation when it comes; the ranks' gradients are joined by DistributedDataParallel."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self._job, self._learner = job, learner
        # accelerate's own wrapper of the optimiser serves a scaled loss; without one it only costs time.
        scaled = job.accelerator.scaler is not None
        self._optimizer = learner.optimizer if scaled else getattr(learner.optimizer, "optimizer", learner.optimizer)
        self._backward = job.accelerator.backward if scaled else torch.Tensor.backward

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """As `Engine.run`."""
        for step, (x, y) in enumerate(steps.batches(), start=first_step):
            self._step(x, y, epoch, step)

    def _step(self, x: torch.Tensor, y: torch.Tensor, epoch: int, step: int) -> None:
        job, learner = self._job, self._learner
        config, accelerator, model = job.config, job.accelerator, learner.model
        # DDP takes the mean over ranks: times W / G it is the mean over the global batch.
        weight = accelerator.num_processes / learner.steps.windows(step)
        whole_step = learner.steps.number(epoch, step)
        for group in self._optimizer.param_groups:
            group["lr"] = learner.schedule.lr(whole_step)
        if config.dropout:
            seed_dropout(config.seed, whole_step, accelerator.process_index)
        self._optimizer.zero_grad()
        pieces = [(x, y)]
        if config.accumulation > 1:
            pieces = list(zip(x.tensor_split(config.accumulation), y.tensor_split(config.accumulation), strict=True))
        for number, (x_piece, y_piece) in enumerate(pieces, start=1):  # may be empty: ranks differ in their shares
            last = number == len(pieces)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):  # the ranks meet in the last one
                log_probs = model(network_input(x_piece))
                loss_sum = training_loss(log_probs, y_piece, config.label_smoothing)
                self._backward(weigh(loss_sum, weight))
            learner.guard.note(loss_sum)
            learner.tally.add(log_probs, y_piece, loss_sum)
        learner.guard.check(epoch, step)
        if config.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        self._optimizer.step()
        learner.after_step()
