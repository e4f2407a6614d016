"""Sums of loss, right answers and windows, from which the lines of the log are made."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator


class Tally:
    """Sums of loss, right answers and windows, `sums` (3,), since the last `read`; kept on the device, so no step waits."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._loss, self._right, self._windows = self.sums.unbind()

    def add(self, log_probs: torch.Tensor, y: torch.Tensor, loss_sum: torch.Tensor) -> None:
        """Count one share: log_probs (B, num_spks), y (B,), and the sum of its losses."""
        self._loss.add_(loss_sum.detach())
        self._right.add_((log_probs.detach().argmax(dim=1) == y).sum())
        self._windows.add_(len(y))

    def read(self, accelerator: Accelerator) -> "Reading":
        """Mean loss and accuracy over all ranks, once the device is that far, and start anew. Called by all ranks."""
        total = accelerator.reduce(self.sums, reduction="sum")
        reading = Reading(total)
        self.sums.zero_()
        return reading

    def to_list(self) -> list[float]:
        """This rank's sums. Waits for the device."""
        return [float(value) for value in self.sums.tolist()]

    def restore(self, of_ranks: Sequence[Sequence[float]], rank: int, world_size: int) -> None:
        """Go on from the sums of all ranks (`to_list` of each); with another number of ranks, rank 0 takes them all."""
        if len(of_ranks) == world_size:
            mine = list(of_ranks[rank])
        else:
            mine = [sum(column) if rank == 0 else 0.0 for column in zip(*of_ranks, strict=True)]
        self.sums.copy_(torch.tensor(mine, dtype=torch.float64))


class Reading:
    """Sums (3,) on their way from the device: work that is given to the device afterwards does not wait for them."""

    def __init__(self, sums: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if sums.device.type == "cuda":
            self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._sums.copy_(sums, non_blocking=True)
            self._arrived = torch.cuda.current_stream(sums.device).record_event()
        else:
            self._sums = sums.clone()

    def means(self) -> tuple[float, float]:
        """Loss and accuracy a window; waits until they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, right, count = self._sums.tolist()
        return loss / count, right / count
