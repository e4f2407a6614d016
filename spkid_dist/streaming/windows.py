"""Count the windows of a dataset, for a context size, an edge rule and a choice of utterances; and the bytes of pools."""

from collections.abc import Iterator, Sequence
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
        manifest = dataset.manifest
        self._dataset, self._in_frames, self._edge = dataset, in_frames, EDGE_CODES[edge]
        self._first_block = starts_of(np.array([shard.blocks for shard in manifest.shards]))
        self._num_blocks, self._num_speakers = len(dataset.blocks), len(manifest.speakers)
        if selection.is_everything:
            # one number, however many utterances
            self._repeats: NDArray[np.int32] = np.broadcast_to(np.int32(1), manifest.num_utterances)
        else:
            lengths = dataset.utterance_column("frames")
            windows = np.maximum(lengths - in_frames + 1, 0) if edge == "valid" else lengths
            self._repeats = selection.repeats(dataset, windows)
        self.num_short = 0
        self._takes_all = selection.is_everything
        self._by_manifest = edge != "valid" and selection.is_everything
        self.per_shard = np.array([shard.frames for shard in manifest.shards], np.int64)
        if not self._by_manifest:
            self._count_shards()
        self.total = int(self.per_shard.sum())
        if self.total == 0:
            longest = int(dataset.utterances["frames"][self._repeats > 0].max())
            raise InputError(
                f"{dataset.folder}: no utterance has {in_frames} frames (the longest has {longest}), so with --edge valid "
                "there is no window; give a smaller --in_frames, or --edge zero"
            )

    def blocks_of(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(int(self._first_block[shard]), int(self._first_block[shard + 1]))

    def of_blocks(self, blocks: range) -> NDArray[np.int64]:
        """Windows of each of `blocks`: those of a shard, or of all shards.

        Raises:
            InputError: the tables have changed since windows were counted, or can't be read.
        """
        if self._by_manifest:
            counts = self._dataset.block_rows(blocks)["frames"].astype(np.int64)
        else:
            counts = np.concatenate([counts for _, counts, _ in self._count(blocks)])
        shards = np.searchsorted(self._first_block, (blocks.start, blocks.stop))
        if counts.sum() != self.per_shard[shards[0] : shards[1]].sum():
            raise self._changed()
        return counts

    def repeats_of(self, block: int) -> NDArray[np.int32]:
        """How often each utterance of a block is taken: (U,)."""
        row = self._dataset.block_rows(range(block, block + 1))[0]
        first = int(row["first_utterance"])
        return np.array(
            self._repeats[first : first + int(row["utterances"])]
        )  # of one type, as loops are compiled for types

    def rows_of(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """The rows that each of the segments takes in an arena, by the utterance table: (n,)."""
        lengths, repeats, utterances = self._utterances_of([segment.block for segment in segments])
        windows = np.array([(segment.first, segment.last) for segment in segments], np.int64).reshape(-1, 2)
        rows = np.empty(len(segments), np.int64)
        kernels.count_rows(lengths, repeats, utterances, windows, self._in_frames, self._edge, rows)
        return rows

    def _utterances_of(self, blocks: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Frames and repeats (U,) of utterances, among them those of n blocks; and which are a block's: (n, 2), from and to."""
        block_table, table = self._dataset.blocks, self._dataset.utterances
        if self._dataset.is_checked:
            assert isinstance(block_table, np.ndarray)
            rows = block_table[np.array(blocks, np.int64)]
            begins = rows["first_utterance"]
            return table["frames"], self._repeats, np.stack([begins, begins + rows["utterances"]], axis=1)
        lengths, repeats = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for block in blocks:
            rows = self._dataset.block_rows(range(block, block + 1))
            lengths.append(self._dataset.utterance_rows(rows, block)["frames"])
            repeats.append(self.repeats_of(block)[: len(lengths[-1])])
        ends = np.cumsum([len(part) for part in lengths])
        return np.concatenate(lengths), np.concatenate(repeats), np.stack([ends[:-1], ends[1:]], axis=1)

    def per_utterance(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows and class of each utterance, in the order of storage: (U,) int64 both. All are taken once."""
        assert self._takes_all
        frames = np.asarray(self._dataset.utterance_column("frames"), np.int64)
        windows = np.maximum(frames - self._in_frames + 1, 0) if self._edge == VALID else frames
        return windows, np.asarray(self._dataset.utterance_column("speaker"), np.int64)

    def by_speaker(self) -> tuple[NDArray[np.int64], int]:
        """Utterances of each speaker that are taken and have a window (num_spks,), and how many are not taken at all.

        One pass over the utterance table.
        """
        counts, left_out = np.zeros(self._num_speakers, np.int64), 0
        needed = self._in_frames if self._edge == VALID else 1
        for first in range(0, len(self._repeats), UTTERANCES_AT_A_TIME):
            rows = self._dataset.utterances[first : first + UTTERANCES_AT_A_TIME]
            taken = self._repeats[first : first + UTTERANCES_AT_A_TIME] > 0
            left_out += int((~taken).sum())
            speakers = rows["speaker"][taken & (rows["frames"] >= needed)]
            known = speakers[(speakers >= 0) & (speakers < len(counts))]  # a wrong one is found with its block
            counts += np.bincount(known, minlength=len(counts))
        return counts, left_out

    def key_sum(self) -> str:
        """What the chosen utterances are known by (`shards.layout.key_sum`). One pass over the utterance table."""
        firsts = range(0, len(self._repeats), UTTERANCES_AT_A_TIME)
        parts = (slice(first, first + UTTERANCES_AT_A_TIME) for first in firsts)
        table = self._dataset.utterances
        return key_sum(np.asarray(table[part]["key_hash"])[self._repeats[part] > 0] for part in parts)

    def _count_shards(self) -> None:
        """Set `per_shard` and `num_short` by the utterance table."""
        self.per_shard[:] = 0
        for blocks, counts, short in self._count(range(self._num_blocks)):
            self.num_short += short
            shards = np.searchsorted(self._first_block, np.arange(blocks.start, blocks.stop), side="right") - 1
            np.add.at(self.per_shard, shards, counts)

    def _count(self, blocks: range) -> Iterator[tuple[range, NDArray[np.int64], int]]:
        """Parts of `blocks`: windows of each of their blocks, and how many of the chosen utterances in them have none.

        A part is as many blocks as have `UTTERANCES_AT_A_TIME`, or one.
        """
        for start in range(blocks.start, blocks.stop, BLOCKS_AT_A_TIME):
            stop = min(start + BLOCKS_AT_A_TIME, blocks.stop)
            rows = self._dataset.block_rows(range(start, stop))
            firsts = np.append(rows["first_utterance"], rows["first_utterance"][-1] + rows["utterances"][-1])
            begin = 0
            while begin < len(rows):
                most = np.searchsorted(firsts, firsts[begin] + UTTERANCES_AT_A_TIME, side="right") - 1
                end = max(begin + 1, min(int(most), len(rows)))
                utterances = self._dataset.utterance_rows(rows[begin:end], start + begin)
                lengths, repeats = np.array(utterances["frames"]), np.array(self._repeats[firsts[begin] : firsts[end]])
                counts, first = np.empty(end - begin, np.int64), firsts[begin : end + 1] - firsts[begin]
                short = kernels.count_windows(lengths, repeats, first, self._in_frames, self._edge, counts)
                yield range(start + begin, start + end), counts, short
                begin = end

    def _changed(self) -> InputError:
        return InputError(
            f"{self._dataset.folder}: its tables have changed since the dataset was opened; open it again"
        )


BLOCKS_KEPT = 1  # a stream; see `spkid_dist.streaming.arena`
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
        """Bytes at most of the pools themselves, in use and being filled."""
        utterances = -(-self.num_utterances * self.rank_windows // self.num_frames) + 2 * self.rank_streams
        arena = (self.rank_windows + utterances * (self.in_frames - 1)) * self._row_bytes
        # In use: an arena and three tables; being filled: the same, and three tables in line order.
        return 2 * arena + 9 * TABLE_BYTES * self.rank_windows

    @property
    def max_bytes(self) -> int:
        """`own_bytes`, and the blocks that are kept for the next pools."""
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
