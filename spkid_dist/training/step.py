"""What a step of the training works on, and what does it.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from spkid_dist.config import TrainConfig
from spkid_dist.dataset import StreamDtype
from spkid_dist.order import EpochOrder
from spkid_dist.training.feed import Steps
from spkid_dist.training.learning import Schedule
from spkid_dist.training.losses import FiniteGuard, Tally


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """What a step works on; `model` and `optimizer` as the engine needs them (`spkid_dist.training.engine.prepare`).

    `frames_dtype` is that of the stream's frames, where they lie on a device.
    """

    config: TrainConfig
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    order: EpochOrder
    tally: Tally
    guard: FiniteGuard
    frames_dtype: torch.dtype

    def global_windows(self, step: int) -> int:
        """G of step `step` of an epoch: the last one may be smaller."""
        batch_size = self.config.batch_size
        return min(batch_size, self.order.num_windows - step * batch_size)

    def whole_step(self, epoch: int, step: int) -> int:
        """The step's number in the whole training, from 0."""
        return epoch * -(-self.order.num_windows // self.config.batch_size) + step


def stream_dtype(mixed_precision: str, normalize: str) -> StreamDtype:
    """What the stream of a training yields: bfloat16 where the network would round its input to that anyway."""
    return "bfloat16" if mixed_precision == "bf16" and normalize != "global" else "stored"


def network_input(x: torch.Tensor) -> torch.Tensor:
    """x (B, C*D) as the stream yields it, as the network takes it: bfloat16 is autocast's own, all else is float32."""
    return x if x.dtype == torch.bfloat16 else x.float()


class Engine(Protocol):
    """Does the steps of a training."""

    def run(self, steps: Steps, epoch: int, first_step: int) -> None:
        """Learn from this rank's share of consecutive steps of an epoch, `first_step` the first; called by all ranks.

        Raises:
            InputError: a loss is not finite, on CPUs.
        """
        ...
