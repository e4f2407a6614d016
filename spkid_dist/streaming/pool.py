"""Fill the pools that a rank has in memory.

A generation's pools lie in one arena of frame rows in which every window is C consecutive rows, so that stacking a batch is
one gather of stretches of memory. The windows' places are kept in their order of use: a batch is a slice of that table. The
next generation is filled by a thread while one is used.

A dataset that fits into one generation of a single rank is laid out once and stays; later epochs only order it anew.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkid_dist.draws import POOL_DOMAIN, generator_key, generator_keys
from spkid_dist.order import EpochLine, RankShare, Segment, starts_of
from spkid_dist.streaming.arena import WINDOWS_A_THREAD, Arena, ArenaFiller
from spkid_dist.streaming.kernels import DEALT_TOGETHER, deal, look_up, number_windows
from spkid_dist.streaming.turns import TakingTurns
from spkid_dist.streaming.windows import DatasetWindows


@dataclass(frozen=True)
class Pool:
    """One generation of a rank: N windows in their order of use.

    `arena` (R, D) has the frames, as bits (uint16) where they are bfloat16, which NumPy does not know; `starts` (N,) are the
    windows' first rows of it, `labels` (N,) their classes and `ids` (N,) their numbers in the order of storage, all int64.
    Where `has_gaps`, a start may be NO_WINDOW.
    """

    arena: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    has_gaps: bool


@dataclass(frozen=True)
class PoolPlan:
    """What one generation of a rank consists of: the pools of its S streams, of N windows, end to end.

    `segments` (n of them) are their windows, `ids` (N,) int64 these windows' numbers in the order of storage; stream s has
    bounds[s] to bounds[s + 1] of them, which the generator keys[s] permutes.
    """

    segments: list[Segment]
    ids: NDArray[np.int64]
    bounds: NDArray[np.int64]
    keys: NDArray[np.uint64]


class PoolFiller:
    """Fills the pools of one rank's share, any generation of any epoch, in any order; `arenas` lays out their windows."""

    def __init__(
        self, arenas: ArenaFiller, counts: DatasetWindows, share: RankShare, seed: int, shuffle: bool, num_blocks: int
    ) -> None:
        self.arenas = arenas
        self._counts = counts
        self._share = share
        self._seed = seed
        self._shuffle = shuffle
        self._num_blocks = num_blocks
        self._line: tuple[int, EpochLine] | None = None
        self._resident: LaidOut | None = None
        self._memory = TakingTurns()
        self._fits = share.world_size == 1 and share.order.num_generations <= 1

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what it holds in memory, which is filled again where it arrives."""
        return self.__dict__ | {"_line": None, "_resident": None}

    def fill(self, epoch: int, generation: int) -> Pool:
        """The pool of a generation.

        Raises:
            InputError: a block can't be read or is damaged.
        """
        plan = self.plan(epoch, generation)
        laid = self._resident_windows() if self._fits else self._lay_out(plan.segments)
        table = self.deal(plan, by_id=self._fits)
        starts, labels = self.look_up(table, plan.ids, laid.arena.starts, laid.arena.labels, by_id=self._fits)
        return Pool(laid.arena.rows, starts, labels, table, laid.has_gaps)

    def plan(self, epoch: int, generation: int) -> PoolPlan:
        """What a generation consists of."""
        if self._line is None or self._line[0] != epoch:
            self._line = (epoch, EpochLine(self._counts, self._seed, epoch, self._shuffle))
        line, streams = self._line[1], self._share.streams
        pieces = [list(line.segments(*self._share.order.pool_interval(s, generation))) for s in streams]
        segments = [segment for piece in pieces for segment in piece]
        sizes = np.array([sum(segment.last - segment.first for segment in piece) for piece in pieces], np.int64)
        keys = generator_keys(generator_key(self._seed, POOL_DOMAIN, epoch), np.array(streams), generation)
        return PoolPlan(segments, _ids_of(segments), starts_of(sizes), keys)

    def deal(self, plan: PoolPlan, by_id: bool) -> NDArray[np.int64]:
        """The windows of a generation in their order of use: their ids (N,), or their places in the plan."""
        num_streams, num_windows = len(plan.keys), len(plan.ids)
        longest = int(np.diff(plan.bounds).max())
        table = np.empty(num_windows, np.int64)

        def deal_streams(streams: range) -> None:
            order = np.empty(DEALT_TOGETHER * longest, np.int64)
            deal(plan.keys, plan.bounds, self._shuffle, plan.ids, by_id, streams.start, streams.stop, order, table)

        self._share_out(deal_streams, num_streams, DEALT_TOGETHER, num_windows)
        return table

    def look_up(
        self,
        table: NDArray[np.int64],
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        labels: NDArray[np.int64],
        by_id: bool,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `starts` and `labels` of the windows of a `table` (N,) of `deal`, which becomes one of `ids`."""
        table_starts, table_labels = np.empty_like(table), np.empty_like(table)

        def look_up_windows(windows: range) -> None:
            part = slice(windows.start, windows.stop)
            look_up(table[part], ids, starts, labels, by_id, table_starts[part], table_labels[part])

        self._share_out(look_up_windows, len(table), 1, len(table))
        return table_starts, table_labels

    def _share_out(self, task: Callable[[range], None], count: int, together: int, num_windows: int) -> None:
        """Do a task for the numbers below `count`, by threads; each does a multiple of `together`."""
        threads = max(1, min(self.arenas.threads, num_windows // WINDOWS_A_THREAD))
        each = -(-count // (threads * together)) * together or 1
        parts = [range(first, min(first + each, count)) for first in range(0, count, each)]
        if len(parts) > 1:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(task, parts))
        else:
            for part in parts:
                task(part)

    def _lay_out(self, segments: Sequence[Segment]) -> "LaidOut":
        first_rows = self.arenas.first_rows(segments)
        num_windows = sum(segment.last - segment.first for segment in segments)
        arena = Arena(
            self._memory.empty((int(first_rows[-1]), self.arenas.num_features), self.arenas.dtype),
            np.empty(num_windows, np.int64),
            np.empty(num_windows, np.int64),
        )
        return LaidOut(arena, has_gaps=self.arenas.fill(segments, first_rows, arena))

    def _resident_windows(self) -> "LaidOut":
        """The whole dataset in the order of storage, so that a window's place is its id."""
        if self._resident is None:
            self._resident = self._lay_out(self.all_segments())
        return self._resident

    def all_segments(self) -> list[Segment]:
        """The whole dataset in the order of storage."""
        counts = self._counts.of_blocks(range(self._num_blocks))
        first_ids = starts_of(counts)
        return [Segment(int(b), 0, int(counts[b]), int(first_ids[b])) for b in np.flatnonzero(counts)]


@dataclass(frozen=True)
class LaidOut:
    """Windows laid out, some of them without a start where it `has_gaps`."""

    arena: Arena
    has_gaps: bool


def _ids_of(segments: Sequence[Segment]) -> NDArray[np.int64]:
    """The ids of the segments' windows, in order."""
    first_ids = np.array([segment.first_id for segment in segments], np.int64)
    counts = np.array([segment.last - segment.first for segment in segments], np.int64)
    ids = np.empty(counts.sum(), np.int64)
    number_windows(first_ids, counts, ids)
    return ids
