"""Gradients of the weights: products of layers' inputs and gradients over the windows, in partial sums that no atomics need.

`part` holds the hidden layers' sums (SPLITS, hidden parameters), then the last layer's (its splits, its parameters), float32.
"""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import is_finite, product, window_starts, window_values


@triton.jit
def _of_inputs(
    arena, starts, first, cursor, T, mean, inverse_std, gradients, n, k, begin, end,
    K: tl.constexpr, D: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr,
    NORMALIZE: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient (BN, BK) of the first layer's weights, and of its biases (BN,); windows are gathered anew."""
    acc = tl.zeros([n.shape[0], k.shape[0]], tl.float32)
    sums = tl.zeros([n.shape[0], BR], tl.float32)
    for r in range(0, ROWS, BR):
        rows = begin + r + tl.arange(0, BR)
        mask = rows < end
        start = window_starts(starts, first, cursor, T, rows, mask)
        a = window_values(arena, start, k, mask, mean, inverse_std, K, D, NORMALIZE)
        d = tl.load(gradients + rows[None, :] * HP + n[:, None], mask=mask[None, :] & (n < H)[:, None], other=0.0)
        acc = product(d, a, acc, PREC)
        sums += d.to(tl.float32)
    return acc, tl.sum(sums, 1)


@triton.jit
def _of_layer(
    hidden, gradients, n, k, begin, end, wide, units,
    H: tl.constexpr, HP: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The same of a layer whose inputs are `hidden` (B, HP) and whose `units` have `gradients` (B, wide)."""
    acc = tl.zeros([n.shape[0], k.shape[0]], tl.float32)
    sums = tl.zeros([n.shape[0], BR], tl.float32)
    for r in range(0, ROWS, BR):
        rows = begin + r + tl.arange(0, BR)
        mask = rows < end
        a = tl.load(hidden + rows[:, None] * HP + k[None, :], mask=mask[:, None] & (k < H)[None, :], other=0.0)
        d = tl.load(gradients + rows[None, :] * wide + n[:, None], mask=mask[None, :] & (n < units)[:, None], other=0.0)
        acc = product(d, a, acc, PREC)
        sums += d.to(tl.float32)
    return acc, tl.sum(sums, 1)


@triton.jit
def _keep(part, acc, bias, n, k, units, inputs, bad):
    """Store a tile of a layer at `part`: weights (units, inputs), then biases, which the tiles of the first inputs have."""
    tl.store(part + n[:, None] * inputs + k[None, :], acc, mask=(n < units)[:, None] & (k < inputs)[None, :])
    if tl.min(k, 0) == 0:
        tl.store(part + units * inputs + n, bias, mask=n < units)
    if tl.sum(tl.where(is_finite(acc), 0, 1)) + tl.sum(tl.where(is_finite(bias), 0, 1)) > 0:
        tl.store(bad, 1)


@triton.jit
def weight_gradients(
    arena, starts, T, first, count, cursor, mean, inverse_std, hidden, gradients, part, bad,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, OP: tl.constexpr,
    L: tl.constexpr, P: tl.constexpr, SPLITS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, BR: tl.constexpr, NORMALIZE: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Program (i, s): tile i of the hidden layers, then of the last if the grid goes on, over ROWS windows of part s."""
    units_tiles: tl.constexpr = (H + BN - 1) // BN
    first_tiles: tl.constexpr = units_tiles * ((K + BK - 1) // BK)
    hidden_columns: tl.constexpr = (H + BK - 1) // BK
    square_tiles: tl.constexpr = units_tiles * hidden_columns
    tile = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(1) * ROWS
    end = tl.minimum(begin + ROWS, tl.load(count + tl.load(cursor)))
    if tile < first_tiles:
        n = tile // ((K + BK - 1) // BK) * BN + tl.arange(0, BN)
        k = tile % ((K + BK - 1) // BK) * BK + tl.arange(0, BK)
        acc, bias = _of_inputs(
            arena, starts, first, cursor, T, mean, inverse_std, gradients, n, k, begin, end,
            K, D, H, HP, ROWS, BR, NORMALIZE, PREC,
        )  # fmt: skip
        _keep(part + split * P, acc, bias, n, k, H, K, bad)
    else:
        layer = tl.minimum((tile - first_tiles) // square_tiles + 1, L).to(tl.int64)
        local = (tile - first_tiles - (layer - 1) * square_tiles).to(tl.int32)
        last = layer == L
        n = local // hidden_columns * BN + tl.arange(0, BN)
        k = local % hidden_columns * BK + tl.arange(0, BK)
        units = tl.where(last, S, H)
        wide = tl.multiple_of(tl.where(last, OP, HP), 16)
        acc, bias = _of_layer(
            hidden + (layer - 1) * (B * HP), gradients + layer * (B * HP), n, k, begin, end, wide, units,
            H, HP, ROWS, BR, PREC,
        )  # fmt: skip
        inner = split * P + H * K + H + (layer - 1) * (H * H + H)
        place = tl.where(last, SPLITS * P + split * (S * H + S), inner)
        _keep(part + place, acc, bias, n, k, units, H, bad)


@triton.jit
def speaker_weight_gradients(
    hidden, gradients, part, count, cursor, bad, from_speaker,
    H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, OP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, BR: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Program (i, s): tile i of the last layer's weights of a chunk of OP speakers, into `part`."""
    columns: tl.constexpr = (H + BK - 1) // BK
    tile = tl.program_id(0)
    begin = tl.program_id(1) * ROWS
    end = tl.minimum(begin + ROWS, tl.load(count + tl.load(cursor)))
    n = tile // columns * BN + tl.arange(0, BN)
    k = tile % columns * BK + tl.arange(0, BK)
    units = tl.minimum(OP, S - from_speaker)
    acc, bias = _of_layer(hidden, gradients, n, k, begin, end, OP, units, H, HP, ROWS, BR, PREC)
    part += tl.program_id(1).to(tl.int64) * (S * H + S)
    mask = (n < units)[:, None] & (k < H)[None, :]
    tl.store(part + (from_speaker + n)[:, None] * H + k[None, :], acc, mask=mask)
    if tl.min(k, 0) == 0:
        tl.store(part + S * H + from_speaker + n, bias, mask=n < units)
    if tl.sum(tl.where(is_finite(acc), 0, 1)) + tl.sum(tl.where(is_finite(bias), 0, 1)) > 0:
        tl.store(bad, 1)
