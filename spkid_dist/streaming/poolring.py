"""A ring whose arena has the frames of a few generations: those in use, and the one that is being copied.

The arena is cut into slots of equal size. How many rows a generation takes varies a little, with the utterances that its pools
have parts of; so a slot has some more than the first generation takes. A generation that takes more yet gets a new ring.

Over the bus go frames, and 8 bytes per window.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spkid_dist.order import RankShare
from spkid_dist.streaming.arena import NO_WINDOW
from spkid_dist.streaming.copystream import CopyStream
from spkid_dist.streaming.pool import PoolFiller
from spkid_dist.streaming.ring import RingFormat, WindowRing
from spkid_dist.streaming.ringfiller import OnDevice, RingFiller

MORE_ROWS = 1.125  # than the first generation takes, or than were needed where a slot was too small


@dataclass(frozen=True, kw_only=True)
class RingSize:
    """What a ring of pools has room for: `slots` generations of at most `slot_windows` windows and `slot_rows` rows."""

    slots: int
    slot_windows: int
    slot_rows: int

    @staticmethod
    def of(filler: PoolFiller, share: RankShare, batch_size: int, in_frames: int) -> "RingSize":
        """The size for a rank's share, where all windows of a global batch of `batch_size` have to be there together."""
        order = share.order
        touched = min(-(-(batch_size - 1) // order.generation_windows) + 1, order.num_generations)
        windows = max(1, share.consumed_before(min(order.generation_windows, order.num_windows)))
        rows = int(filler.arenas.first_rows(filler.plan(0, 0).segments)[-1])
        # Streams begin and end inside utterances, each epoch in others.
        more = 2 * len(share.streams) * (in_frames - 1) + int(rows * (MORE_ROWS - 1) * (order.num_generations > 1))
        return RingSize(
            slots=max(2, touched), slot_windows=windows, slot_rows=min(max(1, rows + more), windows * in_frames)
        )

    @property
    def rows(self) -> int:
        """R of the ring."""
        return self.slots * self.slot_rows

    @property
    def windows(self) -> int:
        """T of the ring."""
        return self.slots * self.slot_windows


class PoolRing(RingFiller):
    """Fills a ring of `size` with the pools of one generation after the other."""

    def __init__(self, filler: PoolFiller, copies: CopyStream, ring_format: RingFormat, size: RingSize) -> None:
        with copies.allocating():
            ring = WindowRing.allocate(ring_format, size.rows, size.windows, copies.device)
        super().__init__(filler, copies, ring, size.slots)
        self._format = ring_format
        self._slot_rows = size.slot_rows
        self._slot = 0  # of the next generation

    def load(self, epoch: int, generation: int) -> OnDevice:
        """As `RingFiller.load`."""
        plan = self._filler.plan(epoch, generation)
        first_rows = self._filler.arenas.first_rows(plan.segments)
        self._copies.wait_for_use(self._left)
        if first_rows[-1] > self._slot_rows:
            self._make_anew(int(first_rows[-1]))
        starts, labels = np.empty_like(plan.ids), np.empty_like(plan.ids)
        for windows, arena in self._send_frames(plan.segments, first_rows, self._slot * self._slot_rows):
            starts[windows], labels[windows] = arena.starts, arena.labels
        ids = self._filler.deal(plan, by_id=False)
        starts, labels = self._filler.look_up(ids, plan.ids, starts, labels, by_id=False)
        good = starts != NO_WINDOW
        if good.all():
            return self._send_tables(ids, starts, labels, None)
        return self._send_tables(ids, starts[good], labels[good], good)

    def _send_tables(
        self,
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        labels: NDArray[np.int64],
        good: NDArray[np.bool_] | None,
    ) -> OnDevice:
        """The generation of windows `ids`, when the `starts` and `labels` of the good ones are on their way."""
        at, there = 0, ids if good is None else ids[good]
        for places in self.ring.stretches(self.end, len(starts)):
            end = at + places.stop - places.start
            self._copies.copy(starts[at:end], self.ring.starts[places])
            self._copies.copy(labels[at:end], self.ring.labels[places])
            if self.ring.ids is not None:
                self._copies.copy(there[at:end], self.ring.ids[places])
            at = end
        if len(starts):
            self._slot = (self._slot + 1) % self.slots
        return self._note(ids, good)

    def _make_anew(self, rows: int) -> None:
        """A ring of larger slots, with what the present one holds: steps that were handed out go on in that."""
        old, old_rows = self.ring, self._slot_rows
        self._slot_rows = int(rows * MORE_ROWS)
        with self._copies.allocating():
            self.ring = WindowRing.allocate(
                self._format, self.slots * self._slot_rows, len(old.starts), self._copies.device
            )
            self.ring.labels.copy_(old.labels)
            if old.ids is not None and self.ring.ids is not None:
                self.ring.ids.copy_(old.ids)
            slots = torch.div(old.starts, old_rows, rounding_mode="floor")
            torch.add(old.starts, slots, alpha=self._slot_rows - old_rows, out=self.ring.starts)
            for slot in range(self.slots):
                rows_there = old.arena[slot * old_rows : (slot + 1) * old_rows]
                self.ring.arena[slot * self._slot_rows :][:old_rows].copy_(rows_there)
