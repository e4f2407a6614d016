"""The compiled loops of sharding: plain functions on arrays that write into what the caller allocated.

Shapes: T frames of an utterance, D features per frame. Each kernel has a NumPy twin in `tests/format/test_kernels.py`.
"""

import numpy as np
from numpy.typing import NDArray

from shards.compiled import compiled


@compiled
def append_frames(
    source: NDArray[np.float32],
    out: NDArray[np.float32],
    shift: NDArray[np.float64],
    total: NDArray[np.float64],
    total_squared: NDArray[np.float64],
) -> None:
    """Copy an utterance's frames (T, D) to `out` (T, D) and add them to the block's sums, in one pass.

    `total` and `total_squared` (D,) gain the sums of ``x - shift`` and of its square; `shift` (D,) is any value near the
    mean, against cancellation. They end up not finite exactly when a value is NaN or infinite: squares of float32 do not
    overflow float64, so the loop needs no test.
    """
    num_frames, num_features = source.shape
    for t in range(num_frames):
        for d in range(num_features):
            value = source[t, d]
            out[t, d] = value
            deviation = np.float64(value) - shift[d]
            total[d] += deviation
            total_squared[d] += deviation * deviation


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


# Compiled into `spkid_dist.streaming.kernels` too, whose cache on disk numba does not renew when this file changes; the loop
# can't change: orders, hashes of keys and job identities follow from it.
@compiled
def mix(z: np.uint64) -> np.uint64:
    """Splitmix64's finaliser: every bit of `z` changes every bit of the result about half of the time."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def _is_white(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13


@compiled
def split_lines(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
    """Find the lines of `data` that are not blank, without the ASCII white space around them; return their number.

    Lines end with LF or CR. Line i is ``data[starts[i]:ends[i]]``; there must be room for ``len(data) // 2 + 1`` lines.
    """
    size = len(data)
    count = 0
    at = 0
    while at < size:
        start = at
        while at < size and data[at] != 10 and data[at] != 13:
            at += 1
        end = at
        while start < end and _is_white(data[start]):
            start += 1
        while start < end and _is_white(data[end - 1]):
            end -= 1
        if start < end:
            starts[count] = start
            ends[count] = end
            count += 1
        at += 1
    return count


@compiled
def hash_slices(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    seed: np.uint64,
    hashes: NDArray[np.uint64],
) -> None:
    """Hash the byte strings ``data[starts[i]:ends[i]]`` into `hashes` (n,), another hash for each `seed`.

    A string is taken as little-endian words of 8 bytes, each mixed into the state by exclusive or and splitmix64's
    finaliser. The last word holds the 0 to 7 bytes that are left, and the length's low 8 bits at the top.
    """
    for i in range(len(starts)):
        at, end = starts[i], ends[i]
        length = end - at
        state = mix(seed + GOLDEN)
        while at + 8 <= end:
            word = np.uint64(0)
            for byte in range(8):
                word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
            state = mix(state ^ word)
            at += 8
        word = np.uint64(length & 0xFF) << np.uint64(56)
        for byte in range(end - at):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        hashes[i] = mix(state ^ word)


@compiled
def find_component(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    component: int,
    firsts: NDArray[np.int64],
    lasts: NDArray[np.int64],
) -> None:
    """Find each string's component, split at ``/`` and counted from 1; `firsts` and `lasts` are equal where it is missing."""
    for i in range(len(starts)):
        at, end = starts[i], ends[i]
        number = 1
        while at < end and number < component:
            if data[at] == 47:
                number += 1
            at += 1
        firsts[i] = at
        if number == component:
            while at < end and data[at] != 47:
                at += 1
        lasts[i] = at


@compiled
def find_improper(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> int:
    """The first string that is not the shortest path below a folder; -1 where all are.

    Such a path has a component that is empty (one that begins with ``/`` has it too), ``.`` or ``..``, or a NUL.
    """
    for i in range(len(starts)):
        start, end = starts[i], ends[i]
        begin = start  # of the component
        for at in range(start, end + 1):
            if at == end or data[at] == 47:
                size = at - begin
                if size == 0 or (size <= 2 and data[begin] == 46 and data[at - 1] == 46):
                    return i
                begin = at + 1
            elif data[at] == 0:
                return i
    return -1


@compiled
def sum_pairs(keys: NDArray[np.uint64], speakers: NDArray[np.uint64], sums: NDArray[np.uint64]) -> None:
    """Add to `sums` (2,), modulo 2^64, two hashes of each pair of hashes: what the pairs are, in whatever order."""
    for i in range(len(keys)):
        pair = mix(keys[i] ^ mix(speakers[i] + GOLDEN))
        sums[0] += pair
        sums[1] += mix(pair + GOLDEN)


@compiled
def add_unseen(hashes: NDArray[np.uint64], table: NDArray[np.uint64], unseen: NDArray[np.int64]) -> int:
    """Put the hashes into `table`, and the indices of those that it lacked into `unseen`; return the number of those.

    `table` is of a power of two's size, more than it will ever hold, and begins as zeros (0 is taken as 1).
    """
    mask = np.uint64(len(table) - 1)
    count = 0
    for i in range(len(hashes)):
        value = hashes[i] if hashes[i] != 0 else np.uint64(1)
        place = value & mask
        while table[place] != 0 and table[place] != value:
            place = (place + np.uint64(1)) & mask
        if table[place] == 0:
            table[place] = value
            unseen[count] = i
            count += 1
    return count
