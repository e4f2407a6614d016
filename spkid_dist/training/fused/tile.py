"""The tile path: one kernel takes a tile of windows through all layers, the loss, and back.

What a layer passes to the next goes through memory, where the weights' gradients need it anyway, and comes back from the
cache: held in registers, a tile would need whole matrices of weights there beside it.
"""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import (
    backward_product,
    begin_step,
    first_product,
    forward_product,
    note_loss,
    relu,
    window_labels,
    window_starts,
)
from spkid_dist.training.fused.speakers import logit_gradient, logit_sums, logit_tile, loss_of


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
    out = rows[:, None] * HP + hn[None, :]
    first_values: tl.constexpr = H * K + H
    square_values: tl.constexpr = H * H + H

    h = relu(first_product(arena, start, mask, weights, hn, mean, inverse_std, K, D, H, BM, HP, BK, NORMALIZE, PREC))
    tl.store(hidden + out, h.to(hidden.dtype.element_ty), mask=mask[:, None])
    for layer in tl.static_range(1, L):
        tl.debug_barrier()  # other threads of the program have stored what is read now
        below = hidden + (layer - 1) * B * HP
        place = weights + first_values + (layer - 1) * square_values
        h = relu(forward_product(below, rows, mask, place, hn, H, HP, H, BM, HP, BK, PREC))
        tl.store(hidden + layer * B * HP + out, h.to(hidden.dtype.element_ty), mask=mask[:, None])
    tl.debug_barrier()

    last = hidden + (L - 1) * B * HP
    place = weights + first_values + (L - 1) * square_values
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    own = tl.zeros([BM], tl.float32)
    spread = tl.zeros([BM], tl.float32)
    best = tl.zeros([BM], tl.int32)
    z = tl.zeros([BM, OT], tl.float32)
    for o0 in range(0, OP, OT):
        o = o0 + tl.arange(0, OT)
        z = logit_tile(last, place, rows, mask, o, H, HP, S, BM, OT, BK, PREC)
        top, total, own, spread, best = logit_sums(z, o, y, top, total, own, spread, best, S, SMOOTH)
    lse = tl.log(total) + top
    loss = tl.where(mask, loss_of(lse, own, spread, S, SMOOTH), 0.0)
    right = tl.where(mask & (best == y), 1.0, 0.0)
    note_loss(tl.sum(loss, 0), tl.sum(right, 0), program, loss_part, right_part, bad)

    speaker_gradients = gradients + L * B * HP
    for o0 in range(0, OP, OT):
        o = o0 + tl.arange(0, OT)
        if OT < OP:  # else the logits are still there
            z = logit_tile(last, place, rows, mask, o, H, HP, S, BM, OT, BK, PREC)
        d = logit_gradient(z, lse, y, o, scale, mask, S, SMOOTH)
        to = speaker_gradients + rows[:, None] * OP + o[None, :]
        tl.store(to, d.to(gradients.dtype.element_ty), mask=mask[:, None])
    tl.debug_barrier()
    back = backward_product(speaker_gradients, rows, mask, place, hn, 0, S, OP, S, H, BM, HP, BK, PREC)
    for above in tl.static_range(0, L):
        layer = L - 1 - above
        if above > 0:
            tl.debug_barrier()
            place = weights + first_values + layer * square_values
            back = backward_product(
                gradients + (layer + 1) * B * HP, rows, mask, place, hn, 0, H, HP, H, H, BM, HP, BK, PREC
            )
        h = tl.load(hidden + layer * B * HP + out, mask=mask[:, None], other=0.0)
        back = tl.where(h > 0.0, back, 0.0)
        tl.store(gradients + layer * B * HP + out, back.to(gradients.dtype.element_ty), mask=mask[:, None])
