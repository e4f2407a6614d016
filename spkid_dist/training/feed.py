"""Hand the coming steps of an epoch to an engine: one batch at a time, or many steps whose windows lie on a device."""

from collections.abc import Iterator
from typing import Protocol

from spkid_dist.dataset import WindowDataset
from spkid_dist.process.replay import STEPS_A_GRAPH
from spkid_dist.streaming.stacking import Batch


class Steps(Protocol):
    """Consecutive steps of an epoch; `len` is how many."""

    def __len__(self) -> int:
        """How many steps."""
        ...

    @property
    def num_windows(self) -> int:
        """This rank's windows in all of them."""
        ...

    def batches(self) -> Iterator[Batch]:
        """This rank's share of each step: x (B, C*D) and y (B,) int64, B from 0; stacked over the one before."""
        ...


class OneBatch:
    """A step whose windows are stacked already: x (B, C*D) and y (B,) int64."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        """One."""
        return 1

    @property
    def num_windows(self) -> int:
        """B."""
        return len(self._batch[1])

    def batches(self) -> Iterator[Batch]:
        """The batch."""
        yield self._batch


class Feed:
    """The steps of one epoch of `data`, or of the rest of it; it begins with the first call of `next`."""

    def __init__(self, data: WindowDataset) -> None:
        self._data = data
        self._batches: Iterator[Batch] | None = None

    def next(self, most: int) -> Steps:
        """The next steps: from 1 up to `most`, which are left of the epoch; ranks may differ in how many they get."""
        if self._data.is_placed:
            return self._data.next_steps(min(most, STEPS_A_GRAPH))
        if self._batches is None:
            self._batches = iter(self._data)
        return OneBatch(next(self._batches))
