"""Yield a rank's windows in their order of use, epoch after epoch: one pool in use, the next being filled."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from spkid_dist.order import RankShare
from spkid_dist.streaming.arena import NO_WINDOW
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.stacking import Background, Batch, BatchMemory, HostStack

Load = Callable[[int, int], HostStack]
"""Makes the stack of an (epoch, generation)."""


class RankStream:
    """Takes a rank's share of the windows, from global index `index` of an epoch on, without an end; close it when done.

    `skipped` counts the windows of bad blocks that were passed over, up to the last call of `collect`.
    `ids` (B,) int64 are the numbers, in the order of storage, of the windows taken last; empty without `with_ids`.
    """

    def __init__(self, load: Load, share: RankShare, epoch: int, index: int, *, with_ids: bool = False) -> None:
        self.skipped = 0
        self.ids = torch.empty(0, dtype=torch.int64)
        self._with_ids = with_ids
        self._load = load
        self._num_generations = share.order.num_generations
        generation = index // share.order.generation_windows
        self._place = epoch, generation
        # of the stack in use: the windows taken, and those of them that were collected
        self._at = share.consumed_before(index) - share.consumed_before(generation * share.order.generation_windows)
        self._collected = self._at
        self._stack: HostStack | None = None
        self._next: Background[HostStack] | None = None
        self._ledger = Ledger()

    def take(self, size: int, memory: BatchMemory) -> Batch | None:
        """The next `size` windows in `memory`: x (size, C*D) and y (size,); fewer where some are of bad blocks.

        None where size is 0.

        Raises:
            InputError: a block can't be read or is damaged; as soon as it is known, though it be of the next pool.
        """
        self.ids = torch.empty(size if self._with_ids else 0, dtype=torch.int64)
        if not size:
            return None
        x, y = memory.of(size)
        filled = 0
        for stack, piece in self._pieces(size):
            begin, filled = filled, filled + stack.take(piece, x[filled:], y[filled:])
            if self._with_ids:
                self.ids.numpy()[begin:filled] = stack.ids(piece)
        self.ids = self.ids[:filled]
        return x[:filled], y[:filled]

    def skip(self, size: int) -> None:
        """Pass over the next `size` windows."""
        for _ in self._pieces(size):
            pass

    def collect(self) -> Ledger:
        """The ledger of the windows taken since the last call."""
        self._note_taken()
        ledger, self._ledger = self._ledger, Ledger()
        return ledger

    def close(self) -> None:
        """Wait for the thread that fills the next pool, and let go of all memory."""
        if self._next is not None:
            self._next.close()
        self._stack = self._next = None

    def _pieces(self, size: int) -> Iterator[tuple[HostStack, slice]]:
        """The stacks that hold the next `size` windows, and which of their windows these are."""
        if self._next is not None:
            self._next.raise_error()
        while size:
            stack = self._current()
            piece = slice(self._at, min(self._at + size, len(stack.pool.starts)))
            if piece.start < piece.stop:
                yield stack, piece
            size -= piece.stop - piece.start
            self._at = piece.stop
            if size:
                self._note_taken()
                self._place, self._stack, self._at, self._collected = self._following(), None, 0, 0

    def _current(self) -> HostStack:
        """The stack in use; when it is the first call for it, the next one begins to be made."""
        if self._stack is None:
            ready, self._next = self._next, None
            self._stack = ready.result() if ready else self._load(*self._place)
            place = self._following()
            self._next = Background(lambda: self._load(*place), name="fill-pool-{}-{}".format(*place))
        return self._stack

    def _following(self) -> tuple[int, int]:
        epoch, generation = self._place
        return (epoch, generation + 1) if generation + 1 < self._num_generations else (epoch + 1, 0)

    def _note_taken(self) -> None:
        if self._stack is None:
            return
        taken = slice(self._collected, self._at)
        self._ledger = Ledger.join([self._ledger, Ledger.of(self._stack.pool.ids[taken])])
        if self._stack.pool.has_gaps:
            self.skipped += int(np.count_nonzero(self._stack.pool.starts[taken] == NO_WINDOW))
        self._collected = self._at
