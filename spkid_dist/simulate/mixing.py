"""Compute how many utterances a batch is expected to mix: from pools, and from a permutation of all windows.

A batch takes k windows of each stream's pool, a random sample of it without replacement, and a pool is P neighbouring
positions of the line, on which an utterance's m windows are neighbours too. A pool that lies anywhere with equal chance
meets all of an utterance (or is all within it) at |P - m| + 1 places, and s windows of it at 2, for each s below both.
Utterances are met by one pool a batch here; the few that two streams share are counted twice.
"""

import numpy as np
from numpy.typing import NDArray

Lengths = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of windows (n,), each from 1, and how many utterances have so many (n,)."""


def distinct_in_permutation(lengths: Lengths, batch_size: int) -> float:
    """The expected utterances among `batch_size` windows drawn from all, without replacement."""
    windows, utterances = lengths
    total = int((windows * utterances).sum())
    return float((utterances * _met(int(windows.max()), total, min(batch_size, total))[windows]).sum())


def distinct_in_pools(lengths: Lengths, batch_size: int, num_streams: int, pool_windows: int) -> float:
    """The expected utterances of a batch of `num_streams` streams, each with pools of `pool_windows`."""
    windows, utterances = lengths
    total = int((windows * utterances).sum())
    pool = max(1, min(pool_windows, total // num_streams))
    met = _met_in_pool(min(int(windows.max()), pool), pool, min(batch_size / num_streams, pool))
    partly = np.cumsum(met) - met  # [a]: the sum over s below a
    inside = np.minimum(windows, pool)
    places = (abs(pool - windows) + 1) * met[inside] + 2 * partly[inside]
    return float(num_streams * (utterances * places).sum() / total)


def _met_in_pool(most: int, pool: int, draws: float) -> NDArray[np.float64]:
    """`_met` where a part of the batches draws one more than the others, so that they draw `draws` on average."""
    fewer = int(draws)
    share = draws - fewer
    met = (1 - share) * _met(most, pool, fewer)
    return met + share * _met(most, pool, fewer + 1) if share else met


def _met(most: int, pool: int, draws: int) -> NDArray[np.float64]:
    """The chance that `draws` of `pool` windows hold one of s given ones, for s from 0 to `most`: (most + 1,)."""
    s = np.arange(most)
    missed = np.cumprod(np.maximum(pool - s - draws, 0) / (pool - s))
    return np.append(0.0, 1.0 - missed)
