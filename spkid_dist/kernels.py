"""The compiled loops of the stream: plain functions on arrays that write into what the caller allocated.

Shapes: T frames, D features per frame, U utterances of a block, C frames per window, R rows of an arena, N windows,
S streams of this rank. Each kernel has a NumPy or Python twin in `tests/test_kernels.py`.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Edge rules, as the kernels take them; `spkid_dist.windows` has their meaning.
ZERO, EDGE, VALID = 0, 1, 2

FLOAT32_EPS = float(np.finfo(np.float32).eps)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@njit(cache=True, nogil=True)
def permute(key: np.uint64, values: NDArray[np.int64]) -> None:
    """Permute `values` (n,), n < 2^32, in place: Fisher-Yates, drawing from splitmix64 seeded with `key`.

    A draw below k is ``(bits >> 32) * k >> 32`` (Lemire 2019, without the rejection: its bias is below k / 2^32).
    """
    state = np.uint64(key)
    for k in range(len(values) - 1, 0, -1):
        state += _GOLDEN
        bits = (state ^ (state >> _30)) * _MIX_1
        bits = (bits ^ (bits >> _27)) * _MIX_2
        bits = bits ^ (bits >> _31)
        j = np.int64(((bits >> _32) * np.uint64(k + 1)) >> _32)
        values[k], values[j] = values[j], values[k]


@njit(cache=True, nogil=True)
def count_windows(
    lengths: NDArray[np.int32], first: NDArray[np.int64], context: int, counts: NDArray[np.int64]
) -> None:
    """Count the windows that fit into utterances: ``counts[b]`` = sum of max(0, length - C + 1) over block b.

    `lengths` (U,) of all utterances, `first` (B + 1,) each block's first utterance, `counts` (B,).
    """
    for b in range(len(counts)):
        total = 0
        for u in range(first[b], first[b + 1]):
            total += max(0, lengths[u] - context + 1)
        counts[b] = total


@njit(cache=True, nogil=True)
def lay_out(
    frames: NDArray[Any],
    lengths: NDArray[np.int32],
    block_labels: NDArray[np.int32],
    first: int,
    last: int,
    context: int,
    edge: int,
    arena: NDArray[Any],
    row: int,
    starts: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> int:
    """Lay out windows [first, last) of a block in the arena, from row `row` on; return the first row not used.

    Each utterance takes (its windows + C - 1) rows of `arena` (R, D), with the edge rule's rows in place, so that every
    window is C consecutive rows; ``starts[k]`` gets the first of them and ``labels[k]`` the class of window first + k.
    `frames` (T, D) has the utterances of `lengths` (U,) end to end; `block_labels` (U,).
    """
    left = 0 if edge == VALID else (context - 1) // 2
    num_features = frames.shape[1]
    base = 0  # the utterance's first window, within the block
    frame = 0  # the utterance's first frame, within the block
    at = 0
    for u in range(len(lengths)):
        length = lengths[u]
        windows = length if edge != VALID else max(0, length - context + 1)
        lo = max(first, base) - base
        hi = min(last, base + windows) - base
        if lo < hi:
            for k in range(hi - lo):
                starts[at + k] = row + k
                labels[at + k] = block_labels[u]
            at += hi - lo
            for t in range(lo - left, hi - left + context - 1):
                if 0 <= t < length:
                    for d in range(num_features):
                        arena[row, d] = frames[frame + t, d]
                elif edge == EDGE:
                    nearest = frame + min(max(t, 0), length - 1)
                    for d in range(num_features):
                        arena[row, d] = frames[nearest, d]
                else:
                    for d in range(num_features):
                        arena[row, d] = 0
                row += 1
        base += windows
        frame += length
    return row


@njit(cache=True, nogil=True)
def interleave(
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    labels: NDArray[np.int64],
    stream: int,
    num_streams: int,
    table_starts: NDArray[np.int64],
    table_labels: NDArray[np.int64],
) -> None:
    """Deal one pool, permuted by `order` (L,), into column `stream` of the tables, which go round the S streams.

    `starts`, `labels` (L,) are the pool's windows in line order; the tables (N,) are rows of S, the last one cut short.
    """
    for p in range(len(order)):
        table_starts[p * num_streams + stream] = starts[order[p]]
        table_labels[p * num_streams + stream] = labels[order[p]]


@njit(cache=True, nogil=True)
def normalize_utterances(frames: NDArray[np.float32], lengths: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """Bring each feature of each utterance to mean 0 and (population) deviation 1; sums in float64.

    `frames` (T, D) has the utterances of `lengths` (U,) end to end; `out` (T, D) may be `frames` itself. A feature whose
    deviation is below what float32 resolves of its mean is constant, as all of a single frame are, and becomes 0.
    """
    first = 0
    for u in range(len(lengths)):
        end = first + lengths[u]
        for d in range(frames.shape[1]):
            total = 0.0
            for t in range(first, end):
                total += frames[t, d]
            mean = total / lengths[u]
            squares = 0.0
            for t in range(first, end):
                deviation = frames[t, d] - mean
                squares += deviation * deviation
            std = np.sqrt(squares / lengths[u])
            scale = 1.0 / std if std > FLOAT32_EPS * abs(mean) else 0.0
            for t in range(first, end):
                out[t, d] = (frames[t, d] - mean) * scale
        first = end
