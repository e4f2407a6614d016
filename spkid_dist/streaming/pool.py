"""The pools that a rank has in memory, and how they are filled.

A generation's pools lie in one arena of frame rows in which every window is C consecutive rows, so that stacking a batch is
one gather of stretches of memory. The windows' places are kept in their order of use: a batch is a slice of that table. The
next generation is filled by a thread while one is used.

A dataset that fits into one generation of a single rank is laid out once and stays; later epochs only order it anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.layout import BlockArrays
from spkid_dist.order import POOL_DOMAIN, EpochLine, RankShare, Segment, generator_key, starts_of
from spkid_dist.streaming.kernels import DEALT_TOGETHER, deal, lay_out, number_windows
from spkid_dist.streaming.normalization import bfloat16_block, normalize_block
from spkid_dist.streaming.poolmemory import BLOCKS_KEPT
from spkid_dist.streaming.windows import DatasetWindows

NO_WINDOW = -1  # the start of a window whose block is bad, and was passed over


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
class LaidOut:
    """Windows laid out in an arena (R, D), in the order given: `starts` and `labels`, each (N,) int64."""

    arena: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    has_gaps: bool


class PoolFiller:
    """Fills the pools of one rank's share, any generation of any epoch, in any order.

    `bad_blocks` has the blocks that were passed over because they could not be read or were damaged, and why; without
    `skip_bad` such a block is an error.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        counts: DatasetWindows,
        share: RankShare,
        *,
        in_frames: int,
        edge: int,
        seed: int,
        shuffle: bool,
        normalize: bool,
        bfloat16: bool,
        skip_bad: bool,
    ) -> None:
        self.bad_blocks: dict[int, str] = {}
        self._dataset = dataset
        self._counts = counts
        self._share = share
        self._in_frames = in_frames
        self._edge = edge
        self._seed = seed
        self._shuffle = shuffle
        self._normalize = normalize
        self._bfloat16 = bfloat16
        self._dtype = np.dtype("u2" if bfloat16 else "f4" if normalize else dataset.manifest.dtype)  # of the arenas
        self._skip_bad = skip_bad
        # A stream's consecutive pools share the block at their border; what is kept are views of mapped files, downloads,
        # or, where they are normalised, frames of our own.
        self._kept: dict[int, BlockArrays] = {}
        self._line: tuple[int, EpochLine] | None = None
        self._resident: LaidOut | None = None
        self._fits = share.world_size == 1 and share.order.num_generations <= 1

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without what it holds in memory, which is filled again where it arrives."""
        return self.__dict__ | {"_kept": {}, "_line": None, "_resident": None}

    def fill(self, epoch: int, generation: int) -> Pool:
        """The pool of a generation.

        Raises:
            InputError: a block can't be read or is damaged.
        """
        line = self._epoch_line(epoch)
        streams = self._share.streams
        pieces = [list(line.segments(*self._share.order.pool_interval(s, generation))) for s in streams]
        segments = [segment for piece in pieces for segment in piece]
        laid = self._resident_windows() if self._fits else self._lay_out(segments)
        ids = _ids_of(segments)
        sizes = np.array([sum(segment.last - segment.first for segment in piece) for piece in pieces], np.int64)
        order = np.empty(DEALT_TOGETHER * sizes.max(), np.int64)
        starts, labels, pool_ids = (np.empty_like(ids) for _ in range(3))
        deal(
            np.array([generator_key(self._seed, POOL_DOMAIN, epoch, s, generation) for s in streams], np.uint64),
            starts_of(sizes),
            self._shuffle,
            ids,
            laid.starts,
            laid.labels,
            self._fits,
            order,
            starts,
            labels,
            pool_ids,
        )
        return Pool(laid.arena, starts, labels, pool_ids, laid.has_gaps)

    def _epoch_line(self, epoch: int) -> EpochLine:
        if self._line is None or self._line[0] != epoch:
            self._line = (epoch, EpochLine(self._counts, self._seed, epoch, self._shuffle))
        return self._line[1]

    def _lay_out(self, segments: Sequence[Segment]) -> LaidOut:
        """Read the segments' blocks and lay their windows out, in the order given."""
        manifest = self._dataset.manifest
        num_windows = sum(segment.last - segment.first for segment in segments)
        repeats = [self._counts.repeats_of(segment.block) for segment in segments]
        num_utterances = sum(int(counts.sum()) for counts in repeats)
        rows = num_windows + num_utterances * (self._in_frames - 1)
        arena = np.empty((rows, manifest.num_features), self._dtype)
        starts, labels = np.empty(num_windows, np.int64), np.empty(num_windows, np.int64)
        bits = np.dtype(
            f"u{arena.itemsize}"
        )  # the compiled loop knows no short floats; it only copies, and zero is zero
        has_gaps = False
        at = row = 0
        for segment, times, block in zip(segments, repeats, self._read_blocks(segments), strict=True):
            end = at + segment.last - segment.first
            if block is None:
                starts[at:end], labels[at:end], has_gaps = NO_WINDOW, NO_WINDOW, True
            else:
                row = lay_out(
                    block.frames.view(bits),
                    block.lengths,
                    block.labels,
                    times,
                    segment.first,
                    segment.last,
                    self._in_frames,
                    self._edge,
                    arena.view(bits),
                    row,
                    starts[at:end],
                    labels[at:end],
                )
            at = end
        return LaidOut(arena[:row], starts, labels, has_gaps)

    def _read_blocks(self, segments: Sequence[Segment]) -> Iterator[BlockArrays | None]:
        """The segments' blocks, one a segment; those that are not kept are read ahead of their use. None for bad ones."""
        known = self._kept.keys() | self.bad_blocks.keys()
        unread = dict.fromkeys(segment.block for segment in segments if segment.block not in known)
        with closing(self._dataset.try_blocks(list(unread))) as reads:
            for segment in segments:
                if segment.block in unread:
                    del unread[segment.block]
                    yield self._keep(segment.block, self._prepared(next(reads)))
                elif segment.block in self.bad_blocks:
                    yield None
                else:  # kept; or kept once, and dropped since
                    kept: BlockArrays | InputError | None = self._kept.pop(segment.block, None)
                    if kept is None:
                        kept = self._prepared(next(self._dataset.try_blocks([segment.block])))
                    yield self._keep(segment.block, kept)

    def _prepared(self, arrays: BlockArrays | InputError) -> BlockArrays | InputError:
        """A block as it is laid out."""
        if isinstance(arrays, InputError):
            return arrays
        if self._normalize:
            arrays = normalize_block(arrays)
        return bfloat16_block(arrays) if self._bfloat16 else arrays

    def _keep(self, block: int, arrays: BlockArrays | InputError) -> BlockArrays | None:
        """Keep a block that was read; one that is bad is an error, or noted and None."""
        if isinstance(arrays, InputError):
            if not self._skip_bad:
                raise arrays
            self.bad_blocks[block] = str(arrays)
            return None
        self._kept[block] = arrays  # the last used is the last in the dictionary
        if len(self._kept) > BLOCKS_KEPT * len(self._share.streams):
            self._kept.pop(next(iter(self._kept)))
        return arrays

    def _resident_windows(self) -> LaidOut:
        """The whole dataset in the order of storage, so that a window's place is its id."""
        if self._resident is None:
            counts = self._counts.of_blocks(range(len(self._dataset.blocks)))
            first_ids = starts_of(counts)
            self._resident = self._lay_out(
                [Segment(int(b), 0, int(counts[b]), int(first_ids[b])) for b in np.flatnonzero(counts)]
            )
        return self._resident


def _ids_of(segments: Sequence[Segment]) -> NDArray[np.int64]:
    """The ids of the segments' windows, in order."""
    first_ids = np.array([segment.first_id for segment in segments], np.int64)
    counts = np.array([segment.last - segment.first for segment in segments], np.int64)
    ids = np.empty(counts.sum(), np.int64)
    number_windows(first_ids, counts, ids)
    return ids
