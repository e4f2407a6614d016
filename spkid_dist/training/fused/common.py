"""What all fused kernels share: matrix products, the windows of a step, and the values that a step begins with.

Names of sizes in kernels: B rows of a step, K = C*D inputs, D features, H units of a hidden layer, HP columns that they take
in memory, L hidden layers, S speakers, OP columns that their logits' gradient takes; BM, BN, BK a tile's rows, columns, depth.

A step's row of the table is found by `cursor`, which only the last kernel of a step moves: all kernels before it read it
freely. That last kernel reads the step's rate and bias corrections from `current`, which the first one has written, and
not by the cursor, as some of its programs begin when others have ended.
"""

import triton
import triton.language as tl

RATE = tl.constexpr(0)  # places in `current` (5,) float32
CORRECTION_1 = tl.constexpr(1)
CORRECTION_2 = tl.constexpr(2)
STEPS = tl.constexpr(3)
OWN_BAD = tl.constexpr(4)  # whether this rank's gradient is not finite, before the all-reduce


@triton.jit
def product(a, b, acc, PREC: tl.constexpr):
    """`acc` (M, N) float32 + a (M, K) @ b (K, N)."""
    if PREC == "bf16":
        acc = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif PREC == "bf16_interpreted":  # the interpreter multiplies bfloat16 as if they were whole numbers
        acc = tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.bfloat16).to(tl.float32), acc)
    else:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PREC)
    return acc


@triton.jit
def relu(z):
    """As torch's: NaN stays NaN, which `tl.maximum` would make 0."""
    return tl.where(z <= 0.0, 0.0, z)


@triton.jit
def is_finite(value):
    """False for NaN and both infinities."""
    return tl.abs(value) < float("inf")


@triton.jit
def window_starts(starts, first, cursor, T, rows, mask):
    """First values' places (int64 rows of the arena) of windows `rows` of the step, round the ring's T places."""
    at = (tl.load(first + tl.load(cursor)) + rows) % T
    return tl.load(starts + at, mask=mask, other=0).to(tl.int64)


@triton.jit
def window_labels(labels, first, cursor, T, rows, mask):
    """Speakers (int32) of windows `rows` of the step."""
    at = (tl.load(first + tl.load(cursor)) + rows) % T
    return tl.load(labels + at, mask=mask, other=0)


@triton.jit
def window_values(arena, start, k, mask, mean, inverse_std, K: tl.constexpr, D: tl.constexpr, NORMALIZE: tl.constexpr):
    """Values k (BK,) of the windows from `start` (BM,) on: (BM, BK), normalised where asked; 0 beyond K."""
    x = tl.load(arena + start[:, None] * D + k[None, :], mask=mask[:, None] & (k < K)[None, :], other=0.0)
    if NORMALIZE:
        m = tl.load(mean + k % D, mask=k < K, other=0.0)
        s = tl.load(inverse_std + k % D, mask=k < K, other=0.0)
        x = (x.to(tl.float32) - m[None, :]) * s[None, :]
    return x


@triton.jit
def first_product(
    arena, start, mask, weights, n, mean, inverse_std,
    K: tl.constexpr, D: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORMALIZE: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Units n (BN,) of the first layer, before their activation: (BM, BN) of the windows from `start` on."""
    acc = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        x = window_values(arena, start, k, mask, mean, inverse_std, K, D, NORMALIZE)
        w = tl.load(weights + n[None, :] * K + k[:, None], mask=(k < K)[:, None] & (n < H)[None, :], other=0.0)
        acc = product(x, w, acc, PREC)
    return acc + tl.load(weights + H * K + n, mask=n < H, other=0.0).to(tl.float32)[None, :]


@triton.jit
def forward_product(
    values, rows, mask, weights, n,
    H: tl.constexpr, HP: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Units n (BN,) of a layer's N, before their activation: (BM, BN) of `values` (B, HP) and `weights` (N, H), then (N,)."""
    acc = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, H, BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(values + rows[:, None] * HP + k[None, :], mask=mask[:, None] & (k < H)[None, :], other=0.0)
        w = tl.load(weights + n[None, :] * H + k[:, None], mask=(k < H)[:, None] & (n < N)[None, :], other=0.0)
        acc = product(x, w, acc, PREC)
    return acc + tl.load(weights + N * H + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def backward_product(
    gradients, rows, mask, weights, k, from_unit,
    UNITS: tl.constexpr, WIDE: tl.constexpr, N: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """What comes back to inputs k (BN,) of a layer's H, (BM, BN), from `gradients` (B, WIDE) of UNITS of its N units."""
    acc = tl.zeros([BM, BN], tl.float32)
    for n0 in range(0, UNITS, BK):
        n = n0 + tl.arange(0, BK)
        there = (n < UNITS) & (from_unit + n < N)
        d = tl.load(gradients + rows[:, None] * WIDE + n[None, :], mask=mask[:, None] & there[None, :], other=0.0)
        w = tl.load(
            weights + (from_unit + n)[:, None] * H + k[None, :], mask=there[:, None] & (k < H)[None, :], other=0.0
        )
        acc = product(d, w, acc, PREC)
    return acc


@triton.jit
def begin_step(rate, cursor, steps, current, LOG_BETA_1: tl.constexpr, LOG_BETA_2: tl.constexpr):
    """Write `current` of this step: rate, both of Adam's bias corrections (the second's root), and its count of steps."""
    step = tl.load(steps) + 1.0
    tl.store(current + RATE, tl.load(rate + tl.load(cursor)))
    exact = step.to(tl.float64)  # 1 - 0.999^t of float32 has an error of 1e-4 in the first steps
    tl.store(current + CORRECTION_1, (1.0 - tl.exp(exact * LOG_BETA_1)).to(tl.float32))
    tl.store(current + CORRECTION_2, tl.sqrt(1.0 - tl.exp(exact * LOG_BETA_2)).to(tl.float32))
    tl.store(current + STEPS, step)


@triton.jit
def note_loss(loss, right, program, loss_part, right_part, bad):
    """Keep a program's sums of losses and right answers; a sum that is not finite raises the flag."""
    tl.store(loss_part + program, loss)
    tl.store(right_part + program, right)
    if not is_finite(loss):  # programs that write the same need no order
        tl.store(bad, 1)
