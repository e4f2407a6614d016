"""Sum the losses of steps for the log, and stop a training whose loss is not finite.

A loss that is not finite stops the training on all ranks before the optimiser moves. Such a loss makes all of its
rank's gradient NaN (`weigh`), and the mean over ranks carries that to all of them: each sees it in the gradient of
the last bias, which every window contributes to. Where that can be read at no cost, on CPUs, all ranks stop at this
step. On GPUs a read would wait for the device in each step: there the fused optimiser is told to skip the step by a
flag on the device (`found_inf`, as torch's GradScaler tells it; with fp16 the scaler does so itself), and the ranks
stop when they next meet.

No step follows the last one of a training, so what that one did shows only in the weights and in the validation loss.
Both are looked at (`check_finite`, `spkid_dist.training.validation`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from shards.errors import InputError
from spkid_dist.ranks.together import raise_everywhere

RECENT_STEPS = 1024  # whose losses are kept; ranks meet more often (spkid_dist.training.preemption)


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError where a value of a network's `state_dict` is not finite: nothing could go on from there."""
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} of the network is no longer finite; the training diverged: give a smaller --lr")


def weigh(loss_sum: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """`loss_sum` times `weight`, but with the gradient NaN where it is not finite."""
    return loss_sum * (loss_sum.detach() * 0 + weight)


class FiniteGuard:
    """Watches the losses of a training; `optimizer` is the prepared one of `model`."""

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module, optimizer: Any) -> None:
        self._accelerator = accelerator
        self._last_bias = list(model.parameters())[-1]
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._scaled = accelerator.scaler is not None
        self.waits = accelerator.device.type == "cpu" or not (
            self._scaled or getattr(self._optimizer, "_step_supports_amp_scaling", False)
        )
        self._recent = torch.zeros(RECENT_STEPS, device=accelerator.device)  # a ring
        self._slots = self._recent.unbind()
        self._found_inf = torch.zeros((), device=accelerator.device)
        self._newest = self._slot = 0

    def note(self, loss_sum: torch.Tensor) -> None:
        """Keep the loss of a share, or of a part of it, for the message; before `check`."""
        self._slots[self._slot].add_(loss_sum.detach())

    def check(self, epoch: int, step: int) -> None:
        """Keep the optimiser from moving by a gradient that is not finite; `step` counts from 0.

        Raises:
            InputError: it is not, on CPUs.
        """
        if not self._scaled:
            assert self._last_bias.grad is not None
            total = self._last_bias.grad.sum()
            if not self.waits:
                torch.ne(total * 0, 0, out=self._found_inf)
                self._optimizer.found_inf = self._found_inf
        self._newest = self._slot
        self._slot = (self._slot + 1) % RECENT_STEPS
        self._slots[self._slot].zero_()
        if self.waits and not self._scaled and not math.isfinite(total.item()):
            self.fail(epoch, step)

    def note_all(self, losses: torch.Tensor) -> None:
        """Keep the losses (n,) of the next n steps, which a device took by itself."""
        first = self._slot
        before_end = min(len(losses), RECENT_STEPS - first)
        self._recent[first : first + before_end] = losses[:before_end]
        self._recent[: len(losses) - before_end] = losses[before_end:]
        self._slot = (first + len(losses)) % RECENT_STEPS
        self._newest = (self._slot - 1) % RECENT_STEPS

    def seen(self) -> torch.Tensor:
        """1 where a recent loss of this rank was not finite, else 0; a scalar on the device."""
        return (~torch.isfinite(self._recent)).any().float()

    def fail(self, epoch: int, step: int) -> NoReturn:
        """Say which step was the first, `step` being the last one taken, and on which ranks; called by all.

        Raises:
            InputError: always.
        """
        in_order = torch.roll(self._recent, -(self._newest + 1))[None]  # (1, RECENT_STEPS), the last is of `step`
        losses = self._accelerator.gather(in_order).reshape(-1, RECENT_STEPS).cpu()
        ranks, steps = torch.nonzero(~torch.isfinite(losses), as_tuple=True)
        if not len(steps):
            found, first = "the gradient of the training loss is not finite", step
        else:
            first_column = int(steps.min())
            first = step - (RECENT_STEPS - 1 - first_column)
            on = ranks[steps == first_column].tolist()
            value = losses[on[0], first_column].item()
            found = f"the training loss is {value} on rank {', '.join(map(str, on))}"
        raise_everywhere(
            InputError(f"epoch {epoch}, batch {first + 1}: {found}; the training diverged: give a smaller --lr")
        )


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
        """Loss and accuracy a window; waits until they are here.

        Raises:
            InputError: there was no window, on any rank.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, right, count = self._sums.tolist()
        if not count:
            raise_everywhere(
                InputError(
                    "no window of the last batches could be used, as all of their blocks are damaged; run spkid verify on the "
                    "dataset, and restore what it names"
                )
            )
        return loss / count, right / count
