"""A ring whose arena has the whole dataset: it is copied once, and then only the order of its windows changes.

Over the bus go 4 bytes per window, its number in the order of storage; its first row and its class are looked up on the device.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from spkid_dist.streaming.arena import NO_WINDOW
from spkid_dist.streaming.copystream import CopyStream
from spkid_dist.streaming.pool import PoolFiller
from spkid_dist.streaming.poolring import RingSize
from spkid_dist.streaming.ring import RingFormat, WindowRing
from spkid_dist.streaming.ringfiller import OnDevice, RingFiller


class ResidentRing(RingFiller):
    """Fills a ring with the orders of one generation after the other, the first time with all frames too.

    `first_rows` (n + 1,) is where the dataset's n blocks with windows lie in the arena, in the order of storage; it has
    `num_windows` windows. Of `size` only the tables are taken.
    """

    def __init__(
        self,
        filler: PoolFiller,
        copies: CopyStream,
        ring_format: RingFormat,
        size: RingSize,
        first_rows: NDArray[np.int64],
        num_windows: int,
    ) -> None:
        with copies.allocating():
            ring = WindowRing.allocate(ring_format, max(1, int(first_rows[-1])), size.windows, copies.device)
            self._starts, self._labels = (
                torch.empty(num_windows, dtype=torch.int32, device=copies.device) for _ in range(2)
            )
            self._ids = torch.empty(size.slot_windows, dtype=torch.int32, device=copies.device)
        super().__init__(filler, copies, ring, size.slots)
        self._first_rows: NDArray[np.int64] | None = first_rows  # None when the frames are there
        self._is_good: NDArray[np.bool_] | None = None  # (num_windows,); None where all are

    def load(self, epoch: int, generation: int) -> OnDevice:
        """As `RingFiller.load`."""
        if self._first_rows is not None:
            self._send_all(self._first_rows)
            self._first_rows = None
        ids = self._filler.deal(self._filler.plan(epoch, generation), by_id=True)
        good = None if self._is_good is None else self._is_good[ids]
        there = ids if good is None else ids[good]
        self._copies.wait_for_use(self._left)
        self._copies.copy(there, self._ids[: len(there)])
        at = 0
        with self._copies.allocating():
            for places in self.ring.stretches(self.end, len(there)):
                end = at + places.stop - places.start
                torch.index_select(self._starts, 0, self._ids[at:end], out=self.ring.starts[places])
                torch.index_select(self._labels, 0, self._ids[at:end], out=self.ring.labels[places])
                if self.ring.ids is not None:
                    self.ring.ids[places].copy_(self._ids[at:end])
                at = end
        return self._note(ids, good)

    def _send_all(self, first_rows: NDArray[np.int64]) -> None:
        """Copy the dataset to the device."""
        for windows, arena in self._send_frames(self._filler.all_segments(), first_rows, 0):
            bad = arena.starts == NO_WINDOW
            if bad.any():
                if self._is_good is None:
                    self._is_good = np.ones(len(self._starts), np.bool_)
                self._is_good[windows] = ~bad
            self._copies.copy(arena.starts, self._starts[windows])
            self._copies.copy(arena.labels, self._labels[windows])
        self._filler.arenas.drop_blocks()
