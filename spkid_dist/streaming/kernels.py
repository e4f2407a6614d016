"""The compiled loops of the stream, and of sums over utterances: plain functions that write into what the caller allocated.

Shapes: T frames, D features per frame, U utterances of a block, C frames per window, R rows of an arena, N windows,
S streams of this rank. Each kernel has a NumPy or Python twin in `tests/format/test_kernels.py`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.compiled import compiled
from spkid_dist.config.choices import EDGE, VALID
from spkid_dist.draws import permute
from spkid_dist.streaming.intrinsics import copy_bytes, prefetch

FLOAT32_EPS = float(np.finfo(np.float32).eps)
CACHE_LINE = 64  # bytes
GATHER_AHEAD = 4  # windows; 2 to 8 are as fast
LOOK_UP_AHEAD = 32  # windows; 16 to 64 are as fast
DEALT_TOGETHER = CACHE_LINE // 8  # streams


@compiled
def windows_of(length: int, context: int, edge: int) -> int:
    """The windows of an utterance of `length` frames."""
    return max(0, length - context + 1) if edge == VALID else length


@compiled
def count_windows(
    lengths: NDArray[np.int32],
    repeats: NDArray[np.int32],
    first: NDArray[np.int64],
    context: int,
    edge: int,
    counts: NDArray[np.int64],
) -> int:
    """Count the windows of each block: ``counts[b]`` (B,); return how many of the chosen utterances have none.

    `lengths` (U,) of all utterances, `repeats` (U,) how often each is taken, `first` (B + 1,) each block's first utterance.
    """
    short = 0
    for b in range(len(counts)):
        total = 0
        for u in range(first[b], first[b + 1]):
            windows = windows_of(lengths[u], context, edge)
            total += repeats[u] * windows
            short += repeats[u] > 0 and windows == 0
        counts[b] = total
    return short


@compiled
def fill_edge(frames: NDArray[Any], nearest: int, edge: int, arena: NDArray[Any], row: int, count: int) -> int:
    """Fill `count` rows of `arena` (R, D) from `row` on with what stands beyond an utterance's end; return the next row.

    That is frame `nearest` of `frames` (T, D) under EDGE, and zeros else.
    """
    for at in range(row, row + count):
        for d in range(frames.shape[1]):
            arena[at, d] = frames[nearest, d] if edge == EDGE else 0
    return row + count


@compiled
def lay_out(
    frames: NDArray[Any],
    lengths: NDArray[np.int32],
    block_labels: NDArray[np.int32],
    repeats: NDArray[np.int32],
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

    Returns -1 where the arrays are not of each other: the arena has fewer rows than that takes, the block other windows or
    fewer frames than that needs. It reads and writes within the arrays whatever they hold, though `copy_bytes` checks nothing.

    Each utterance takes (its windows + C - 1) rows of `arena` (R, D), with the edge rule's rows in place, so that every
    window is C consecutive rows; ``starts[k]`` gets the first of them and ``labels[k]`` the class of window first + k.
    `frames` (T, D), contiguous as `arena` and of its dtype, has the utterances of `lengths` (U,) end to end; `block_labels`
    (U,); `repeats` (U,) says how often each is taken, 0 for not at all.
    """
    left = 0 if edge == VALID else (context - 1) // 2
    num_features, itemsize = frames.shape[1], arena.itemsize
    flat, source = arena.reshape(-1), frames.reshape(-1)
    base = 0  # the utterance's first window, within the block
    frame = 0  # the utterance's first frame, within the block
    at = 0
    room = min(len(starts), len(labels))
    if min(len(block_labels), len(repeats)) < len(lengths) or arena.shape[1] != num_features or min(row, first) < 0:
        return -1
    for u in range(len(lengths)):
        length = lengths[u]
        windows = windows_of(length, context, edge)
        if length < 1 or frame + length > len(frames):
            return -1
        for _ in range(repeats[u]):
            lo = max(first, base) - base
            hi = min(last, base + windows) - base
            if lo < hi:
                if row + hi - lo + context - 1 > len(arena) or at + hi - lo > room:
                    return -1
                for k in range(hi - lo):
                    starts[at + k] = row + k
                    labels[at + k] = block_labels[u]
                at += hi - lo
                t, end = lo - left, hi - left + context - 1  # the rows are those of frames t to end
                inside, behind = max(t, 0), min(end, length)
                row = fill_edge(frames, frame, edge, arena, row, inside - t)
                num_values = (behind - inside) * num_features
                copy_bytes(flat, row * num_features, source, (frame + inside) * num_features, num_values * itemsize)
                row = fill_edge(frames, frame + length - 1, edge, arena, row + behind - inside, end - behind)
            base += windows
        frame += length
    return row if at == last - first else -1


@compiled
def count_rows(
    lengths: NDArray[np.int32],
    repeats: NDArray[np.int32],
    utterances: NDArray[np.int64],
    windows: NDArray[np.int64],
    context: int,
    edge: int,
    rows: NDArray[np.int64],
) -> None:
    """Count the rows of an arena that `lay_out` takes for each of n segments: ``rows[k]`` (n,).

    Segment k is of windows[k, 0] to windows[k, 1] of a block which has utterances[k, 0] to utterances[k, 1] of `lengths` (U,)
    and `repeats` (U,).
    """
    for k in range(len(rows)):
        base = total = 0
        for u in range(utterances[k, 0], utterances[k, 1]):
            of_utterance = windows_of(lengths[u], context, edge)
            for _ in range(repeats[u]):
                inside = min(windows[k, 1], base + of_utterance) - max(windows[k, 0], base)
                if inside > 0:
                    total += inside + context - 1
                base += of_utterance
        rows[k] = total


@compiled
def gather(arena: NDArray[Any], starts: NDArray[np.int64], num_features: int, out: NDArray[Any]) -> None:
    """Copy the windows that begin at rows `starts` (B,) of the flat arena (R*D,) to `out` (B*C*D,), flat too.

    The places are random, so the processor can't foresee them: each window is asked for some windows before its turn.
    On one core 110 us for 1,000 windows of 1,680 bytes out of 66 MB, against 165 us of torch's index_select on two, and
    70 us of copying as many bytes in order.
    """
    if len(starts) == 0:
        return
    size = len(out) // len(starts)
    line = CACHE_LINE // arena.itemsize
    num_bytes = size * arena.itemsize
    for k in range(len(starts)):
        if k + GATHER_AHEAD < len(starts):
            ahead = starts[k + GATHER_AHEAD] * num_features
            for i in range(ahead, ahead + size, line):
                prefetch(arena, i)
            prefetch(arena, ahead + size - 1)
        copy_bytes(out, k * size, arena, starts[k] * num_features, num_bytes)


@compiled
def number_windows(first_ids: NDArray[np.int64], counts: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
    """Fill `ids` (N,) with the numbers of segments (n,), end to end: counts[k] of them from first_ids[k] on."""
    at = 0
    for k in range(len(counts)):
        for i in range(counts[k]):
            ids[at + i] = first_ids[k] + i
        at += counts[k]


@compiled
def deal(
    keys: NDArray[np.uint64],
    bounds: NDArray[np.int64],
    shuffle: bool,
    ids: NDArray[np.int64],
    by_id: bool,
    first: int,
    last: int,
    order: NDArray[np.int64],
    table: NDArray[np.int64],
) -> None:
    """Deal the pools of streams `first` to ``last - 1``, of S, into a table (N,) that goes round the streams.

    The table has rows of S entries, the last row cut short. Stream s has bounds[s] to bounds[s + 1] of the N windows; they are
    permuted by the generator keys[s], where `shuffle`. The table gets their `ids` (N,), `by_id`, or else their places in
    `ids`. `order` is overwritten; it has room for `DEALT_TOGETHER` streams' windows.

    Streams are dealt `DEALT_TOGETHER` at a time, whose values of a row share a cache line, and what belongs to a window is
    looked up afterwards (`look_up`): 11 ns a window, where three tables stream by stream took 24.
    """
    num_streams = len(keys)
    for begin in range(first, last, DEALT_TOGETHER):
        end = min(begin + DEALT_TOGETHER, last)
        base, longest = bounds[begin], 0
        for s in range(begin, end):
            for k in range(bounds[s], bounds[s + 1]):
                order[k - base] = ids[k] if by_id else k
            if shuffle:
                permute(keys[s], order[bounds[s] - base : bounds[s + 1] - base])
            longest = max(longest, bounds[s + 1] - bounds[s])
        for p in range(longest):
            for s in range(begin, end):
                if p < bounds[s + 1] - bounds[s]:
                    table[p * num_streams + s] = order[bounds[s] - base + p]


@compiled
def look_up(
    table: NDArray[np.int64],
    ids: NDArray[np.int64],
    starts: NDArray[np.int64],
    labels: NDArray[np.int64],
    by_id: bool,
    table_starts: NDArray[np.int64],
    table_labels: NDArray[np.int64],
) -> None:
    """Look up the `starts` and `labels` of the windows of a table (N,) of `deal`, which becomes one of `ids`.

    The places are random, as those of `gather`, and asked for some windows before their turn: 17 to 31 ns a window where it
    took 39 to 56, of 2^20 windows, on a machine that others use.
    """
    for at in range(len(table)):
        if at + LOOK_UP_AHEAD < len(table):
            ahead = table[at + LOOK_UP_AHEAD]
            prefetch(starts, ahead)
            prefetch(labels, ahead)
            if not by_id:
                prefetch(ids, ahead)
        place = table[at]
        table_starts[at] = starts[place]
        table_labels[at] = labels[place]
        if not by_id:
            table[at] = ids[place]


@compiled
def round_to_bfloat16(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """The bits of finite float32 values `bits` (n,) rounded to the nearest bfloat16, ties to even: `out` (n,)."""
    for i in range(len(bits)):
        odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
        out[i] = np.uint16((bits[i] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled
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


@compiled
def add_rows(values: NDArray[np.float32], rows: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
    """Add each row of `values` (N, K) to the row ``rows[n]`` of `sums` (R, K): ``sums[rows[n]] += values[n]``."""
    for n in range(values.shape[0]):
        row = sums[rows[n]]
        for k in range(values.shape[1]):
            row[k] += values[n, k]
