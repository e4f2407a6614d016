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
from spkid_dist.order import POOL_DOMAIN, EpochLine, RankShare, Segment, generator_key, permutation, starts_of
from spkid_dist.streaming.kernels import interleave, lay_out
from spkid_dist.streaming.normalization import normalize_block
from spkid_dist.streaming.poolmemory import BLOCKS_KEPT
from spkid_dist.streaming.windows import DatasetWindows

NO_WINDOW = -1  # the start of a window whose block is bad, and was passed over


@dataclass(frozen=True)
class Pool:
    """One generation of a rank: N windows in their order of use.

    `arena` (R, D) has the frames; `starts` (N,) are the windows' first rows of it, `labels` (N,) their classes and `ids` (N,)
    their numbers in the order of storage, all int64. Where `has_gaps`, a start may be NO_WINDOW.
    """

    arena: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    has_gaps: bool


@dataclass(frozen=True)
class LineWindows:
    """Windows in line order, laid out in an arena (R, D): `starts`, `labels` and `ids`, each (N,) int64."""

    arena: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
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
        self._skip_bad = skip_bad
        # A stream's consecutive pools share the block at their border; what is kept are views of mapped files, downloads,
        # or, where they are normalised, frames of our own.
        self._kept: dict[int, BlockArrays] = {}
        self._line: tuple[int, EpochLine] | None = None
        self._resident: LineWindows | None = None
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
        laid = self._take_resident(segments) if self._fits else self._lay_out(segments)
        starts, labels, ids = (np.empty_like(laid.starts) for _ in range(3))
        at = 0
        for column, (stream, piece) in enumerate(zip(streams, pieces, strict=True)):
            end = at + sum(segment.last - segment.first for segment in piece)
            key = generator_key(self._seed, POOL_DOMAIN, epoch, stream, generation)
            order = permutation(key, end - at, self._shuffle)
            of_pool = slice(at, end)
            interleave(
                order,
                laid.starts[of_pool],
                laid.labels[of_pool],
                laid.ids[of_pool],
                column,
                len(streams),
                starts,
                labels,
                ids,
            )
            at = end
        return Pool(laid.arena, starts, labels, ids, laid.has_gaps)

    def _epoch_line(self, epoch: int) -> EpochLine:
        if self._line is None or self._line[0] != epoch:
            self._line = (epoch, EpochLine(self._counts, self._seed, epoch, self._shuffle))
        return self._line[1]

    def _lay_out(self, segments: Sequence[Segment]) -> LineWindows:
        """Read the segments' blocks and lay their windows out, in the order given."""
        manifest = self._dataset.manifest
        num_windows = sum(segment.last - segment.first for segment in segments)
        repeats = [self._counts.repeats_of(segment.block) for segment in segments]
        num_utterances = sum(int(counts.sum()) for counts in repeats)
        rows = num_windows + num_utterances * (self._in_frames - 1)
        arena = np.empty((rows, manifest.num_features), "float32" if self._normalize else manifest.dtype)
        starts, labels = np.empty(num_windows, np.int64), np.empty(num_windows, np.int64)
        bits = np.dtype(f"u{arena.itemsize}")  # the compiled loop knows no float16; it only copies, and zero is zero
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
        return LineWindows(arena[:row], starts, labels, _ids_of(segments), has_gaps)

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
        return normalize_block(arrays) if self._normalize and isinstance(arrays, BlockArrays) else arrays

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

    def _take_resident(self, segments: Sequence[Segment]) -> LineWindows:
        """The segments' windows out of the whole dataset, which the first call lays out in the order of storage."""
        if self._resident is None:
            counts = self._counts.of_blocks(range(len(self._dataset.blocks)))
            first_ids = starts_of(counts)
            self._resident = self._lay_out(
                [Segment(int(b), 0, int(counts[b]), int(first_ids[b])) for b in np.flatnonzero(counts)]
            )
        laid, ids = self._resident, _ids_of(segments)
        return LineWindows(laid.arena, laid.starts[ids], laid.labels[ids], ids, laid.has_gaps)


def _ids_of(segments: Sequence[Segment]) -> NDArray[np.int64]:
    """The ids of the segments' windows, in order."""
    if not segments:
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(s.first_id, s.first_id + s.last - s.first) for s in segments])
