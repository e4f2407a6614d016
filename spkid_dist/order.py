"""Define the order of an epoch, by arithmetic alone.

Everything follows from (N windows, S streams, P windows a pool, seed) and two integers of state: the epoch e and i, the
windows consumed so far by all ranks together. Nothing here is proportional to N.

1. The shards are permuted by a generator keyed by (seed, e), the blocks of each shard by one keyed by (seed, e, shard).
   Their windows, end to end, are a line of N positions.
2. Stream s, of S, owns the s-th interval of the line, N div S + [s < N mod S] positions long.
3. A stream's interval is cut into pools of P positions; pool g's positions are permuted by a generator keyed by
   (seed, e, s, g). The g-th pools of all streams are *generation* g.
4. Global index i belongs to stream i mod S, at position i div S of it. Step k of global batch size G is [kG, min(kG + G, N)).
5. Rank r of W owns the streams with s mod W = r, and takes of each step exactly the indices of its streams.

Blocks are random samples of the corpus already (the sharder shuffles utterances), so permuting them within their shards
loses no randomness, and planning an epoch costs O(shards) instead of O(blocks).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spkid_dist.draws import BLOCKS_DOMAIN, SHARDS_DOMAIN, generator_key, permutation

SHARDS_KEPT = 128  # orders of their blocks, some 10 kB each


@dataclass(frozen=True)
class EpochOrder:
    """Where each global index of an epoch lies: S streams, pools of P positions, over N windows."""

    num_windows: int
    num_streams: int
    pool_windows: int

    def stream_start(self, stream: int) -> int:
        """The line position where a stream's interval begins; that of stream S is N."""
        quotient, remainder = divmod(self.num_windows, self.num_streams)
        return stream * quotient + min(stream, remainder)

    def pool_interval(self, stream: int, generation: int) -> tuple[int, int]:
        """The line positions [first, last) of a stream's pool."""
        start, end = self.stream_start(stream), self.stream_start(stream + 1)
        return min(start + generation * self.pool_windows, end), min(start + (generation + 1) * self.pool_windows, end)

    @property
    def generation_windows(self) -> int:
        """Windows of a full generation: global indices [g * this, (g + 1) * this) are generation g."""
        return self.num_streams * self.pool_windows

    @property
    def num_generations(self) -> int:
        """Generations of an epoch."""
        return -(-self.num_windows // self.generation_windows)


@dataclass(frozen=True)
class RankShare:
    """What rank `rank` of `world_size` takes of an epoch."""

    order: EpochOrder
    rank: int
    world_size: int

    @property
    def streams(self) -> range:
        """This rank's streams."""
        return range(self.rank, self.order.num_streams, self.world_size)

    def consumed_before(self, index: int) -> int:
        """How many of the global indices below `index` are this rank's."""
        rows, stream = divmod(index, self.order.num_streams)
        return rows * len(self.streams) + len(range(self.rank, stream, self.world_size))


class WindowCounts(Protocol):
    """How many windows each shard and each block has; see `spkid_dist.streaming.windows`."""

    @property
    def per_shard(self) -> NDArray[np.int64]:
        """Windows of each shard."""
        ...

    def blocks_of(self, shard: int) -> range:
        """The blocks of a shard."""
        ...

    def of_blocks(self, blocks: range) -> NDArray[np.int64]:
        """Windows of each of `blocks`."""
        ...


@dataclass(frozen=True)
class Segment:
    """Windows [first, last) of a block, as they follow one another on the line.

    `first_id` is the number that window `first` has among all windows in the order of storage, in every epoch the same.
    `more` is whether the block's windows go on behind these.
    """

    block: int
    first: int
    last: int
    first_id: int
    more: bool = False


class EpochLine:
    """The line of one epoch: which windows of which blocks lie at an interval of positions."""

    def __init__(self, counts: WindowCounts, seed: int, epoch: int, shuffle: bool) -> None:
        self._counts = counts
        self._seed = seed
        self._epoch = epoch
        self._shuffle = shuffle
        self._shards = permutation(generator_key(seed, SHARDS_DOMAIN, epoch), len(counts.per_shard), shuffle)
        self._starts = starts_of(counts.per_shard[self._shards])
        self._first_ids = starts_of(counts.per_shard)
        # Streams are intervals, so pool after pool of a stream is of the same shard, or of the one behind it.
        self._blocks_of = lru_cache(maxsize=SHARDS_KEPT)(self._permuted_blocks)

    def segments(self, first: int, last: int) -> Iterator[Segment]:
        """The segments that make up the positions [first, last)."""
        place = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            base, end = int(self._starts[place]), int(self._starts[place + 1])
            if first < end:
                yield from self._blocks_of(int(self._shards[place])).cut(first - base, min(last, end) - base)
            first, place = max(first, end), place + 1

    def _permuted_blocks(self, shard: int) -> "PermutedBlocks":
        blocks = self._counts.blocks_of(shard)
        counts = self._counts.of_blocks(blocks)
        key = generator_key(self._seed, BLOCKS_DOMAIN, self._epoch, shard)
        order = permutation(key, len(blocks), self._shuffle)
        first_ids = self._first_ids[shard] + starts_of(counts)[:-1]
        starts = starts_of(counts[order])
        return PermutedBlocks((blocks.start + order).tolist(), starts.tolist(), first_ids[order].tolist())


@dataclass(frozen=True)
class PermutedBlocks:
    """A shard's B blocks in an epoch's order; block k covers positions starts[k] to starts[k + 1] of the shard's line.

    Lists, because single numbers are looked up, which takes arrays several times as long.
    """

    blocks: list[int]
    starts: list[int]
    first_ids: list[int]

    def cut(self, first: int, last: int) -> Iterator[Segment]:
        """The segments of the positions [first, last)."""
        place = bisect_right(self.starts, first) - 1
        while first < last:
            base, end = self.starts[place], self.starts[place + 1]
            if first < end:
                until, first_id = min(last, end), self.first_ids[place] + first - base
                yield Segment(self.blocks[place], first - base, until - base, first_id, until < end)
            first, place = max(first, end), place + 1


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of `counts` (n,) begins when they lie end to end, and where the last one ends: (n + 1,)."""
    return np.concatenate(([0], np.cumsum(counts)))
