"""Stream several datasets as one, by weights: each keeps its own order, and repeats as often as its weight asks.

All is arithmetic again. Window n of the mixture, counted over all epochs, is of the dataset in whose part of a circle of M
points ``n A mod M`` lies; the parts are as wide as the weights. A is M over the golden ratio, so the points spread evenly:
the first n windows stray from the weights by a few windows, at any n. How many of them lie in a part is known without
counting (`points_below`), so the state is two integers here too; a dataset's windows are its number 0, 1, 2, ... over its
epochs.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

import torch

from shards.errors import InputError, UsageError
from shards.names import one_form
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.ledger import Ledger, check_epoch
from spkid_dist.streaming.resumable import ResumableBatches
from spkid_dist.streaming.stacking import Batch

CIRCLE = 2**32
STRIDE = 2654435769  # 2^32 divided by the golden ratio, odd


class MixedDataset(ResumableBatches):
    """Streams several datasets together, each batch mixed by weights.

    Args:
        datasets: with the same speakers, features per frame and context; their own batch sizes do not matter.
        weights: parts of the mixture, one a dataset, > 0; they need not add up to 1.
        batch_size: windows of a global batch, of all datasets and ranks together.
        epoch_windows: windows of the mixture that make an epoch; those of all datasets together by default.

    Raises:
        InputError: the datasets do not fit together.
        UsageError: an argument out of range.
        LedgerError: at the end of an epoch of one dataset, where a window of it was lost or came twice (a single rank).
    """

    def __init__(
        self,
        datasets: Sequence[WindowDataset],
        weights: Sequence[float],
        *,
        batch_size: int = 1000,
        epoch_windows: int | None = None,
    ) -> None:
        if not datasets or len(datasets) != len(weights) or not all(0 < weight < float("inf") for weight in weights):
            raise UsageError(
                f"{len(datasets)} datasets with weights {list(weights)}: expected a weight above 0 for each of one or more"
            )
        if any(data.memory.reuse for data in datasets):
            raise UsageError("reuse=True: a batch of a mixture is put together from several datasets'; leave it out")
        _check_alike(datasets)
        first = datasets[0]
        super().__init__(batch_size, first.rank, first.world_size)
        self.datasets = list(datasets)
        self.in_features = first.in_features
        self._borders = borders_of(weights)
        self._weights = [float(weight) for weight in weights]
        self._epoch_windows = sum(data.num_windows for data in datasets) if epoch_windows is None else epoch_windows
        if self._epoch_windows < 1:
            raise UsageError(f"epoch_windows {epoch_windows}: expected 1 or more")

    @property
    def num_windows(self) -> int:
        """Windows of the mixture in an epoch."""
        return self._epoch_windows

    @property
    def num_features(self) -> int:
        """D, the features of a frame."""
        return self.datasets[0].num_features

    @property
    def speakers(self) -> list[str]:
        """The names of the speakers in class order: ``speakers[y]`` is that of label y."""
        return self.datasets[0].speakers

    def __repr__(self) -> str:
        """What it mixes, and where it stands."""
        parts = "; ".join(f"{weight:g} x {data!r}" for weight, data in zip(self._weights, self.datasets, strict=True))
        return f"<MixedDataset of {self.num_windows} windows, epoch {self.epoch} at window {self.position}: {parts}>"

    @property
    def identity(self) -> dict[str, Any]:
        """All that the order follows from besides the state."""
        return {
            "datasets": [data.identity for data in self.datasets],
            "weights": self._weights,
            "epoch_windows": self._epoch_windows,
        }

    def counts(self, num_windows: int) -> list[int]:
        """How many of the first `num_windows` windows of the mixture, over all epochs, are of each dataset."""
        return shares(self._borders, num_windows)

    def check_epoch(self, consumed: Ledger, epoch: int) -> None:
        """Nothing: the ledgers are the datasets' own, whose epochs end elsewhere."""

    def _check_ranks(self) -> None:
        for data in self.datasets:
            data._check_ranks()

    def _open(self, epoch: int, position: int) -> "MixedCursor":
        return MixedCursor(self, epoch * self._epoch_windows + position)


def _check_alike(datasets: Sequence[WindowDataset]) -> None:
    first = datasets[0]
    for data in datasets[1:]:
        for what, ours, theirs in (
            ("speakers", *(list(map(one_form, one.data.manifest.speakers)) for one in (first, data))),
            ("values of a window", first.in_features, data.in_features),
            ("rank", (first.rank, first.world_size), (data.rank, data.world_size)),
        ):
            if ours != theirs:
                raise InputError(
                    f"{data.data.folder}: its {what} are not those of {first.data.folder}; shard both with the same "
                    "--spk2idx and features, and open both alike"
                )


def borders_of(weights: Sequence[float]) -> list[int]:
    """Where the parts of the circle of CIRCLE points end, from 0 on; no weight loses more than one point."""
    exact = [Fraction(weight) for weight in weights]
    return [round(CIRCLE * part / sum(exact)) for part in accumulate(exact, initial=Fraction(0))]


def shares(borders: Sequence[int], num_windows: int) -> list[int]:
    """How many of the first `num_windows` points lie in each part of the circle."""
    return [above - below for below, above in pairwise(points_below(num_windows, border) for border in borders)]


def points_below(num_points: int, border: int) -> int:
    """How many n in [0, `num_points`) have ``n STRIDE mod CIRCLE < border``.

    n counts where ``(n STRIDE) div CIRCLE`` is one more than ``(n STRIDE - border) div CIRCLE``.
    """
    rounds, rest = divmod(num_points, CIRCLE)  # each round meets every point once
    return rounds * border + floor_sum(rest, 0) - floor_sum(rest, CIRCLE - border) + rest


def floor_sum(count: int, offset: int) -> int:
    """The sum of ``(n STRIDE + offset) div CIRCLE`` over n in [0, count), in as many steps as Euclid's algorithm takes.

    Counts the lattice points below a line, each step with the axes exchanged.
    """
    total, slope, modulus = 0, STRIDE, CIRCLE
    while True:
        total += count * (count - 1) // 2 * (slope // modulus) + count * (offset // modulus)
        end = slope % modulus * count + offset % modulus
        if end < modulus:
            return total
        count, offset, slope, modulus = end // modulus, end % modulus, modulus, slope % modulus


class MixedCursor:
    """A place in a mixture: after `windows` of it, over all epochs."""

    def __init__(self, mixture: MixedDataset, windows: int) -> None:
        self._mixture = mixture
        self._windows = windows
        self._parts = [
            Component(data, count) for data, count in zip(mixture.datasets, mixture.counts(windows), strict=True)
        ]

    def take(self, until: int) -> Batch:
        """This rank's windows up to global index `until` of the epoch, dataset by dataset."""
        batches = [batch for part, count in self._advance(until) for batch in part.take(count)]
        if not batches:
            return self._mixture.datasets[0].finish(None)
        return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def skip(self, until: int) -> None:
        """Pass over them instead."""
        for part, count in self._advance(until):
            part.skip(count)

    def collect(self) -> Ledger:
        """Nothing: the components keep their own."""
        return Ledger()

    def close(self) -> None:
        """Let go of all threads and memory."""
        for part in self._parts:
            part.close()

    def _advance(self, until: int) -> list[tuple["Component", int]]:
        size = self._mixture.num_windows
        epoch = self._windows // size
        self._windows = epoch * size + until
        return list(zip(self._parts, self._mixture.counts(self._windows), strict=True))


class Component:
    """One dataset of a mixture, after `windows` of it over all its epochs; its ledger is checked as each of them ends."""

    def __init__(self, data: WindowDataset, windows: int) -> None:
        self._data = data
        self._windows = windows
        epoch, position = divmod(windows, data.num_windows)
        self._stream = data.open_stream(epoch, position)
        self._whole = position == 0  # whether the epoch was consumed from its start, by this stream

    def take(self, until: int) -> list[Batch]:
        """This rank's windows up to window `until`: a batch for each epoch that they are of."""
        batches = [self._stream.take(size, self._data.memory) for size in self._sizes(until)]
        return [self._data.finish(batch) for batch in batches if batch is not None]

    def skip(self, until: int) -> None:
        """Pass over them instead."""
        for size in self._sizes(until):
            self._stream.skip(size)

    def close(self) -> None:
        """Let go of the thread and the memory."""
        self._stream.close()

    def _sizes(self, until: int) -> Iterator[int]:
        """The sizes of this rank's share up to window `until`, epoch by epoch; each is taken before the next is asked for."""
        share, total = self._data.share, self._data.num_windows
        while self._windows < until:
            epoch, first = divmod(self._windows, total)
            last = min(first + until - self._windows, total)
            yield share.consumed_before(last) - share.consumed_before(first)
            self._windows += last - first
            if last == total:
                self._end_epoch(epoch)

    def _end_epoch(self, epoch: int) -> None:
        consumed = self._stream.collect()
        if self._whole and self._data.world_size == 1:
            check_epoch(consumed, self._data.num_windows, epoch)
        self._whole = True
