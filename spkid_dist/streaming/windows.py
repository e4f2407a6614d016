"""Count the windows of a dataset, for a context size, an edge rule and a choice of utterances; and the bytes of pools."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.layout import key_sum
from spkid_dist.config.checks import check_context
from spkid_dist.config.choices import EDGE_CODES, VALID, EdgeRule
from spkid_dist.order import Segment, starts_of
from spkid_dist.streaming import kernels
from spkid_dist.streaming.selection import Selection

UTTERANCES_AT_A_TIME = 2**20
BLOCKS_AT_A_TIME = 2**16  # that are counted: half a megabyte of counts


class DatasetWindows:
    """Window counts of a dataset: `total`, `per_shard`, per block, and how many utterances have none (`num_short`).

    Where all utterances are taken under ``zero`` or ``edge``, a frame is a window, so the counts come from the manifest; else
    the utterance table is read once. What is kept is a number a shard; blocks are counted anew where they are asked for.

    Raises:
        InputError: there is no window at all, or the selection names what the dataset lacks.
        UsageError: `in_frames` < 1, an unknown edge rule, or an empty selection.
    """

    def __init__(
        self, dataset: ShardDataset, in_frames: int, edge: EdgeRule, selection: Selection | None = None
    ) -> None:
        check_context(in_frames, edge)
        selection = selection or Selection()
        shards = dataset.manifest.shards
        self._first_block = starts_of(np.array([shard.blocks for shard in shards]))
        self._blocks, self._in_frames, self._edge = dataset.blocks, in_frames, EDGE_CODES[edge]
        self._speakers, self._num_speakers = dataset.utterances["speaker"], len(dataset.manifest.speakers)
        self._key_hashes = dataset.utterances["key_hash"]
        lengths = self._lengths = dataset.utterances["frames"]  # read where it is mapped
        if selection.is_everything:
            self._repeats = np.broadcast_to(np.int32(1), len(lengths))  # one number, however many utterances
        else:
            windows = np.maximum(lengths - in_frames + 1, 0) if edge == "valid" else lengths
            self._repeats = selection.repeats(dataset, windows)
        self.num_short = 0
        self._takes_all = selection.is_everything
        self._by_manifest = edge != "valid" and selection.is_everything
        self.per_shard = np.array([shard.frames for shard in shards], np.int64)
        if not self._by_manifest:
            self._count_shards()
        self.total = int(self.per_shard.sum())
        if self.total == 0:
            longest = int(lengths[self._repeats > 0].max())
            raise InputError(
                f"{dataset.folder}: no utterance has {in_frames} frames (the longest has {longest}), so with --edge valid "
                "there is no window; give a smaller --in_frames, or --edge zero"
            )

    def blocks_of(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(int(self._first_block[shard]), int(self._first_block[shard + 1]))

    def of_blocks(self, blocks: range) -> NDArray[np.int64]:
        """Windows of each of `blocks` (consecutive ones)."""
        if self._by_manifest:
            return self._blocks["frames"][blocks.start : blocks.stop].astype(np.int64)
        return self._count(blocks)[0]

    def repeats_of(self, block: int) -> NDArray[np.int32]:
        """How often each utterance of a block is taken: (U,)."""
        first, end = self._utterances_before(range(block, block + 1))
        return self._repeats[first:end]

    def rows_of(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """The rows that each of the segments takes in an arena, by the utterance table: (n,)."""
        records = self._blocks[np.array([segment.block for segment in segments], np.int64)]
        first = records["first_utterance"]
        utterances = np.stack([first, first + records["utterances"]], axis=1)
        np.clip(utterances, 0, len(self._lengths), out=utterances)  # the table is mapped, and may change
        windows = np.array([(segment.first, segment.last) for segment in segments], np.int64).reshape(-1, 2)
        rows = np.empty(len(segments), np.int64)
        kernels.count_rows(self._lengths, self._repeats, utterances, windows, self._in_frames, self._edge, rows)
        return rows

    def per_utterance(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows and class of each utterance, in the order of storage: (U,) int64 both. All are taken once."""
        assert self._takes_all
        frames = np.asarray(self._lengths, np.int64)
        windows = np.maximum(frames - self._in_frames + 1, 0) if self._edge == VALID else frames
        return windows, np.asarray(self._speakers, np.int64)

    def by_speaker(self) -> tuple[NDArray[np.int64], int]:
        """Utterances of each speaker that are taken and have a window (num_spks,), and how many are not taken at all.

        One pass over the utterance table.
        """
        counts, left_out = np.zeros(self._num_speakers, np.int64), 0
        needed = self._in_frames if self._edge == VALID else 1
        for first in range(0, len(self._lengths), UTTERANCES_AT_A_TIME):
            rows = slice(first, first + UTTERANCES_AT_A_TIME)
            taken = self._repeats[rows] > 0
            left_out += int((~taken).sum())
            speakers = self._speakers[rows][taken & (self._lengths[rows] >= needed)]
            known = speakers[(speakers >= 0) & (speakers < len(counts))]  # a damaged table is found with its block
            counts += np.bincount(known, minlength=len(counts))
        return counts, left_out

    def key_sum(self) -> str:
        """What the chosen utterances are known by (`shards.layout.key_sum`). One pass over the utterance table."""
        firsts = range(0, len(self._lengths), UTTERANCES_AT_A_TIME)
        rows = (slice(first, first + UTTERANCES_AT_A_TIME) for first in firsts)
        return key_sum(np.asarray(self._key_hashes[part])[self._repeats[part] > 0] for part in rows)

    def _count_shards(self) -> None:
        """Set `per_shard` and `num_short` by the utterance table."""
        self.per_shard[:] = 0
        for start in range(0, len(self._blocks), BLOCKS_AT_A_TIME):
            blocks = range(start, min(start + BLOCKS_AT_A_TIME, len(self._blocks)))
            counts, short = self._count(blocks)
            self.num_short += short
            shards = np.searchsorted(self._first_block, np.arange(blocks.start, blocks.stop), side="right") - 1
            np.add.at(self.per_shard, shards, counts)

    def _count(self, blocks: range) -> tuple[NDArray[np.int64], int]:
        """Windows of each of `blocks` (B,), and how many of their chosen utterances have none."""
        counts = np.empty(len(blocks), np.int64)
        first = self._utterances_before(blocks)
        short = kernels.count_windows(self._lengths, self._repeats, first, self._in_frames, self._edge, counts)
        return counts, short

    def _utterances_before(self, blocks: range) -> NDArray[np.int64]:
        """The first utterance of each of `blocks`, and of the one behind them: (B + 1,)."""
        firsts = self._blocks["first_utterance"][blocks.start : blocks.stop + 1]
        return np.append(firsts, len(self._lengths))[
            : len(blocks) + 1
        ]  # a copy, contiguous as the kernel is compiled for


BLOCKS_KEPT = 2  # a stream; see `spkid_dist.streaming.arena`
TABLE_BYTES = 8  # of a window's entry in each of its tables


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """What the memory of a rank's pools follows from; `value_bytes` is that of a stored feature, 2 or 4."""

    num_windows: int
    num_frames: int
    num_utterances: int
    num_features: int
    value_bytes: int
    block_frames: int
    in_frames: int
    num_streams: int
    pool_windows: int
    rank_streams: int
    world_size: int

    @property
    def rank_windows(self) -> int:
        """Windows of this rank in one generation, at most."""
        generation = min(self.num_streams * self.pool_windows, self.num_windows)
        return -(-generation // self.world_size) + self.num_streams

    @property
    def own_bytes(self) -> int:
        """Bytes at most of the pools themselves, in use and being filled; all there is where shards are mapped."""
        utterances = -(-self.num_utterances * self.rank_windows // self.num_frames) + 2 * self.rank_streams
        arena = (self.rank_windows + utterances * (self.in_frames - 1)) * self._row_bytes
        # In use: an arena and three tables; being filled: the same, and three tables in line order.
        return 2 * arena + 9 * TABLE_BYTES * self.rank_windows

    @property
    def max_bytes(self) -> int:
        """`own_bytes`, and the blocks that are kept where they can't be mapped: of a remote dataset."""
        return self.own_bytes + self._kept_bytes

    @property
    def placed_bytes(self) -> int:
        """Bytes at most where the pools lie on a device: of their tables while they are made, and the blocks that are kept."""
        return 9 * TABLE_BYTES * self.rank_windows + self._kept_bytes

    @property
    def _kept_bytes(self) -> int:
        return BLOCKS_KEPT * self.rank_streams * 2 * self.block_frames * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.num_features * self.value_bytes
