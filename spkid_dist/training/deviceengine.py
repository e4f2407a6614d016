"""The graph engine on a GPU: windows, labels and everything that a step needs are on the device, and steps run as graphs.

The step's loss times 0 is 0, or NaN where the loss is not finite. Ranks add it up with their gradients, in one all-reduce, and
where it is not 0 the fused optimiser skips the step.

Shapes: B windows of a rank's share, C*D inputs, T places of the ring's tables.
"""

from typing import Any

import torch

from spkid_dist.process.nocompiler import plain_step
from spkid_dist.process.replay import Replay
from spkid_dist.ranks.together import share_weights
from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.training.feed import Steps
from spkid_dist.training.graph import JoinedGradients
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner
from spkid_dist.training.learning import seed_dropout, training_loss
from spkid_dist.training.step import network_input
from spkid_dist.training.steptable import StepTable


class DeviceEngine:
    """Does the steps; `model` and `optimizer` of the learner are plain torch's, the model on its device."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self._job, self._learner = job, learner
        device = job.accelerator.device
        self._ranks_meet = job.accelerator.num_processes > 1
        self._replay = Replay(device)
        self._steps = LearningSteps(job, learner)
        self._gradients = JoinedGradients(learner.model, more=1)
        self._move_weights = plain_step(learner.optimizer)
        self._rate = torch.zeros((), device=device)
        self._found_inf = torch.zeros((), device=device)
        _put_on_device(learner.optimizer, self._rate, self._found_inf)
        if self._ranks_meet:
            share_weights(learner.model)

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """As `Engine.run`; the steps' windows lie on the device."""
        assert isinstance(steps, PlacedSteps)
        self._steps.send(steps, epoch, first_step)
        ring, config = steps.ring, self._job.config
        if not config.dropout:
            self._replay.do_all(ring.version, steps.count, lambda count: self._step(ring, count))
        for number, count in enumerate(steps.count if config.dropout else (), start=first_step):
            # Only the host can set the generator anew: a graph has one step, and draws what the step draws without one.
            seed_dropout(config.seed, self._learner.steps.number(epoch, number), self._job.accelerator.process_index)
            self._replay.do_all(ring.version, [count], lambda count: self._step(ring, count))
        self._steps.note_losses(len(steps))

    def _step(self, ring: WindowRing, count: int) -> None:
        """The next step of the table, on `count` windows; nothing of it waits for the host."""
        job, learner, table = self._job, self._learner, self._steps.table
        row = table.cursor.reshape(1)
        weight = table.weight.index_select(0, row)
        self._rate.copy_(table.rate.index_select(0, row).reshape(()))
        x, y = table.gather(ring, count)
        self._gradients.drop()
        with job.accelerator.autocast():
            log_probs = learner.model(network_input(x))
        log_probs = log_probs.float()
        loss_sum = training_loss(log_probs, y, job.config.label_smoothing)
        (loss_sum * weight.reshape(())).backward()  # type: ignore[no-untyped-call]
        loss = loss_sum.detach()
        bad = loss.reshape(1) * 0
        if self._ranks_meet:
            bad = self._gradients.sum_over_ranks(bad)
        torch.ne(bad.reshape(()), 0, out=self._found_inf)
        self._update()
        table.losses.index_copy_(0, row.long(), loss.reshape(1))
        learner.tally.add(log_probs, y, loss)
        table.cursor.add_(1)

    def _update(self) -> None:
        longest = self._job.config.clip_grad_norm
        if longest is not None:
            torch.nn.utils.clip_grad_norm_(self._learner.model.parameters(), longest)
        self._move_weights()
        self._learner.after_step()


class LearningSteps:
    """What engines on a device have in common: the table of the coming steps, and the losses of the recent ones."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self._job, self._learner = job, learner
        self.table = StepTable(job.accelerator.device, learner.tally.sums, job.config.batch_size)

    def send(self, steps: PlacedSteps, epoch: int, first_step: int) -> None:
        """Make these the table's steps; `first_step` of the epoch is the first of them."""
        learner, numbers = self._learner, range(first_step, first_step + len(steps))
        rates = [learner.schedule.lr(learner.steps.number(epoch, number)) for number in numbers]
        self.table.send(steps, rates, [1 / learner.steps.windows(number) for number in numbers])

    def note_losses(self, count: int) -> None:
        """Keep the losses of the table's first `count` steps, for the message should one not be finite."""
        self._learner.guard.note_all(self.table.losses[:count])


def _put_on_device(optimizer: torch.optim.Optimizer, rate: torch.Tensor, found_inf: torch.Tensor) -> None:
    """Have the optimiser read its rate, and whether to skip a step, on the device, and count its steps there."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if "capturable" in group and rate.device.type == "cuda":
            group["capturable"] = True
    optimizer.register_state_dict_post_hook(_as_anywhere)
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # as torch's GradScaler tells it


def _as_anywhere(_optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The optimiser's state as other engines have it, on other devices too: nothing in it says that it was on this one."""
    groups = []
    for group in state_dict["param_groups"]:
        here = {"lr": float(group["lr"])} | ({"capturable": False} if "capturable" in group else {})
        groups.append(group | here)
    return state_dict | {"param_groups": groups}
