"""Keep a rank's windows on a device, in tensors that keep their addresses while the stream goes round and round.

A graph of many training steps is captured once and reads its windows from the same addresses for ever. So the device holds one
arena of frame rows and two tables, the first row and the class of each window in the order of use; the stream only changes
what they hold, behind the steps that are done (`spkid_dist.streaming.ringfiller`).

Shapes: R rows of D features, C frames per window, T windows that the tables have room for, B windows of a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch

from shards.errors import UsageError
from spkid_dist.streaming.stacking import Batch, BatchMemory

MOST_NUMBERS = 2**31  # that int32 counts, from 0
TABLE_BYTES = 8  # of a window: its first row and its class, int32 each
ID_BYTES = 8  # of a window's number

_versions = count()


@dataclass(frozen=True)
class RingFormat:
    """What windows look like: C frames of D features, `dtype` in the arena and `x_dtype` in batches.

    `with_ids` is whether the ring has the windows' numbers in the order of storage.
    """

    in_frames: int
    num_features: int
    dtype: torch.dtype
    x_dtype: torch.dtype
    with_ids: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a frame in the arena."""
        return self.num_features * self.dtype.itemsize

    @property
    def table_bytes(self) -> int:
        """Bytes of a window in the tables."""
        return TABLE_BYTES + (ID_BYTES if self.with_ids else 0)


@dataclass(frozen=True, eq=False)
class WindowRing:
    """The windows of a rank that are on the device.

    Window number p, counted since the stream began, is at place ``p % T`` of the tables, and consists of `in_frames`
    consecutive rows of the arena.

    Attributes:
        arena: (R, D) float32, float16 or bfloat16.
        starts: (T,) int32, the windows' first rows of the arena.
        labels: (T,) int32, their classes.
        in_frames: C.
        x_dtype: of a batch's windows as the dataset yields them.
        ids: (T,) int64, the windows' numbers in the order of storage; None where the ring has none.
        version: of this ring alone: another ring's tensors have other addresses. Part of the key of a graph.
    """

    arena: torch.Tensor
    starts: torch.Tensor
    labels: torch.Tensor
    in_frames: int
    x_dtype: torch.dtype
    version: int
    ids: torch.Tensor | None = None

    @staticmethod
    def allocate(ring_format: "RingFormat", rows: int, windows: int, device: torch.device) -> "WindowRing":
        """A ring of `rows` rows and `windows` places, not filled.

        Raises:
            UsageError: more rows than int32 counts.
        """
        if rows >= MOST_NUMBERS:
            raise UsageError(
                f"the windows that are shuffled together, and the next ones, have {rows} frames on the device, but at most "
                f"{MOST_NUMBERS - 1} can be there; give a smaller --shuffle_windows"
            )
        return WindowRing(
            torch.empty(rows, ring_format.num_features, dtype=ring_format.dtype, device=device),
            torch.zeros(windows, dtype=torch.int32, device=device),
            torch.zeros(windows, dtype=torch.int32, device=device),
            ring_format.in_frames,
            ring_format.x_dtype,
            next(_versions),
            torch.zeros(windows, dtype=torch.int64, device=device) if ring_format.with_ids else None,
        )

    @staticmethod
    def of_batch(x: torch.Tensor, y: torch.Tensor, in_frames: int) -> "WindowRing":
        """A ring of the windows x (B, C*D) and their classes y (B,), one after the other."""
        return WindowRing(
            x.reshape(len(x) * in_frames, -1),
            in_frames * torch.arange(len(x), dtype=torch.int32, device=x.device),
            y.int(),
            in_frames,
            x.dtype,
            next(_versions),
        )

    @property
    def windows(self) -> torch.Tensor:
        """All windows of the arena, (R - C + 1, C*D): a view whose rows overlap."""
        rows, num_features = self.arena.shape
        size = (max(rows - self.in_frames + 1, 0), self.in_frames * num_features)
        return self.arena.as_strided(size, (num_features, 1))

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Arena, starts and labels."""
        return self.arena, self.starts, self.labels

    def stretches(self, first: int, count: int) -> list[slice]:
        """The places of windows `first` to ``first + count - 1``: one stretch of the tables, or two where they go round."""
        windows = len(self.starts)
        begin = first % windows
        end = begin + count
        if end <= windows:
            return [slice(begin, end)]
        return [slice(begin, windows), slice(0, end - windows)]

    def gather(self, first: int, count: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Copy windows `first` to ``first + count - 1`` to x (count, C*D), of the arena's dtype, and y (count,) int64."""
        windows = self.windows
        at = 0
        for places in self.stretches(first, count):
            end = at + places.stop - places.start
            torch.index_select(windows, 0, self.starts[places], out=x[at:end])
            y[at:end].copy_(self.labels[places])
            at = end


@dataclass(frozen=True)
class PlacedSteps:
    """Consecutive steps of an epoch whose windows are on the device.

    The windows stay until the dataset is asked for the steps after these; what uses them has to be launched by then, on the
    stream that is current when the dataset is asked.

    Attributes:
        ring: where the windows are.
        first: per step, the number of its first window in the ring, before the modulo.
        count: per step, this rank's windows, from 0: fewer in an epoch's last step, and where windows of bad blocks were
            left out. Windows ``first`` to ``first + count - 1`` are the step's.
    """

    ring: WindowRing
    first: tuple[int, ...]
    count: tuple[int, ...]

    def __len__(self) -> int:
        """How many steps these are."""
        return len(self.first)

    @property
    def num_windows(self) -> int:
        """This rank's windows in all of them."""
        return sum(self.count)

    def repeated(self, times: int) -> "PlacedSteps":
        """The same steps so many times."""
        return PlacedSteps(self.ring, self.first * times, self.count * times)

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps, x (B, C*D) and y (B,) int64, each stacked over the one before."""
        in_features = self.ring.in_frames * self.ring.arena.shape[1]
        memory = BatchMemory(in_features, self.ring.arena.dtype, self.ring.arena.device, reuse=True)
        for step in range(len(self)):
            yield self.batch(step, memory)

    def batch(self, step: int, memory: BatchMemory) -> Batch:
        """The batch of one of the steps in `memory`: x (B, C*D) and y (B,) int64, as the dataset yields them."""
        x, y = memory.of(self.count[step])
        self.ring.gather(self.first[step], self.count[step], x, y)
        return x.to(self.ring.x_dtype), y
