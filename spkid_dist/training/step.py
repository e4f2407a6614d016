"""Define the steps of an epoch, and the interface of what does them.

Shapes: B windows of a rank's share, G of the global batch, C*D inputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from spkid_dist.dataset import StreamDtype
from spkid_dist.training.feed import Steps


@dataclass(frozen=True, kw_only=True)
class EpochSteps:
    """The steps of an epoch of `num_windows` windows: global batches of `batch_size`, the last of which may be smaller."""

    num_windows: int
    batch_size: int

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_windows // self.batch_size)

    def windows(self, step: int) -> int:
        """G of step `step` of an epoch."""
        return min(self.batch_size, self.num_windows - step * self.batch_size)

    def number(self, epoch: int, step: int) -> int:
        """The number of a step in the whole training, from 0."""
        return epoch * len(self) + step


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
