"""Read blocks, and lay out their windows as rows of an arena, by several threads.

How many rows each segment takes follows from the utterance table, so that threads lay out segments side by side, and where a
window lies depends on neither their number nor their pace.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.layout import BlockArrays
from spkid_dist.order import Segment, starts_of
from spkid_dist.streaming.kernels import lay_out
from spkid_dist.streaming.normalization import bfloat16_block, normalize_block
from spkid_dist.streaming.windows import DatasetWindows

NO_WINDOW = -1  # the start of a window whose block is bad, and was passed over
WINDOWS_A_THREAD = 2**14  # at least: a thread takes as long to start as some thousands of windows to lay out

Read = Callable[[], BlockArrays | InputError]
"""Reads a block: its arrays, or what is wrong with it."""


@dataclass(frozen=True)
class Arena:
    """Where segments are laid out: `rows` (R, D), and `starts` and `labels` (N,) int64 of their windows, in their order.

    `first_row` is what starts call the first of the rows.
    """

    rows: NDArray[Any]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    first_row: int = 0


@dataclass(frozen=True)
class Block:
    """A block as it is laid out: the bits of its `frames` (T, D), and of its U utterances what `kernels.lay_out` takes."""

    frames: NDArray[Any]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]
    repeats: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """How blocks become windows: frames per window, the edge rule's code, what is done to frames, and to bad blocks."""

    in_frames: int
    edge: int
    normalize: bool
    bfloat16: bool
    skip_bad: bool


class ArenaFiller:
    """Lays out windows of a dataset's blocks, by up to `threads` threads.

    `bad_blocks` has the blocks that were passed over because they could not be read or were damaged, and why; unless
    `options.skip_bad` such a block is an error. Of each of `streams` the block at the end of what was laid out stays in memory,
    where more windows of it follow: those of its next pool.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        counts: DatasetWindows,
        options: BlockOptions,
        *,
        streams: int,
        threads: int,
    ) -> None:
        self.bad_blocks: dict[int, str] = {}
        self.dtype = np.dtype("u2" if options.bfloat16 else "f4" if options.normalize else dataset.manifest.dtype)
        self.num_features = dataset.manifest.num_features
        self.threads = threads
        self._dataset = dataset
        self._counts = counts
        self._bits = np.dtype(f"u{self.dtype.itemsize}")  # the compiled loop knows no short floats; it only copies
        self._options = options
        self._most_kept = streams
        self._kept: dict[int, Block] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the blocks that it keeps."""
        return self.__dict__ | {"_kept": {}}

    def drop_blocks(self) -> None:
        """Keep no block: those that are laid out are not needed again soon."""
        self._kept.clear()

    def first_rows(self, segments: Sequence[Segment]) -> NDArray[np.int64]:
        """The first row of each segment in an arena, and the one behind the last segment: (n + 1,)."""
        return starts_of(self._counts.rows_of(segments))

    def fill(self, segments: Sequence[Segment], first_rows: NDArray[np.int64], arena: Arena) -> bool:
        """Read the segments' blocks and lay out their windows; returns whether some are of bad blocks, without a start.

        Raises:
            InputError: a block can't be read or is damaged, the first one in the segments' order.
        """
        first_windows = starts_of(np.array([segment.last - segment.first for segment in segments], np.int64)).tolist()
        first_row = first_rows.tolist()
        rows = arena.rows.view(self._bits)
        of_block: dict[int, list[int]] = {}
        for number, segment in enumerate(segments):
            of_block.setdefault(segment.block, []).append(number)

        def lay(block: int, read: Read) -> Block | InputError | None:
            found = self._find(block, read)
            for number in of_block[block]:
                windows = slice(first_windows[number], first_windows[number + 1])
                starts, labels = arena.starts[windows], arena.labels[windows]
                if isinstance(found, Block):
                    part = rows[: first_row[number + 1]]
                    self._lay_out(segments[number], found, part, first_row[number], starts, labels)
                    if arena.first_row:
                        starts += arena.first_row
                else:
                    starts[:], labels[:] = NO_WINDOW, NO_WINDOW
            return found

        threads = max(1, min(self.threads, first_windows[-1] // WINDOWS_A_THREAD))
        with closing(self._dataset.map_blocks(lay, list(of_block), threads)) as results:
            good = [
                self._keep(block, found, max((segments[number] for number in numbers), key=_end_of).more)
                for (block, numbers), found in zip(of_block.items(), results, strict=True)
            ]
        return not all(good)

    def _find(self, block: int, read: Read) -> Block | InputError | None:
        """A block as it is laid out, kept or read now; or what is wrong with it; None where that is known."""
        if block in self.bad_blocks:
            return None
        kept = self._kept.get(block)
        if kept is not None:
            return kept
        arrays = read()
        if isinstance(arrays, InputError):
            return arrays
        if self._options.normalize:
            arrays = normalize_block(arrays)
        if self._options.bfloat16:
            arrays = bfloat16_block(arrays)
        return Block(arrays.frames.view(self._bits), arrays.lengths, arrays.labels, self._counts.repeats_of(block))

    def _lay_out(
        self,
        segment: Segment,
        block: Block,
        rows: NDArray[Any],
        row: int,
        starts: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        """Lay out a segment in `rows`, from `row` on, to their end, as the utterance table says."""
        end = lay_out(
            block.frames,
            block.lengths,
            block.labels,
            block.repeats,
            segment.first,
            segment.last,
            self._options.in_frames,
            self._options.edge,
            rows,
            row,
            starts,
            labels,
        )
        if end != len(rows):
            raise InputError(
                f"{self._dataset.folder}: the utterance table has changed since the dataset was opened; open it again"
            )

    def _keep(self, block: int, found: Block | InputError | None, more: bool) -> bool:
        """Keep a block of which `more` is to be laid out; one that is bad is an error, or noted. Returns whether it is good."""
        if isinstance(found, InputError):
            if not self._options.skip_bad:
                raise found
            self.bad_blocks[block] = str(found)
            return False
        if found is None:
            return False
        self._kept.pop(block, None)
        if more:
            self._kept[block] = found  # the last used is the last in the dictionary
        if len(self._kept) > self._most_kept:  # with what was left at an epoch's end
            self._kept.pop(next(iter(self._kept)))
        return True


def _end_of(segment: Segment) -> int:
    return segment.last
