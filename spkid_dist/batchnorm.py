"""Batch normalisation over the global batch: W ranks learn what one learns.

torch's `SyncBatchNorm` does this on GPUs only, and a plain `BatchNorm1d` takes each rank's share for itself. Here each rank
adds its share's sums to all others' in one all-reduce forward and one backward, so shares may differ in size, hold one
window, or none.

Source: Ioffe, Szegedy, "Batch normalization", 2015. Shapes: B windows of a rank's share, G of the global batch, H units.
"""

from typing import Any

import torch
from torch import distributed, nn


class _Standardize(torch.autograd.Function):
    """A share (B, H) float32 to mean 0 and variance 1 over the global batch.

    Returns that, and of the global batch the mean and the variance (H,), and G, float64.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
        # Squares about a value near the mean lose nothing in float32; torch.var_mean takes ten times as long along columns.
        total = x.sum(dim=0, dtype=torch.float64)
        near = (total / max(len(x), 1)).float()
        squares = (x - near).square_().sum(dim=0) + near.double() * (2 * total - len(x) * near.double())
        sums = torch.cat([total, squares, total.new_tensor([len(x)])])
        _sum_over_ranks(sums)
        count = sums[-1]
        mean, squares = (sums[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        scale = (variance + eps).rsqrt().float()
        standard = (x - mean.float()).mul_(scale)
        ctx.save_for_backward(standard, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return standard, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        standard, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        sums = torch.cat([gradient.sum(dim=0), (gradient * standard).sum(dim=0)])
        _sum_over_ranks(sums)
        mean, projection = (sums / count.float()).chunk(2)
        return (gradient - mean).addcmul_(standard, projection, value=-1).mul_(scale), None


def _sum_over_ranks(values: torch.Tensor) -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)


class GlobalBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, H) whose statistics in training are those of the global batch; the same state_dict.

    A global batch moves the running statistics by its share of a full one, which has `full_batch` windows: the last batch of
    an epoch may hold a single window, and would count as much as a thousand. Without `full_batch` each batch counts fully. One
    window has no deviation: in training it is normalised to 0 (`nn.BatchNorm1d` raises), and the running variance stays.
    """

    def __init__(self, num_units: int, *, full_batch: int | None = None) -> None:
        super().__init__(num_units)
        self.full_batch = full_batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (B, H), B from 0; in training, all ranks must call it together."""
        if not self.training:
            return super().forward(x)
        standard, mean, variance, count = _Standardize.apply(x.float(), self.eps)  # type: ignore[no-untyped-call]
        self._track(mean, variance, count)
        return torch.addcmul(self.bias, standard, self.weight).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        """Move the running statistics, of evaluation, towards those of this batch of `count` windows."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        unbiased = variance * (count / (count - 1).clamp(min=1))
        share = (count / self.full_batch).clamp(max=1) if self.full_batch else torch.ones_like(count)
        for running, found, needed in ((self.running_mean, mean, 1), (self.running_var, unbiased, 2)):
            moved = running.lerp(found.float(), (self.momentum * share).float())
            running.copy_(torch.where(count >= needed, moved, running))  # on the device: nobody waits for `count`
        self.num_batches_tracked.add_(count > 0)
