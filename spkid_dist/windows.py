"""How many windows a dataset has, for a context size, an edge rule and a choice of utterances.

Edge rules: ``zero`` centres a window on each frame and pads with zero frames, ``edge`` repeats the first and last frame
instead, ``valid`` takes only windows that fit: T - C + 1 of an utterance of T frames, none of a shorter one.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.errors import InputError, UsageError
from spkid_dist import kernels
from spkid_dist.order import starts_of
from spkid_dist.selection import Selection

EdgeRule = Literal["zero", "edge", "valid"]
EDGE_CODES = {"zero": kernels.ZERO, "edge": kernels.EDGE, "valid": kernels.VALID}


def check_context(in_frames: int, edge: str) -> None:
    """Raise UsageError where `in_frames` or `edge` can't be."""
    if in_frames < 1:
        raise UsageError(f"--in_frames {in_frames}: a window has at least 1 frame; give 1 or more (21 by default)")
    if edge not in EDGE_CODES:
        raise UsageError(f"--edge {edge}: expected one of {', '.join(EDGE_CODES)}")


class DatasetWindows:
    """Window counts of a dataset: `total`, `per_shard`, per block, and how many utterances have none (`num_short`).

    Where all utterances are taken under ``zero`` or ``edge``, a frame is a window, so the counts come from the manifest; else
    the utterance table is read once.

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
        self._first_utterance = np.append(dataset.blocks["first_utterance"], len(dataset.utterances))
        lengths = dataset.utterances["frames"]
        if selection.is_everything:
            self._repeats = np.broadcast_to(np.int32(1), len(lengths))  # one number, however many utterances
        else:
            windows = np.maximum(lengths - in_frames + 1, 0) if edge == "valid" else lengths
            self._repeats = selection.repeats(dataset, windows)
        self.num_short = 0
        if edge == "valid" or not selection.is_everything:
            self._per_block = self._count(dataset, in_frames, EDGE_CODES[edge])
            self.per_shard = np.add.reduceat(self._per_block, self._first_block[:-1])
        else:
            self._per_block = dataset.blocks["frames"]
            self.per_shard = np.array([shard.frames for shard in shards], np.int64)
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
        return self._per_block[blocks.start : blocks.stop].astype(np.int64)

    def repeats_of(self, block: int) -> NDArray[np.int32]:
        """How often each utterance of a block is taken: (U,)."""
        return self._repeats[self._first_utterance[block] : self._first_utterance[block + 1]]

    def _count(self, dataset: ShardDataset, in_frames: int, edge: int) -> NDArray[np.int64]:
        counts = np.empty(len(dataset.blocks), np.int64)
        lengths = dataset.utterances["frames"]  # read where it is mapped
        self.num_short = kernels.count_windows(lengths, self._repeats, self._first_utterance, in_frames, edge, counts)
        return counts
