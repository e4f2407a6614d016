"""Yield a rank's windows on its device in their order of use, epoch after epoch: some generations there, the next on its way.

Steps are handed out before they are launched. What they use may be overwritten when the next steps are asked for: by then they
were launched, so an event tells when they are done.
"""

from collections import deque
from collections.abc import Sequence

import torch

from spkid_dist.order import RankShare
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.ring import PlacedSteps
from spkid_dist.streaming.ringfiller import OnDevice, RingFiller
from spkid_dist.streaming.stacking import Background, Batch, BatchMemory


class RingStream:
    """Takes a rank's share of the windows, from global index `index` of an epoch on, without an end; close it when done.

    `skipped` counts the windows of bad blocks that were passed over, up to the last call of `collect`.
    `ids` (B,) int64 are the numbers, in the order of storage, of the windows taken last; empty where the ring has none.
    """

    def __init__(self, filler: RingFiller, share: RankShare, epoch: int, index: int) -> None:
        filler.take()
        self.skipped = 0
        self._filler = filler
        self._is_closed = False
        self._num_generations = share.order.num_generations
        generation = index // share.order.generation_windows
        self._following = epoch, generation  # the one to be loaded next
        # Windows of the first generation that is there: those that were taken, and those of them that were collected.
        self._at = share.consumed_before(index) - share.consumed_before(generation * share.order.generation_windows)
        self._collected = self._at
        self.ids = torch.empty(0, dtype=torch.int64, device=filler.ring.arena.device)
        self._end = filler.end  # the number in the ring of the first window, while none is there
        self._there: deque[OnDevice] = deque()
        self._next: Background[OnDevice] | None = None
        self._ledger = Ledger()

    @property
    def slots(self) -> int:
        """How many generations the ring has room for."""
        return self._filler.slots

    def place(self, sizes: Sequence[int]) -> PlacedSteps:
        """The next steps, of `sizes` windows, which have to be of no more generations than the ring has room for.

        Windows of bad blocks are left out.

        Raises:
            InputError: a block can't be read or is damaged; as soon as it is known, though it be of a later generation.
        """
        if self._next is not None:
            self._next.raise_error()
        self._leave()
        first, count, at = list[int](), list[int](), self._at
        for size in sizes:
            self._reach(at + size)
            begin, end = self._place(at), self._place(at + size)
            first.append(begin)
            count.append(end - begin)
            at += size
        self._at = at  # not earlier: where a block is bad, none of these steps was handed out
        # Where the ring was made anew meanwhile, the new one has all that is there.
        ring = self._there[-1].ring if self._there else self._filler.ring
        return PlacedSteps(ring, tuple(first), tuple(count))

    def take(self, size: int, memory: BatchMemory) -> Batch | None:
        """The next `size` windows in `memory`, as `RankStream.take`; they need not fit the ring together."""
        ids = list[torch.Tensor]()
        self.ids = self.ids[:0]
        if not size:
            return None
        x, y = memory.of(size)
        filled = 0
        while size:
            piece = self._piece(size)
            steps = self.place([piece])
            end = filled + steps.count[0]
            steps.ring.gather(steps.first[0], steps.count[0], x[filled:end], y[filled:end])
            if steps.ring.ids is not None:
                ids += [
                    steps.ring.ids[places].clone() for places in steps.ring.stretches(steps.first[0], steps.count[0])
                ]
            filled, size = end, size - piece
        self.ids = torch.cat([self.ids, *ids])
        return x[:filled], y[:filled]

    def skip(self, size: int) -> None:
        """Pass over the next `size` windows."""
        while size:
            piece = self._piece(size)
            self.place([piece])
            size -= piece

    def collect(self) -> Ledger:
        """The ledger of the windows taken since the last call."""
        self._note_taken()
        ledger, self._ledger = self._ledger, Ledger()
        return ledger

    def close(self) -> None:
        """Wait for the thread that loads the next generation; what is on the device may be overwritten."""
        if self._next is not None:
            self._next.close()
        self._next = None
        self._there.clear()
        if not self._is_closed:
            self._filler.give_back()
        self._is_closed = True

    def _piece(self, size: int) -> int:
        """How many of the next `size` windows are of one generation; the ones before it are left."""
        self._leave()
        self._reach(self._at + 1)
        return min(size, len(self._there[0]) - self._at)

    def _reach(self, until: int) -> None:
        """Have the windows before `until` there."""
        while sum(map(len, self._there)) < until:
            self._begin_next()
            assert self._next is not None, "more windows were asked for than the ring has room for"
            loaded, self._next = self._next.result(), None
            self._filler.enter(loaded)
            if len(loaded):
                self._there.append(loaded)
        self._begin_next()

    def _begin_next(self) -> None:
        """Begin to load the next generation, if there is room for it."""
        if self._next is not None or len(self._there) == self._filler.slots:
            return
        epoch, generation = self._following
        self._next = Background(lambda: self._filler.load(epoch, generation), f"fill-ring-{epoch}-{generation}")
        is_last = generation + 1 == self._num_generations
        self._following = (epoch + 1, 0) if is_last else (epoch, generation + 1)

    def _leave(self) -> None:
        """Make room: the steps that were handed out were launched, and generations that are used up are left."""
        if not self._there or self._at < len(self._there[0]):
            return
        self._note_taken()
        while self._there and self._at >= len(self._there[0]):
            left = self._there.popleft()
            self._end = left.place(len(left))
            self._at -= len(left)
        self._collected = self._at
        self._filler.leave()

    def _place(self, at: int) -> int:
        """The number in the ring of the window that `at` windows precede, of those that are there."""
        for loaded in self._there:
            if at < len(loaded):
                return loaded.place(at)
            at -= len(loaded)
        return self._there[-1].place(len(self._there[-1])) if self._there else self._end

    def _note_taken(self) -> None:
        begin = 0
        for loaded in self._there:
            taken = slice(max(0, self._collected - begin), min(len(loaded), self._at - begin))
            begin += len(loaded)
            if taken.start < taken.stop:
                whole = taken.stop - taken.start == len(loaded)
                self._ledger = Ledger.join([self._ledger, loaded.ledger if whole else Ledger.of(loaded.ids[taken])])
                self.skipped += taken.stop - taken.start - (loaded.place(taken.stop) - loaded.place(taken.start))
        self._collected = self._at
