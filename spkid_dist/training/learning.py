"""Define how the weights are updated: loss, optimiser, and the learning rate over time.

The rate of a step is arithmetic on the step's number, so a continued training needs no state for it, except under
`plateau`, which follows the validation loss. torch's schedulers keep a count of calls instead, and accelerate steps a
prepared one W times a call.

Shapes: B windows of a rank's share.
"""

import importlib.util
import math
import os
import shutil
from typing import TypedDict

import torch
from torch.nn import functional

from shards.errors import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.draws import DROPOUT_DOMAIN, generator_key
from spkid_dist.model import GlobalBatchNorm

# Smith, Topin, "Super-convergence", 2017, with the numbers of torch's OneCycleLR: what --lr is divided by at first, and
# what that is divided by at last.
ONE_CYCLE_START, ONE_CYCLE_END = 25.0, 1e4
ONE_CYCLE_WARMUP = 0.3


def make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all parameters of `model`; weight decay takes in all of them, as torch's do."""
    parameters = model.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def training_loss(log_probs: torch.Tensor, y: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """The sum of the losses of a share: log_probs (B, num_spks), y (B,) int64.

    With label smoothing e, the target is 1 - e for the speaker, and e is spread over all speakers.
    """
    loss = functional.nll_loss(log_probs, y, reduction="sum")
    if not label_smoothing:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * log_probs.mean(dim=1).sum()


class ScheduleState(TypedDict):
    """What `plateau` has seen: the epochs since the best one, and how often the rate was reduced."""

    epochs_since: int
    reductions: int


class Schedule:
    """The learning rate of each step of a training of `config.epoch` epochs of `steps_per_epoch` steps."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._steps = config.epoch * steps_per_epoch
        default = ONE_CYCLE_WARMUP if config.schedule == "one_cycle" else 0.0
        self._rising_steps = (default if config.warmup is None else config.warmup) * self._steps
        self._state = ScheduleState(epochs_since=0, reductions=0)

    def lr(self, step: int) -> float:
        """The rate of step `step` of the whole training, from 0."""
        config = self._config
        if config.schedule == "one_cycle":
            return self._one_cycle(step)
        rising = min(1.0, (step + 1) / max(self._rising_steps, 1.0))
        if config.schedule == "step":
            return config.lr * rising * config.step_factor ** (step // self._steps_per_epoch // config.step_epochs)
        if config.schedule == "plateau":
            return config.lr * rising * config.step_factor ** self._state["reductions"]
        if config.schedule == "cosine":
            progress = max(0.0, step - self._rising_steps) / (self._steps - self._rising_steps)
            return config.lr * rising * _between(1.0, 0.0, progress)
        return config.lr * rising

    def _one_cycle(self, step: int) -> float:
        top, last = self._rising_steps - 1, self._steps - 1
        first, final = 1 / ONE_CYCLE_START, 1 / ONE_CYCLE_START / ONE_CYCLE_END
        if step < top:
            return self._config.lr * _between(first, 1.0, step / top)
        return self._config.lr * _between(1.0, final, (step - top) / (last - top) if step > top else 0.0)

    def after_validation(self, is_best: bool) -> bool:
        """Note whether an epoch was the best one so far; True where that reduces the rate of the steps to come."""
        state = self._state
        state["epochs_since"] = 0 if is_best else state["epochs_since"] + 1
        if self._config.schedule != "plateau" or state["epochs_since"] < self._config.step_epochs:
            return False
        state["reductions"], state["epochs_since"] = state["reductions"] + 1, 0
        return True

    def state_dict(self) -> ScheduleState:
        """What does not follow from the step's number; plain values."""
        return self._state.copy()

    def load_state_dict(self, state: ScheduleState) -> None:
        """Go on from a `state_dict`."""
        self._state = ScheduleState(epochs_since=state["epochs_since"], reductions=state["reductions"])


def _between(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine; `progress` is from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Set torch's generators to those of this step and rank: what dropout draws does not hang on the steps before.

    Ranks draw for their own shares, so W ranks do not leave out the units that one leaves out.
    """
    torch.manual_seed(generator_key(seed, DROPOUT_DOMAIN, step, rank))


def compile_model(model: torch.nn.Module, device: torch.device) -> None:
    """Have `model` compiled when it first runs, in place: it stays the module it is, with its state_dict.

    Raises:
        UsageError: torch's compiler lacks the program that it needs here.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UsageError(
            f"--compile: there is no C++ compiler {compiler}; install it, name another in CXX, or leave it out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError("--compile: triton is not installed; install torch's build for this GPU, or leave it out")
    for module in model.modules():
        if isinstance(module, GlobalBatchNorm):  # the compiler knows nothing of its all-reduce
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign, no-untyped-call]
    model.compile()
