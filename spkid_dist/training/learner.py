"""Hold what learns, and all that changes while it does: network, optimiser, learning rate, sums and losses of recent steps.

Generators of random numbers are not among it: the windows' order, and whatever else is drawn while training, is arithmetic on
the seed and the place in the training, so it is the same after a resume.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.trainedfolder import TrainStatistics
from spkid_dist.training.averaging import WeightAverage, make_average
from spkid_dist.training.enginechoice import EngineName, prepare
from spkid_dist.training.learning import Schedule, compile_model, make_optimizer
from spkid_dist.training.losses import FiniteGuard, Tally
from spkid_dist.training.step import EpochSteps


class Stateful(Protocol):
    """A part of a training whose state is tensors and plain values."""

    def state_dict(self) -> Any:
        """The state."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A network and all that changes while it learns.

    `network` is what is evaluated and saved; `model` and `optimizer` are what the engine trains: the network and its
    optimiser, or wrappers around them; `average` is what averages the network's weights, if anything does. `tally` and `guard`
    are of this rank, all else is the same on every rank.
    """

    network: torch.nn.Sequential
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    steps: EpochSteps
    tally: Tally
    guard: FiniteGuard
    average: WeightAverage | None
    scaler: Any = None
    statistics: TrainStatistics = field(default_factory=TrainStatistics)

    @property
    def parts(self) -> dict[str, Stateful]:
        """What has a state that checkpoints carry, by its name there."""
        parts: dict[str, Stateful] = {"model": self.network, "optimizer": self.optimizer, "schedule": self.schedule}
        if self.scaler is not None:
            parts["scaler"] = self.scaler
        if self.average is not None:
            parts["average"] = self.average
        return parts

    def after_step(self) -> None:
        """What follows each step of the optimiser; all engines call it, and a GPU has it in its graphs."""
        if self.average is not None:
            self.average.after_step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, which are the same on every rank: name -> state."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name, state in states.items():
            self.parts[name].load_state_dict(state)


def make_learner(
    config: TrainConfig, accelerator: Accelerator, network: torch.nn.Sequential, engine: EngineName, num_windows: int
) -> Learner:
    """What learns `network` by `engine`, from epochs of `num_windows` windows of all ranks together.

    Raises:
        UsageError: --compile lacks the compiler that it needs.
    """
    average = make_average(config, network)
    if config.compile:
        compile_model(network, accelerator.device)
    steps = EpochSteps(num_windows=num_windows, batch_size=config.batch_size)
    optimizer, schedule = make_optimizer(config, network), Schedule(config, len(steps))
    model, optimizer = prepare(engine, accelerator, network, optimizer)
    return Learner(
        network=network,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        steps=steps,
        tally=Tally(accelerator.device),
        guard=FiniteGuard(accelerator, model, optimizer),
        average=None if average is None else average.to(accelerator.device),
        scaler=accelerator.scaler,
        statistics=TrainStatistics(best_by=config.best_by),
    )
