"""Puts generation after generation of a rank's windows into a ring on its device, each in the place of one that is left.

The arena is cut into slots of equal size, each for the frames of one generation. Generation n is put into slot ``n mod slots``,
and its windows follow those of generation n - 1 in the tables, which have room for as many generations. So it lies on what
generation n - slots had, and its copies wait for the event that was recorded when that one was left.

Over the bus go frames, and two int32 numbers per window.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from spkid_dist.order import RankShare, starts_of
from spkid_dist.streaming.arena import NO_WINDOW
from spkid_dist.streaming.copystream import CopyStream
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.pool import Pool
from spkid_dist.streaming.ring import WindowRing

MORE_ROWS = 1.25  # than were needed, where a slot is too small: the next generations may need more still


@dataclass(frozen=True)
class OnDevice:
    """A generation of a rank in a ring.

    Attributes:
        ring: where it is.
        first: the number in the ring of its first window.
        ids: (N,) int64, the windows' numbers in the order of storage; those of bad blocks are among them.
        places: (N + 1,) int64, how many of the windows before each are in the ring; None where all are.
        ledger: that of all `ids`.
        arrived: the event of its arrival.
    """

    ring: WindowRing
    first: int
    ids: NDArray[np.int64]
    places: NDArray[np.int64] | None
    ledger: Ledger
    arrived: Any

    def __len__(self) -> int:
        """Its windows, those of bad blocks included."""
        return len(self.ids)

    def place(self, at: int) -> int:
        """The number in the ring of its window `at`, or, where that is of a bad block, of the next one that is there."""
        return self.first + (at if self.places is None else int(self.places[at]))


@dataclass(frozen=True, kw_only=True)
class RingSize:
    """What a ring has room for: `slots` generations of at most `slot_windows` windows and, at first, `slot_rows` rows."""

    slots: int
    slot_windows: int
    slot_rows: int

    @staticmethod
    def of(share: RankShare, batch_size: int, rows_per_window: float, most_rows: int) -> "RingSize":
        """The size for a rank's share, where all windows of a global batch of `batch_size` have to be there together."""
        order = share.order
        touched = min(-(-(batch_size - 1) // order.generation_windows) + 1, order.num_generations)
        windows = max(1, share.consumed_before(min(order.generation_windows, order.num_windows)))
        return RingSize(
            slots=max(2, touched), slot_windows=windows, slot_rows=min(int(windows * rows_per_window) + 1, most_rows)
        )


class Fill(Protocol):
    """Makes the pool of an (epoch, generation)."""

    def __call__(self, epoch: int, generation: int) -> Pool:
        """The pool."""
        ...


class RingFiller:
    """Fills a ring; `load` is called by one thread at a time, for a generation whose slot was left (`leave`)."""

    def __init__(
        self,
        fill: Fill,
        size: RingSize,
        copies: CopyStream,
        *,
        num_features: int,
        in_frames: int,
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> None:
        self.slots = size.slots
        self._fill = fill
        self._copies = copies
        self._slot_rows = size.slot_rows
        self._number = 0  # of the next generation
        self.end = 0  # the number in the ring of its first window
        self._left: Any = None  # the event of leaving the last generation that was left
        with copies.allocating():
            self.ring = WindowRing.allocate(
                size.slots * size.slot_rows,
                size.slots * size.slot_windows,
                num_features,
                in_frames,
                dtypes,
                copies.device,
            )

    def load(self, epoch: int, generation: int) -> OnDevice:
        """Put a generation into the ring; does not wait for the copies.

        Raises:
            InputError: a block can't be read or is damaged.
        """
        pool = self._fill(epoch, generation)
        good = pool.starts != NO_WINDOW if pool.has_gaps else None
        starts, labels = (pool.starts, pool.labels) if good is None else (pool.starts[good], pool.labels[good])
        self._copies.wait_for_use(self._left)
        if len(pool.arena) > self._slot_rows:
            self._make_anew(len(pool.arena))
        row = self._number % self.slots * self._slot_rows
        self._copies.copy(
            _bytes_of(pool.arena), self.ring.arena[row : row + len(pool.arena)].view(torch.uint8).reshape(-1)
        )
        at = 0
        for places in self.ring.stretches(self.end, len(starts)):
            end = at + places.stop - places.start
            self._copies.copy(starts[at:end], self.ring.starts[places], add=row)
            self._copies.copy(labels[at:end], self.ring.labels[places])
            at = end
        loaded = OnDevice(
            self.ring,
            self.end,
            pool.ids,
            None if good is None else starts_of(good.astype(np.int64)),
            Ledger.of(pool.ids),
            self._copies.mark_arrival(),
        )
        self._number += len(starts) > 0
        self.end += len(starts)
        return loaded

    def leave(self) -> None:
        """The steps that were launched until now are the last that use generations which were left."""
        self._left = self._copies.mark_use()

    def enter(self, loaded: OnDevice) -> None:
        """The steps that are launched from now on may use a generation."""
        self._copies.wait_for_arrival(loaded.arrived)
        if self._copies.device.type == "cuda":
            for tensor in loaded.ring.tensors:  # freed only when the steps are done, too
                tensor.record_stream(torch.cuda.current_stream(self._copies.device))

    def _make_anew(self, rows: int) -> None:
        """A ring of larger slots, with what the present one holds: steps that were handed out go on in that."""
        old, old_rows = self.ring, self._slot_rows
        self._slot_rows = int(rows * MORE_ROWS)
        with self._copies.allocating():
            self.ring = WindowRing.allocate(
                self.slots * self._slot_rows,
                len(old.starts),
                old.arena.shape[1],
                old.in_frames,
                (old.arena.dtype, old.x_dtype),
                old.arena.device,
            )
            self.ring.labels.copy_(old.labels)
            self.ring.starts.copy_(old.starts + old.starts // old_rows * (self._slot_rows - old_rows))
            for slot in range(self.slots):
                rows_there = old.arena[slot * old_rows : (slot + 1) * old_rows]
                self.ring.arena[slot * self._slot_rows :][:old_rows].copy_(rows_there)


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A contiguous array's bytes: NumPy knows no bfloat16."""
    return array.reshape(-1).view(np.uint8)
