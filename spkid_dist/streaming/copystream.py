"""Copy from the host to a device, beside the device's work.

A GPU copies asynchronously from pinned memory alone. Pinning memory, and freeing it, takes as long as copying it does and waits
for the device, so a few buffers are pinned once and used in turn, each when its last copy is done.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BUFFER_BYTES = 2**24  # at most: to pin as many takes some 12 ms
NUM_BUFFERS = 3  # one is being filled, one copied, one waits for its turn


class CopyStream:
    """Copies to `device` in their order; on a CPU at once, from memory that is not pinned.

    `buffer_bytes` is what each of the buffers has. One thread at a time may use it.
    """

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None  # type: ignore[no-untyped-call]
        self._buffer_bytes = buffer_bytes
        self._buffers = [self._new_buffer(buffer_bytes) for _ in range(NUM_BUFFERS)]
        self._copied: list[Any] = [None] * NUM_BUFFERS  # events: what was copied from each has arrived
        self._turn = 0

    @property
    def buffer_bytes(self) -> int:
        """What is copied at a time, as a rule."""
        return self._buffer_bytes

    def allocating(self) -> AbstractContextManager[Any]:
        """A context in which tensors are allocated and changed in the order of these copies."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def mark_use(self) -> Any:
        """An event: what the current stream was given until now is done. None on a CPU, where it is done already."""
        return torch.cuda.current_stream(self.device).record_event() if self._on_gpu else None

    def wait_for_use(self, used: Any) -> None:
        """Have the copies from now on wait for an event of `mark_use`."""
        if self._stream is not None and used is not None:
            self._stream.wait_event(used)

    def mark_arrival(self) -> Any:
        """An event: all copies until now are done. None on a CPU."""
        return None if self._stream is None else self._stream.record_event()

    def wait_for_arrival(self, arrived: Any) -> None:
        """Have the current stream wait for an event of `mark_arrival`."""
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)

    def copy(self, source: NDArray[np.int64], target: torch.Tensor) -> None:
        """Copy numbers (n,) to `target` (n,), of integers that hold them.

        Returns when `source` may be changed; the copies may be under way still.
        """
        at_a_time = self._buffer_bytes // target.element_size()
        for begin in range(0, len(source), at_a_time):
            part = source[begin : begin + at_a_time]
            buffer = self.next_buffer(len(part) * target.element_size())
            np.copyto(buffer.view(target.dtype).numpy(), part, casting="unsafe")
            self.send(buffer, target[begin : begin + len(part)].view(torch.uint8))

    def next_buffer(self, num_bytes: int) -> torch.Tensor:
        """The first `num_bytes` of the buffer whose turn it is, when its last copy is done: to be filled, and sent."""
        self._turn = (self._turn + 1) % NUM_BUFFERS
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        if len(self._buffers[self._turn]) < num_bytes:  # for one segment that is longer than all before
            with self.allocating():
                self._buffers[self._turn] = self._new_buffer(num_bytes)
        return self._buffers[self._turn][:num_bytes]

    def send(self, buffer: torch.Tensor, target: torch.Tensor) -> None:
        """Start the copy of what `next_buffer` returned last to `target`, bytes too; the buffer is the stream's again."""
        with self.allocating():
            target.copy_(buffer, non_blocking=True)
        if self._stream is not None:
            if self._copied[self._turn] is None:
                self._copied[self._turn] = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied[self._turn].record(self._stream)

    def _new_buffer(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._on_gpu)
