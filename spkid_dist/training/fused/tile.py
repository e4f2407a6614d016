"""The tile path: one kernel takes a tile of windows through all layers, the loss, and back."""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import (
    begin_step,
    note_loss,
    product,
    relu,
    window_labels,
    window_starts,
    window_values,
)


@triton.jit
def _logits(h, weights, o, hn, H: tl.constexpr, S: tl.constexpr, PREC: tl.constexpr):
    """Logits (BM, OT) of speakers o, minus infinity beyond the last; `weights` is the last layer's place."""
    w = tl.load(weights + o[None, :] * H + hn[:, None], mask=(hn < H)[:, None] & (o < S)[None, :], other=0.0)
    z = product(h, w, tl.zeros([h.shape[0], o.shape[0]], tl.float32), PREC)
    z += tl.load(weights + S * H + o, mask=o < S, other=0.0)[None, :]
    return tl.where((o < S)[None, :], z, -float("inf"))


@triton.jit
def logit_sums(z, o, y, top, total, own, spread, best, S: tl.constexpr, SMOOTH: tl.constexpr):
    """Go on with a tile z (BM, OT) of logits: maximum, sum of exponentials, label's logit, sum, first place of the maximum."""
    here = tl.max(z, 1)
    place = tl.min(tl.where(z == here[:, None], o[None, :], S), 1)
    best = tl.where(here > top, place, best)
    higher = tl.maximum(top, here)
    total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
    own += tl.sum(tl.where(o[None, :] == y[:, None], z, 0.0), 1)
    if SMOOTH > 0:
        spread += tl.sum(tl.where((o < S)[None, :], z, 0.0), 1)
    return higher, total, own, spread, best


@triton.jit
def loss_of(lse, own, spread, S: tl.constexpr, SMOOTH: tl.constexpr):
    """Losses (BM,): with smoothing e, 1 - e of the label's and e of the mean over all speakers."""
    if SMOOTH > 0:
        return lse - (1.0 - SMOOTH) * own - SMOOTH / S * spread
    return lse - own


@triton.jit
def logit_gradient(z, lse, y, o, scale, mask, S: tl.constexpr, SMOOTH: tl.constexpr):
    """Gradient (BM, OT) of the loss by the logits, times `scale`; 0 where masked and beyond the last speaker."""
    target = tl.where(o[None, :] == y[:, None], 1.0 - SMOOTH, 0.0) + SMOOTH / S
    d = (tl.exp(z - lse[:, None]) - target) * scale
    return tl.where(mask[:, None] & (o < S)[None, :], d, 0.0)


@triton.jit
def tile_step(
    arena, starts, labels, T, first, count, rate, weight, cursor, steps, current, weights, mean, inverse_std, hidden, gradients,
    loss_part, right_part, bad,
    B: tl.constexpr, K: tl.constexpr, D: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, OT: tl.constexpr, OP: tl.constexpr, SMOOTH: tl.constexpr, NORMALIZE: tl.constexpr,
    LOG_BETA_1: tl.constexpr, LOG_BETA_2: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Program i: windows i*BM and on, into `hidden` (L, B, HP) and `gradients` (L, B, HP) then (B, OP)."""
    program = tl.program_id(0)
    if program == 0:
        begin_step(rate, cursor, steps, current, LOG_BETA_1, LOG_BETA_2)
    rows = program * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    start = window_starts(starts, first, cursor, T, rows, mask)
    y = window_labels(labels, first, cursor, T, rows, mask)
    scale = tl.load(weight + tl.load(cursor))
    hn = tl.arange(0, HP)
    used = hn < H
    out = rows[:, None] * HP + hn[None, :]
    square = used[:, None] & used[None, :]
    first_values: tl.constexpr = H * K + H
    square_values: tl.constexpr = H * H + H

    acc = tl.zeros([BM, HP], tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        x = window_values(arena, start, k, mask, mean, inverse_std, K, D, NORMALIZE)
        w = tl.load(weights + hn[None, :] * K + k[:, None], mask=(k < K)[:, None] & used[None, :], other=0.0)
        acc = product(x, w, acc, PREC)
    h = relu(acc + tl.load(weights + H * K + hn, mask=used, other=0.0)[None, :])
    tl.store(hidden + out, h.to(hidden.dtype.element_ty), mask=mask[:, None])
    for layer in tl.static_range(1, L):
        place = weights + first_values + (layer - 1) * square_values
        w = tl.load(place + hn[None, :] * H + hn[:, None], mask=square, other=0.0)
        z = product(h, w, tl.zeros([BM, HP], tl.float32), PREC)
        h = relu(z + tl.load(place + H * H + hn, mask=used, other=0.0)[None, :])
        tl.store(hidden + layer * B * HP + out, h.to(hidden.dtype.element_ty), mask=mask[:, None])

    place = weights + first_values + (L - 1) * square_values
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    own = tl.zeros([BM], tl.float32)
    spread = tl.zeros([BM], tl.float32)
    best = tl.zeros([BM], tl.int32)
    z = tl.zeros([BM, OT], tl.float32)
    for o0 in range(0, OP, OT):
        o = o0 + tl.arange(0, OT)
        z = _logits(h, place, o, hn, H, S, PREC)
        top, total, own, spread, best = logit_sums(z, o, y, top, total, own, spread, best, S, SMOOTH)
    lse = tl.log(total) + top
    loss = tl.where(mask, loss_of(lse, own, spread, S, SMOOTH), 0.0)
    right = tl.where(mask & (best == y), 1.0, 0.0)
    note_loss(tl.sum(loss, 0), tl.sum(right, 0), program, loss_part, right_part, bad)

    d = tl.zeros([BM, HP], tl.float32)
    for o0 in range(0, OP, OT):
        o = o0 + tl.arange(0, OT)
        if OT < OP:  # one tile's logits are still there
            z = _logits(h, place, o, hn, H, S, PREC)
        dz = logit_gradient(z, lse, y, o, scale, mask, S, SMOOTH)
        to = gradients + L * B * HP + rows[:, None] * OP + o[None, :]
        tl.store(to, dz.to(gradients.dtype.element_ty), mask=mask[:, None])
        w = tl.load(place + o[:, None] * H + hn[None, :], mask=(o < S)[:, None] & used[None, :], other=0.0)
        d = product(dz, w, d, PREC)
    d = tl.where(h > 0.0, d, 0.0)
    tl.store(gradients + (L - 1) * B * HP + out, d.to(gradients.dtype.element_ty), mask=mask[:, None])
    tl.debug_barrier()  # activations that other threads of the program have stored
    for back in tl.static_range(1, L):
        layer = L - 1 - back
        w = tl.load(
            weights + first_values + layer * square_values + hn[:, None] * H + hn[None, :], mask=square, other=0.0
        )
        d = product(d, w, tl.zeros([BM, HP], tl.float32), PREC)
        h = tl.load(hidden + layer * B * HP + out, mask=mask[:, None], other=0.0)
        d = tl.where(h > 0.0, d, 0.0)
        tl.store(gradients + layer * B * HP + out, d.to(gradients.dtype.element_ty), mask=mask[:, None])
