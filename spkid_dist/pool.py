"""The pools that a rank has in memory, and how they are filled.

A generation's pools lie in one arena of frame rows in which every window is C consecutive rows, so that a window is one
row of an overlapping view of it, and stacking a batch is one gather. The windows' places are kept in their order of use:
a batch is a slice of that table. The next generation is filled by a thread while one is used.

A dataset that fits into one generation of a single rank is laid out once and stays; later epochs only order it anew.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.layout import BlockArrays
from spkid_dist.kernels import interleave, lay_out
from spkid_dist.normalization import Normalization, normalize_block
from spkid_dist.order import (
    POOL_DOMAIN,
    EpochLine,
    RankShare,
    Segment,
    generator_key,
    permutation,
)
from spkid_dist.windows import EDGE_CODES, DatasetWindows, EdgeRule

BLOCKS_KEPT = 2  # a stream


@dataclass(frozen=True)
class Pool:
    """One generation of a rank: N windows in their order of use.

    `windows` (R - C + 1, C*D) is an overlapping view of the arena, `starts` (N,) int64 the windows' rows of it, and
    `labels` (N,) int64 their classes.
    """

    windows: torch.Tensor
    starts: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class LineWindows:
    """Windows in line order, laid out in an arena (R, D): `starts` (N,) and `labels` (N,), int64."""

    arena: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]


class PoolFiller:
    """Fills the pools of one rank's share, any generation of any epoch, in any order."""

    def __init__(
        self,
        dataset: ShardDataset,
        counts: DatasetWindows,
        share: RankShare,
        *,
        in_frames: int,
        edge: EdgeRule,
        seed: int,
        shuffle: bool,
        normalize: Normalization = "none",
    ) -> None:
        self._dataset = dataset
        self._counts = counts
        self._share = share
        self._in_frames = in_frames
        self._edge = EDGE_CODES[edge]
        self._seed = seed
        self._shuffle = shuffle
        self._normalize = normalize == "utterance"
        # A stream's consecutive pools share the block at their border; what is kept are views of mapped files,
        # or frames of our own where they are normalised.
        self._kept: dict[int, BlockArrays] = {}
        self._line: tuple[int, EpochLine] | None = None
        self._resident: tuple[LineWindows, NDArray[np.int64]] | None = None
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
        starts, labels = np.empty_like(laid.starts), np.empty_like(laid.labels)
        at = 0
        for column, (stream, piece) in enumerate(zip(streams, pieces, strict=True)):
            end = at + sum(segment.last - segment.first for segment in piece)
            key = generator_key(self._seed, POOL_DOMAIN, epoch, stream, generation)
            order = permutation(key, end - at, self._shuffle)
            interleave(order, laid.starts[at:end], laid.labels[at:end], column, len(streams), starts, labels)
            at = end
        return Pool(self._window_view(laid.arena), torch.from_numpy(starts), torch.from_numpy(labels))

    def _window_view(self, arena: NDArray[Any]) -> torch.Tensor:
        rows, num_features = arena.shape
        size = (max(rows - self._in_frames + 1, 0), self._in_frames * num_features)
        return torch.from_numpy(arena).as_strided(size, (num_features, 1))

    def _epoch_line(self, epoch: int) -> EpochLine:
        if self._line is None or self._line[0] != epoch:
            self._line = (epoch, EpochLine(self._counts, self._seed, epoch, self._shuffle))
        return self._line[1]

    def _lay_out(self, segments: list[Segment]) -> LineWindows:
        """Read the segments' blocks and lay their windows out, in the order given."""
        blocks = self._dataset.blocks
        num_windows = sum(segment.last - segment.first for segment in segments)
        num_utterances = sum(int(blocks[segment.block]["utterances"]) for segment in segments)
        rows = num_windows + num_utterances * (self._in_frames - 1)
        manifest = self._dataset.manifest
        arena = np.empty((rows, manifest.num_features), "float32" if self._normalize else manifest.dtype)
        starts, labels = np.empty(num_windows, np.int64), np.empty(num_windows, np.int64)
        bits = np.dtype(f"u{arena.itemsize}")  # the compiled loop knows no float16; it only copies, and zero is zero
        at = row = 0
        for segment in segments:
            block = self._read_block(segment.block)
            end = at + segment.last - segment.first
            row = lay_out(
                block.frames.view(bits),
                block.lengths,
                block.labels,
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
        return LineWindows(arena[:row], starts, labels)

    def _read_block(self, block: int) -> BlockArrays:
        arrays = self._kept.pop(block, None)
        if arrays is None:
            arrays = self._dataset.read_block(block)
            arrays = normalize_block(arrays) if self._normalize else arrays
        self._kept[block] = arrays  # the last used is the last in the dictionary
        if len(self._kept) > BLOCKS_KEPT * len(self._share.streams):
            self._kept.pop(next(iter(self._kept)))
        return arrays

    def _take_resident(self, segments: list[Segment]) -> LineWindows:
        """The segments' windows out of the whole dataset, which the first call lays out."""
        if self._resident is None:
            per_block = self._counts.of_blocks(range(len(self._dataset.blocks)))
            whole = [Segment(block, 0, int(windows)) for block, windows in enumerate(per_block)]
            self._resident = self._lay_out(whole), np.concatenate(([0], np.cumsum(per_block)))
        laid, first = self._resident
        slices = [slice(first[s.block] + s.first, first[s.block] + s.last) for s in segments]
        starts = np.concatenate([laid.starts[piece] for piece in slices])
        return LineWindows(laid.arena, starts, np.concatenate([laid.labels[piece] for piece in slices]))


class BackgroundFill:
    """One pool being filled by a thread of its own, which ends with it."""

    def __init__(self, filler: PoolFiller, epoch: int, generation: int) -> None:
        self._epoch = epoch
        self._generation = generation
        self._filler = filler
        self._pool: Pool | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"fill-pool-{epoch}-{generation}", daemon=True)
        self._thread.start()

    def result(self) -> Pool:
        """Wait for the pool; an error of the thread is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._pool is not None
        return self._pool

    def close(self) -> None:
        """Wait until the thread has ended; its result is dropped."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._pool = self._filler.fill(self._epoch, self._generation)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the consumer's to raise
            self._error = error
