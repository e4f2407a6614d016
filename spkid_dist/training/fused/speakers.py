"""The last layer, softmax and loss, in tiles over the speakers: no more logits than a tile's are there at once.

Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024: log-sum-exp first, logits again for their gradient.
"""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import forward_product, note_loss, window_labels


@triton.jit
def logit_tile(
    hidden, weights, rows, mask, o,
    H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Logits (BM, BN) of speakers o, minus infinity beyond the last."""
    z = forward_product(hidden, rows, mask, weights, o, H, HP, S, BM, BN, BK, PREC)
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
    loss = lse - (1.0 - SMOOTH) * own
    if SMOOTH > 0:
        loss -= SMOOTH / S * spread
    return loss


@triton.jit
def logit_gradient(z, lse, y, o, scale, mask, S: tl.constexpr, SMOOTH: tl.constexpr):
    """Gradient (BM, OT) of the loss by the logits, times `scale`; 0 where masked and beyond the last speaker."""
    target = tl.where(o[None, :] == y[:, None], 1.0 - SMOOTH, 0.0) + SMOOTH / S
    d = (tl.exp(z - lse[:, None]) - target) * scale
    return tl.where(mask[:, None] & (o < S)[None, :], d, 0.0)


@triton.jit
def speaker_sums(
    hidden, weights, labels, T, first, count, cursor, sums,
    B: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, EACH: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SMOOTH: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Program (i, j): what the loss of the rows of tile i needs of the EACH speakers of part j, into `sums` (5, PARTS, B)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    y = window_labels(labels, first, cursor, T, rows, mask)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    own = tl.zeros([BM], tl.float32)
    spread = tl.zeros([BM], tl.float32)
    best = tl.zeros([BM], tl.int32)
    for o0 in range(0, EACH, BN):
        o = tl.program_id(1) * EACH + o0 + tl.arange(0, BN)
        z = logit_tile(hidden, weights, rows, mask, o, H, HP, S, BM, BN, BK, PREC)
        top, total, own, spread, best = logit_sums(z, o, y, top, total, own, spread, best, S, SMOOTH)
    to = sums + tl.program_id(1) * B + rows
    tl.store(to, top, mask=mask)
    tl.store(to + PARTS * B, total, mask=mask)
    tl.store(to + 2 * PARTS * B, own, mask=mask)
    tl.store(to + 3 * PARTS * B, spread, mask=mask)
    tl.store(to + 4 * PARTS * B, best.to(tl.float32, bitcast=True), mask=mask)


@triton.jit
def speaker_loss(
    sums, log_sums, labels, T, first, count, cursor, loss_part, right_part, bad,
    B: tl.constexpr, S: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Join the parts: the log-sum-exp of each row into `log_sums` (B,), and the program's sums of losses and right answers."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    y = window_labels(labels, first, cursor, T, rows, mask)
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    own = tl.zeros([BM], tl.float32)
    spread = tl.zeros([BM], tl.float32)
    best = tl.zeros([BM], tl.int32)
    for part in range(PARTS):
        at = sums + part * B + rows
        here = tl.load(at, mask=mask, other=0.0)
        place = tl.load(at + 4 * PARTS * B, mask=mask, other=0.0).to(tl.int32, bitcast=True)
        best = tl.where(here > top, place, best)
        higher = tl.maximum(top, here)
        total = total * tl.exp(top - higher) + tl.load(at + PARTS * B, mask=mask, other=1.0) * tl.exp(here - higher)
        own += tl.load(at + 2 * PARTS * B, mask=mask, other=0.0)
        spread += tl.load(at + 3 * PARTS * B, mask=mask, other=0.0)
        top = higher
    lse = tl.log(total) + top
    tl.store(log_sums + rows, lse, mask=mask)
    loss = tl.sum(tl.where(mask, loss_of(lse, own, spread, S, SMOOTH), 0.0), 0)
    right = tl.sum(tl.where(mask & (best == y), 1.0, 0.0), 0)
    note_loss(loss, right, tl.program_id(0), loss_part, right_part, bad)


@triton.jit
def speaker_gradient(
    hidden, weights, log_sums, labels, T, first, count, weight, cursor, gradients, from_speaker,
    H: tl.constexpr, HP: tl.constexpr, S: tl.constexpr, OP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SMOOTH: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of a chunk of speakers, from `from_speaker` on, into `gradients` (B, OP)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    mask = rows < tl.load(count + tl.load(cursor))
    y = window_labels(labels, first, cursor, T, rows, mask)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    o = from_speaker + column
    z = logit_tile(hidden, weights, rows, mask, o, H, HP, S, BM, BN, BK, PREC)
    lse = tl.load(log_sums + rows, mask=mask, other=0.0)
    d = logit_gradient(z, lse, y, o, tl.load(weight + tl.load(cursor)), mask, S, SMOOTH)
    to = gradients + rows[:, None] * OP + column[None, :]
    tl.store(to, d.to(gradients.dtype.element_ty), mask=mask[:, None] & (column < OP)[None, :])
