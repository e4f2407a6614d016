"""The last kernels of a step: partial sums to the gradient, and the optimiser with the step's bookkeeping."""

import triton
import triton.language as tl

from spkid_dist.training.fused.common import CORRECTION_1, CORRECTION_2, OWN_BAD, RATE, STEPS, is_finite


@triton.jit
def _summed(part, i, P: tl.constexpr, P_HIDDEN: tl.constexpr, SPLITS: tl.constexpr, LAST_SPLITS: tl.constexpr):
    """Gradient (block,) of parameters i: the sum of its partial sums, in their order."""
    g = tl.zeros(i.shape, tl.float32)
    for s in tl.static_range(SPLITS):
        g += tl.load(part + s * P_HIDDEN + i, mask=i < P_HIDDEN, other=0.0)
    for s in tl.static_range(LAST_SPLITS):
        place = SPLITS * P_HIDDEN + s * (P - P_HIDDEN) + i - P_HIDDEN
        g += tl.load(part + place, mask=(i >= P_HIDDEN) & (i < P), other=0.0)
    return g


@triton.jit
def _total(part, PARTS: tl.constexpr):
    """Sum of PARTS values, float64."""
    total = tl.zeros([256], tl.float64)
    for at in range(0, PARTS, 256):
        j = at + tl.arange(0, 256)
        total += tl.load(part + j, mask=j < PARTS, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def sum_gradient(
    part, gradient, current, bad,
    P: tl.constexpr, P_HIDDEN: tl.constexpr, SPLITS: tl.constexpr, LAST_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`gradient` (P,); all NaN where the flag is up, which an all-reduce then carries to all ranks."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = _summed(part, i, P, P_HIDDEN, SPLITS, LAST_SPLITS)
    own_bad = tl.load(bad)
    tl.store(gradient + i, tl.where(own_bad != 0, float("nan"), g), mask=i < P)
    if tl.program_id(0) == 0:
        tl.store(current + OWN_BAD, own_bad.to(tl.float32))


@triton.jit
def sum_squares(gradient, norm_part, P: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """Program i: the sum of the squares of the EACH values of `gradient` from i*EACH on."""
    total = tl.zeros([BLOCK], tl.float32)
    for at in range(0, EACH, BLOCK):
        i = tl.program_id(0) * EACH + at + tl.arange(0, BLOCK)
        g = tl.load(gradient + i, mask=i < P, other=0.0)
        total += g * g
    tl.store(norm_part + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def update_weights(
    weights, first_moment, second_moment, part, gradient, current, steps, count, cursor, losses, sums,
    loss_part, right_part, norm_part, bad,
    P: tl.constexpr, P_HIDDEN: tl.constexpr, SPLITS: tl.constexpr, LAST_SPLITS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, OPTIMIZER: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
    BETA_1: tl.constexpr, BETA_2: tl.constexpr, EPS: tl.constexpr, REDUCED: tl.constexpr,
    CLIP: tl.constexpr, NORM_PARTS: tl.constexpr,
):  # fmt: skip
    """Move a block of the parameters, as torch's optimisers do; program 0 also keeps the sums and ends the step."""
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    inside = i < P
    moves = tl.load(bad) == 0
    if REDUCED:  # noqa: SIM108 - this is compiled
        g = tl.load(gradient + i, mask=inside, other=0.0)
    else:
        g = _summed(part, i, P, P_HIDDEN, SPLITS, LAST_SPLITS)
    if tl.sum(tl.where(is_finite(g), 0, 1)) > 0:  # other programs see their part of it, or the flag
        moves = False
        tl.store(bad, 1)
    if CLIP > 0:  # as torch's clip_grad_norm_
        norm = tl.sqrt(tl.sum(tl.load(norm_part + tl.arange(0, NORM_PARTS)), 0))
        g = g * tl.minimum(CLIP / (norm + 1e-6), 1.0)
    rate = tl.load(current + RATE)
    p = tl.load(weights + i, mask=inside, other=0.0)
    if OPTIMIZER == "adamw":
        p = p - rate * DECAY * p
    elif DECAY > 0:
        g = g + DECAY * p
    keep = inside & moves
    if OPTIMIZER == "sgd":
        if MOMENTUM > 0:
            g = MOMENTUM * tl.load(first_moment + i, mask=inside, other=0.0) + g
            tl.store(first_moment + i, g, mask=keep)
        p = p - rate * g
    else:
        m = tl.load(first_moment + i, mask=inside, other=0.0)
        v = tl.load(second_moment + i, mask=inside, other=0.0)
        m = m + (g - m) * (1.0 - BETA_1)
        v = BETA_2 * v + (1.0 - BETA_2) * g * g
        deviation = tl.sqrt(v) / tl.load(current + CORRECTION_2) + EPS
        p = p - rate / tl.load(current + CORRECTION_1) * m / deviation
        tl.store(first_moment + i, m, mask=keep)
        tl.store(second_moment + i, v, mask=keep)
    tl.store(weights + i, p, mask=keep)
    if program == 0:
        if moves:
            tl.store(steps, tl.load(current + STEPS))
        row = tl.load(cursor)
        loss = _total(loss_part, PARTS)
        right = _total(right_part, PARTS)
        # The host looks at the losses: on the rank that it began on, a gradient that is not finite shows there.
        stopped = tl.load(current + OWN_BAD) != 0.0 if REDUCED else moves == 0
        tl.store(losses + row, tl.where(stopped & is_finite(loss), float("nan"), loss).to(tl.float32))
        tl.store(sums, tl.load(sums) + loss)
        tl.store(sums + 1, tl.load(sums + 1) + right)
        tl.store(sums + 2, tl.load(sums + 2) + tl.load(count + row).to(tl.float64))
        tl.store(cursor, row + 1)
