"""The layered path's hidden layers: a kernel a layer and direction, in tiles of windows by units."""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import (
    backward_product,
    begin_step,
    first_product,
    forward_product,
    relu,
    window_starts,
)


@triton.jit
def first_layer(
    arena, starts, T, first, count, rate, cursor, steps, current, weights, mean, inverse_std, hidden,
    K: tl.constexpr, D: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORMALIZE: tl.constexpr, LOG_BETA_1: tl.constexpr, LOG_BETA_2: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Program (i, j): windows of tile i, gathered from the ring, to units of tile j of `hidden` (B, HP)."""
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        begin_step(rate, cursor, steps, current, LOG_BETA_1, LOG_BETA_2)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    start = window_starts(starts, first, cursor, T, rows, mask)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    h = relu(first_product(arena, start, mask, weights, n, mean, inverse_std, K, D, H, BM, BN, BK, NORMALIZE, PREC))
    to = hidden + rows[:, None] * HP + n[None, :]
    tl.store(to, h.to(hidden.dtype.element_ty), mask=mask[:, None] & (n < H)[None, :])


@triton.jit
def next_layer(
    below, weights, hidden, count, cursor,
    H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Units of tile j of `hidden` (B, HP) from those of the layer `below`."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    h = relu(forward_product(below, rows, mask, weights, n, H, HP, H, BM, BN, BK, PREC))
    to = hidden + rows[:, None] * HP + n[None, :]
    tl.store(to, h.to(hidden.dtype.element_ty), mask=mask[:, None] & (n < H)[None, :])


@triton.jit
def layer_gradient(
    above, weights, hidden, so_far, gradients, count, cursor, from_unit,
    N: tl.constexpr, WIDE: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, UNITS: tl.constexpr, BEGINS: tl.constexpr, ENDS: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient of a layer's units from `above` (B, WIDE), that of the UNITS units from `from_unit` on of the N above it.

    Where that is all of them, BEGINS and ENDS. Else the sum goes on in `so_far` (B, HP) float32 from chunk to chunk, and
    only the last one gives `gradients` (B, HP).
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    k = tl.program_id(1) * BN + tl.arange(0, BN)
    place = rows[:, None] * HP + k[None, :]
    inside = mask[:, None] & (k < H)[None, :]
    acc = backward_product(above, rows, mask, weights, k, from_unit, UNITS, WIDE, N, H, BM, BN, BK, PREC)
    if not BEGINS:
        acc += tl.load(so_far + place, mask=inside, other=0.0)
    if ENDS:
        h = tl.load(hidden + place, mask=inside, other=0.0)
        acc = tl.where(h > 0.0, acc, 0.0)
        tl.store(gradients + place, acc.to(gradients.dtype.element_ty), mask=inside)
    else:
        tl.store(so_far + place, acc, mask=inside)
