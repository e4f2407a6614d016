"""Put generation after generation of a rank's windows into a ring on its device, each in the place of one that was used up.

The windows of a generation follow those of the one before it in the ring's tables, which have room for as many generations as
there are slots. So generation n lies on what generation n - slots had, and its copies wait for the event that was recorded when
that one was left. `spkid_dist.streaming.poolring` sends the frames of each generation, `spkid_dist.streaming.residentring`
those of the whole dataset, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import UsageError
from spkid_dist.order import Segment, starts_of
from spkid_dist.streaming.arena import Arena
from spkid_dist.streaming.copystream import CopyStream
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.pool import PoolFiller
from spkid_dist.streaming.ring import WindowRing


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


class RingFiller(ABC):
    """Fills `ring`; `load` is called by one thread at a time, when fewer than `slots` generations are there that were not left.

    Attributes:
        ring: the ring that the next generation goes into.
        end: the number in the ring of its first window.
    """

    def __init__(self, filler: PoolFiller, copies: CopyStream, ring: WindowRing, slots: int) -> None:
        self.ring = ring
        self.end = 0
        self.slots = slots
        self._filler = filler
        self._copies = copies
        self._is_taken = False
        self._left: Any = None  # the event of leaving the last generation that was left

    def take(self) -> None:
        """One stream begins to use the ring, until `give_back`.

        Raises:
            UsageError: another one uses it.
        """
        if self._is_taken:
            raise UsageError(
                "the windows of a dataset lie on its device for one iteration at a time; to iterate twice at the same time, "
                "open two datasets"
            )
        self._is_taken = True

    def give_back(self) -> None:
        """The stream has ended: what it left in the ring may be overwritten."""
        self.leave()
        self._is_taken = False

    @abstractmethod
    def load(self, epoch: int, generation: int) -> OnDevice:
        """Put a generation into the ring; does not wait for the copies.

        Raises:
            InputError: a block can't be read or is damaged.
        """

    def leave(self) -> None:
        """The steps that were launched until now are the last that use generations which were left."""
        self._left = self._copies.mark_use()

    def enter(self, loaded: OnDevice) -> None:
        """The steps that are launched from now on may use a generation."""
        self._copies.wait_for_arrival(loaded.arrived)
        if self._copies.device.type == "cuda":
            ring = loaded.ring
            ids = () if ring.ids is None else (ring.ids,)
            for tensor in (*ring.tensors, *ids):  # freed only when the steps are done, too
                tensor.record_stream(torch.cuda.current_stream(self._copies.device))

    def _note(self, ids: NDArray[np.int64], good: NDArray[np.bool_] | None) -> OnDevice:
        """The generation of windows `ids` (N,), whose `good` ones, all for None, follow the windows in the ring."""
        places = None if good is None else starts_of(good.astype(np.int64))
        first, self.end = self.end, self.end + (len(ids) if places is None else int(places[-1]))
        return OnDevice(self.ring, first, ids, places, Ledger.of(ids), self._copies.mark_arrival())

    def _send_frames(
        self, segments: Sequence[Segment], first_rows: NDArray[np.int64], row: int
    ) -> Iterator[tuple[slice, Arena]]:
        """Lay out segments in the ring's arena, from row `row` on, as much at a time as a buffer has room for.

        Yields which of the segments' windows were laid out, and where.
        """
        arenas, device_rows = self._filler.arenas, self.ring.arena
        row_bytes = device_rows.shape[1] * device_rows.element_size()
        most = max(1, self._copies.buffer_bytes // row_bytes)
        begin = first_window = 0
        while begin < len(segments):
            base = int(first_rows[begin])
            end = max(begin + 1, int(np.searchsorted(first_rows, base + most, side="right")) - 1)
            part, rows = segments[begin:end], int(first_rows[end]) - base
            count = sum(segment.last - segment.first for segment in part)
            buffer = self._copies.next_buffer(rows * row_bytes)
            arena = Arena(
                buffer.numpy().view(arenas.dtype).reshape(rows, -1),
                np.empty(count, np.int64),
                np.empty(count, np.int64),
                first_row=row + base,
            )
            arenas.fill(part, first_rows[begin : end + 1] - base, arena)
            self._copies.send(buffer, device_rows[row + base : row + base + rows].view(torch.uint8).view(-1))
            yield slice(first_window, first_window + count), arena
            begin, first_window = end, first_window + count
