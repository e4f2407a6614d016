"""Batch normalisation over the global batch: W ranks learn what one learns.

torch's `SyncBatchNorm` does this on GPUs only, and a plain `BatchNorm1d` takes each rank's share for itself. Here each rank
adds its share's sums to all others' in one all-reduce, so shares may differ in size, hold one window, or none.

Source: Ioffe, Szegedy, "Batch normalization", 2015. Shapes: B windows of a rank's share, G of the global batch, H units.
"""

from typing import Any

import torch
from torch import distributed, nn


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; so each rank's gradient is the sum of all ranks'."""

    @staticmethod
    def forward(_ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    return _SumOverRanks.apply(values)  # type: ignore[no-any-return, no-untyped-call]


class GlobalBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of (B, H) whose statistics in training are those of the global batch; the same state_dict.

    Sums are taken in float64, so that the variance is a difference of sums that one all-reduce yields. A global batch of one
    window has variance 0, where `nn.BatchNorm1d` raises.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x (B, H), B from 0; in training, all ranks must call it together."""
        if not self.training:
            return super().forward(x)
        wide = x.double()
        sums: torch.Tensor = _sum_over_ranks(
            torch.cat([wide.sum(dim=0), wide.square().sum(dim=0), wide.new_tensor([len(x)])])
        )
        count = sums[-1]
        mean, squares = (sums[:-1] / count).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        self._track(mean, variance * (count / (count - 1).clamp(min=1)))
        scaled: torch.Tensor = (x.float() - mean.float()) * (variance + self.eps).rsqrt().float()
        return (scaled * self.weight + self.bias).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        """Move the running statistics, of evaluation, towards this batch's."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_(unbiased.float(), self.momentum)
        self.num_batches_tracked.add_(1)
