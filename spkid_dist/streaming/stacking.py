"""Stack batches from a pool on the host: a compiled loop copies each window's C*D values, which lie in a row.

On a device they are gathered from a ring of windows (`spkid_dist.streaming.ring`). Both yield the same bits.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from spkid_dist.streaming.arena import NO_WINDOW
from spkid_dist.streaming.kernels import gather
from spkid_dist.streaming.pool import Pool

Batch = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")


class BatchMemory:
    """Where batches are stacked: in tensors of their own, or, with `reuse`, each over the one before.

    New memory for each batch costs as much as half of the copying into it.
    """

    def __init__(self, in_features: int, dtype: torch.dtype, device: torch.device | None, reuse: bool) -> None:
        self._in_features = in_features
        self._dtype = dtype
        self._device = device
        self.reuse = reuse
        self._last = self._new(0)

    def of(self, size: int) -> Batch:
        """Memory for `size` windows: x (size, C*D) and y (size,) int64, not filled."""
        if not self.reuse:
            return self._new(size)
        if len(self._last[1]) < size:
            self._last = self._new(size)
        x, y = self._last
        return x[:size], y[:size]

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without the memory."""
        return self.__dict__ | {"_last": self._new(0)}

    def _new(self, size: int) -> Batch:
        x = torch.empty(size, self._in_features, dtype=self._dtype, device=self._device)
        return x, torch.empty(size, dtype=torch.int64, device=self._device)


class HostStack:
    """A pool whose windows are taken in their order of use."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._num_features = pool.arena.shape[1]
        self._bits = np.dtype(f"u{pool.arena.itemsize}")  # the compiled loop knows no short floats; it only copies
        self._flat = pool.arena.reshape(-1).view(self._bits)

    def ids(self, piece: slice) -> NDArray[np.int64]:
        """The numbers, in the order of storage, of the windows that `take` copies of a piece."""
        ids = self.pool.ids[piece]
        return ids[self.pool.starts[piece] != NO_WINDOW] if self.pool.has_gaps else ids

    def take(self, piece: slice, x: torch.Tensor, y: torch.Tensor) -> int:
        """Copy the windows of `piece` to the first rows of x (B, C*D), as stored, and y (B,) int64.

        Returns how many they are: those of bad blocks are left out.
        """
        starts, labels = self.pool.starts[piece], self.pool.labels[piece]
        if self.pool.has_gaps:
            good = starts != NO_WINDOW
            starts, labels = starts[good], labels[good]
        out = x[: len(starts)].view(torch.uint8).numpy().reshape(-1).view(self._bits)  # NumPy knows no bfloat16
        gather(self._flat, starts, self._num_features, out)
        y.numpy()[: len(starts)] = labels
        return len(starts)


class Background(Generic[T]):
    """One call done by a thread of its own, which ends with it.

    A process that is about to fork waits for the thread: the forked one has the result, but no thread.
    """

    _all: ClassVar["weakref.WeakSet[Background[Any]]"] = weakref.WeakSet()

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._call = call
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=False)
        self._thread.start()
        self._all.add(self)

    @classmethod
    def wait_for_all(cls) -> None:
        """Wait until no thread works; it keeps its result."""
        for background in list(cls._all):
            background._join()

    def result(self) -> T:
        """Wait for what the call returned, once; an error of it is raised here."""
        self._thread.join()
        self.raise_error()
        return self._result.pop()

    def raise_error(self) -> None:
        """Raise the call's error, if it has come to one, without waiting."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until the thread has ended; its result is dropped.

        The thread itself does not wait: it comes here where Python collects an iteration that was left as garbage.
        """
        self._dropped = True
        self._join()
        self._result.clear()

    def _join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            result = self._call()
            if not self._dropped:
                self._result.append(result)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the consumer's to raise
            self._error = error


os.register_at_fork(before=Background.wait_for_all)
