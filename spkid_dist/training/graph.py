"""The graph engine on a CPU: torch's own calls without wrappers, and one all-reduce of all gradients.

What runs on a GPU is `spkid_dist.training.deviceengine`. Shapes as in `spkid_dist.training.step`.
"""

import torch
from torch import distributed

from spkid_dist.process.nocompiler import plain_step
from spkid_dist.ranks.together import share_weights
from spkid_dist.training.feed import Steps
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner
from spkid_dist.training.learning import training_loss
from spkid_dist.training.losses import weigh
from spkid_dist.training.step import network_input


class GraphEngine:
    """Does the steps; `model` and `optimizer` of the learner are plain torch's."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self._job, self._learner = job, learner
        self._world_size = job.accelerator.num_processes
        self._gradients = JoinedGradients(learner.model)
        self._move_weights = plain_step(learner.optimizer)
        if self._world_size > 1:
            share_weights(learner.model)

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """As `Engine.run`."""
        for step, (x, y) in enumerate(steps.batches(), start=first_step):
            self._step(x, y, epoch, step)

    def _step(self, x: torch.Tensor, y: torch.Tensor, epoch: int, step: int) -> None:
        job, learner = self._job, self._learner
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.schedule.lr(learner.steps.number(epoch, step))
        learner.guard.note(self._forward_backward(x, y, 1 / learner.steps.windows(step)))
        if self._world_size > 1:
            self._gradients.sum_over_ranks()
        learner.guard.check(epoch, step)
        longest = job.config.clip_grad_norm
        if longest is not None:
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), longest)
        self._move_weights()
        learner.after_step()

    def _forward_backward(self, x: torch.Tensor, y: torch.Tensor, weight: float) -> torch.Tensor:
        """Leave the gradient of the share's part of the global batch's mean loss; returns the sum of the losses."""
        job, learner = self._job, self._learner
        self._gradients.drop()
        with job.accelerator.autocast():
            log_probs = learner.model(network_input(x))
        log_probs = log_probs.float()
        loss_sum = training_loss(log_probs, y, job.config.label_smoothing)
        weigh(loss_sum, weight).backward()  # type: ignore[no-untyped-call]
        learner.tally.add(log_probs, y, loss_sum)
        return loss_sum.detach()


class JoinedGradients:
    """The gradients of all parameters as one tensor, which the ranks add up in one all-reduce, with `more` values behind them.

    Between two steps parameters have no gradient, so that the first one that backward makes is kept and not added to zeros.
    """

    def __init__(self, model: torch.nn.Module, more: int = 0) -> None:
        self._parameters = list(model.parameters())
        sizes = [parameter.numel() for parameter in self._parameters]
        self._joined = torch.zeros(sum(sizes) + more, device=self._parameters[0].device)
        self._views = [
            part.view_as(parameter)
            for part, parameter in zip(torch.split(self._joined, [*sizes, more]), self._parameters, strict=False)
        ]

    def drop(self) -> None:
        """Forget those of the step before."""
        for parameter in self._parameters:
            parameter.grad = None

    def sum_over_ranks(self, *more: torch.Tensor) -> torch.Tensor:
        """Add up the gradients, and the tensors of `more`, over all ranks; returns the sum of the latter."""
        tensors = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch.cat([tensor.reshape(-1) for tensor in (*tensors, *more)], out=self._joined)
        distributed.all_reduce(self._joined)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        return self._joined[len(self._joined) - len(more) :]
