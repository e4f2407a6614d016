"""Name what the kernels of a step read and write beside the parameters: the windows' ring, and a row for each step."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class RingTensors(NamedTuple):
    """What a step reads of a window ring, all on its device: a window is C rows of `arena` from its start on."""

    arena: torch.Tensor
    """frames (R, D) float32, float16 or bfloat16"""
    starts: torch.Tensor
    """rows of the arena, (T,) int32"""
    labels: torch.Tensor
    """speakers, (T,) int32"""


@dataclass(frozen=True)
class StepTable:
    """What differs from step to step, for up to K coming steps, and what they leave; tensors on the device."""

    first: torch.Tensor
    """place in the ring of the step's first window, (K,) int32, below T"""
    count: torch.Tensor
    """windows of the step, (K,) int32, from 0 to the plan's rows"""
    rate: torch.Tensor
    """learning rate, (K,) float32"""
    weight: torch.Tensor
    """1/G for G windows of the global batch, (K,) float32"""
    cursor: torch.Tensor
    """row of the present step, () int32; a step's last kernel adds 1"""
    losses: torch.Tensor
    """sum of the step's losses, (K,) float32; written. NaN where the gradient of this rank is not finite"""
    sums: torch.Tensor
    """losses, right answers and windows of all steps, (3,) float64; added to"""

    @staticmethod
    def empty(num_steps: int, device: torch.device | str) -> "StepTable":
        """A table of zeros for `num_steps` steps."""
        whole = [torch.zeros(num_steps, dtype=torch.int32, device=device) for _ in range(2)]
        real = [torch.zeros(num_steps, device=device) for _ in range(3)]
        cursor = torch.zeros((), dtype=torch.int32, device=device)
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        return StepTable(whole[0], whole[1], real[0], real[1], cursor, real[2], sums)
