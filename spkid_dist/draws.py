"""Draw random numbers and permutations from keyed generators: the same on every machine and version of NumPy.

A generator is named by what it is for: (seed, domain, epoch, ...). Its key is arithmetic on these numbers, so nothing is kept
between two draws, and a training that goes on draws what it would have drawn.
"""

import numpy as np
from numpy.typing import NDArray

from shards.compiled import compiled
from shards.kernels import GOLDEN as GOLDEN_64
from shards.kernels import mix

GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR, SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = 2**64 - 1

# Domains keep apart the generators of different purposes.
SHARDS_DOMAIN, BLOCKS_DOMAIN, POOL_DOMAIN, DROPOUT_DOMAIN = 1, 2, 3, 4

_32 = np.uint64(32)


def generator_key(seed: int, *parts: int) -> int:
    """The 64-bit key of the generator for `parts`: each part is mixed in by splitmix64's finaliser.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    key = _mix(seed + GOLDEN)
    for part in parts:
        key = _mix((key ^ (part & MASK)) + GOLDEN)
    return key


def generator_keys(key: int, parts: NDArray[np.int64], last: int) -> NDArray[np.uint64]:
    """The keys (n,) that follow from `key` with each of `parts` (n,), and then `last`, mixed in."""
    mixed = _mix_all((np.uint64(key) ^ parts.astype(np.uint64)) + np.uint64(GOLDEN))
    return _mix_all((mixed ^ np.uint64(last)) + np.uint64(GOLDEN))


def _mix_all(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST_FACTOR)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND_FACTOR)
    return z ^ (z >> np.uint64(31))


def _mix(z: int) -> int:
    z &= MASK
    z = ((z ^ (z >> 30)) * FIRST_FACTOR) & MASK
    z = ((z ^ (z >> 27)) * SECOND_FACTOR) & MASK
    return z ^ (z >> 31)


def permutation(key: int, length: int, shuffle: bool = True) -> NDArray[np.int64]:
    """The permutation (length,) of 0..length-1 by the generator `key`, or the identity where not `shuffle`."""
    order = np.arange(length)
    if shuffle:
        permute(np.uint64(key), order)
    return order


@compiled
def permute(key: np.uint64, values: NDArray[np.int64]) -> None:
    """Permute `values` (n,), n < 2^32, in place: Fisher-Yates, drawing from splitmix64 seeded with `key`.

    A draw below k is ``(bits >> 32) * k >> 32`` (Lemire 2019, without the rejection: its bias is below k / 2^32).
    """
    state = np.uint64(key)
    for k in range(len(values) - 1, 0, -1):
        state += GOLDEN_64
        j = np.int64(((mix(state) >> _32) * np.uint64(k + 1)) >> _32)
        values[k], values[j] = values[j], values[k]
