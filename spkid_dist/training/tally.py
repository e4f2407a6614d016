"""Sums of loss, right answers and windows, from which the lines of the log are made."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator


class Tally:
    """Sums of loss, right answers and windows since the last call of `reduce`; kept on the device, so no step waits."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, log_probs: torch.Tensor, y: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Count one share: log_probs (B, num_spks), y (B,), and the sum of its losses."""
        self._sums[0] += loss_sum.detach()
        self._sums[1] += (log_probs.detach().argmax(dim=1) == y).sum()
        self._sums[2] += len(y)

    def reduce(self, accelerator: Accelerator) -> tuple[float, float]:
        """Mean loss and accuracy over all ranks, and start anew. Waits for the device and for all ranks."""
        loss, right, count = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums.zero_()
        return loss / count, right / count

    def to_list(self) -> list[float]:
        """This rank's sums. Waits for the device."""
        return [float(value) for value in self._sums.tolist()]

    def restore(self, of_ranks: Sequence[Sequence[float]], rank: int, world_size: int) -> None:
        """Go on from the sums of all ranks (`to_list` of each); with another number of ranks, rank 0 takes them all."""
        if len(of_ranks) == world_size:
            mine = list(of_ranks[rank])
        else:
            mine = [sum(column) if rank == 0 else 0.0 for column in zip(*of_ranks, strict=True)]
        self._sums.copy_(torch.tensor(mine, dtype=torch.float64))
