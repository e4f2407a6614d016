"""Keep on the device what changes from step to step: the steps of a CUDA graph differ in nothing else.

The host writes a row for each coming step and sends them in one copy; a step finds its row by a cursor, which it moves on
when it is done. Until the next rows are sent, the host has nothing to do for these steps.
"""

from collections.abc import Sequence

import torch

from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.streaming.stacking import Batch

ROWS = 32  # steps that are sent together, at most
FIRST, COUNT, RATE, WEIGHT, CURSOR = range(5)
PINNED_BUFFERS = 4  # copies that may be under way


class StepTable:
    """Rows of the coming steps, of up to `most_windows` each, and what the steps leave; all tensors keep their addresses.

    Attributes:
        first: the place of each step's first window in the tables of the ring, (ROWS,) int32.
        count: windows of each step, of this rank, (ROWS,) int32.
        rate: learning rate of each step, (ROWS,) float32.
        weight: 1 / (windows of the global batch) of each step, (ROWS,) float32.
        cursor: the row of the step that is next, () int32.
        losses: sum of each step's losses, which the step writes, (ROWS,) float32.
        sums: loss, right answers and windows, to which each step adds, (3,) float64.
    """

    def __init__(self, device: torch.device, sums: torch.Tensor, most_windows: int) -> None:
        self._rows = torch.zeros(5, ROWS, dtype=torch.int32, device=device)
        self.first, self.count = self._rows[FIRST], self._rows[COUNT]
        self.rate, self.weight = self._rows[RATE].view(torch.float32), self._rows[WEIGHT].view(torch.float32)
        self.cursor = self._rows[CURSOR, 0]
        self.losses = torch.zeros(ROWS, device=device)
        self.sums = sums
        self._numbers = torch.arange(most_windows, dtype=torch.int32, device=device)
        self._staging = _Staging(self._rows)

    def send(self, steps: PlacedSteps, rates: Sequence[float] = (), weights: Sequence[float] = ()) -> None:
        """Make these the coming steps, up to ROWS of them; does not wait for the steps before.

        `rates` and `weights` have a value per step where the steps learn.
        """
        rows, places = self._staging.next(), len(steps.ring.starts)
        for row, values in (
            (FIRST, torch.tensor([first % places for first in steps.first], dtype=torch.int32)),
            (COUNT, torch.tensor(steps.count, dtype=torch.int32)),
            (RATE, torch.tensor(rates, dtype=torch.float32).view(torch.int32)),
            (WEIGHT, torch.tensor(weights, dtype=torch.float32).view(torch.int32)),
        ):
            rows[row, : len(values)] = values
        rows[CURSOR] = 0
        self._staging.send(rows)

    def gather(self, ring: WindowRing, count: int) -> Batch:
        """The `count` windows of the step that is next: x (count, C*D), of the arena's dtype, and y (count,) int64.

        Nothing of it waits for the host, so it may be part of a graph.
        """
        places = self._places(ring, count)
        x = ring.windows.index_select(0, ring.starts.index_select(0, places))
        return x, ring.labels.index_select(0, places).long()

    def gather_ids(self, ring: WindowRing, count: int) -> torch.Tensor:
        """The numbers (count,) int64, in the order of storage, of the windows of the step that is next."""
        assert ring.ids is not None
        return ring.ids.index_select(0, self._places(ring, count))

    def _places(self, ring: WindowRing, count: int) -> torch.Tensor:
        first = self.first.index_select(0, self.cursor.reshape(1))
        return (first + self._numbers[:count]) % len(ring.starts)


class _Staging:
    """The host's memory that rows are sent from: pinned, made once, and used again when its copy has ended."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._on_gpu = rows.device.type == "cuda"
        self._buffers = [
            torch.zeros(rows.shape, dtype=rows.dtype, pin_memory=self._on_gpu) for _ in range(PINNED_BUFFERS)
        ]
        self._ends: list[torch.cuda.Event | None] = [None] * PINNED_BUFFERS
        self._turn = 0

    def next(self) -> torch.Tensor:
        """The buffer whose turn it is; waits for the copy that was made of it."""
        end = self._ends[self._turn]
        if end is not None:
            end.synchronize()
        return self._buffers[self._turn]

    def send(self, rows: torch.Tensor) -> None:
        """Copy the buffer of `next` to the device, behind the work that it was given."""
        self._rows.copy_(rows, non_blocking=True)
        if self._on_gpu:
            self._ends[self._turn] = torch.cuda.current_stream(self._rows.device).record_event()
        self._turn = (self._turn + 1) % PINNED_BUFFERS
