"""Lay pool after pool in the same memory: the one that is being filled gets that of the one before the one in use.

The system clears each page of new memory when it is first written: that took up to a seventh of the time of filling pools of
2^20 windows.
"""

import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

MORE = 16  # new memory has one part in so many more than is asked for, as pools differ a little in size


class TakingTurns:
    """Memory for arrays of which two are in use: one is read while the next is filled.

    The memory of an array is used again when no view of it is left. That of one array at most is kept for this, and only while
    there is one other array: at the peak these are as many bytes as without it, and none when both are gone.
    """

    def __init__(self) -> None:
        self._spare: deque[NDArray[np.uint8]] = deque(maxlen=1)
        self._lent: set[int] = set()  # changed by single calls: memory comes back in any thread

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the memory."""
        return (TakingTurns, ())

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array that is not filled, whose memory no other array has."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes == 0:
            return np.empty(shape, dtype)
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if not num_bytes <= len(memory) <= 2 * num_bytes:
            del memory  # before there is new: they need not be there together
            memory = np.empty(num_bytes + num_bytes // MORE, np.uint8)
        array: NDArray[Any] = np.asarray(_Loan(memory, num_bytes, self)).view(dtype).reshape(shape)
        return array

    def lend(self, memory: NDArray[np.uint8]) -> None:
        """An array has it."""
        self._lent.add(id(memory))

    def take_back(self, memory: NDArray[np.uint8]) -> None:
        """No array has it any more."""
        self._lent.discard(id(memory))
        if len(self._lent) == 1:
            self._spare.append(memory)
        else:
            self._spare.clear()


class _Loan:
    """What an array and all its views refer to: it goes with the last of them."""

    def __init__(self, memory: NDArray[np.uint8], num_bytes: int, owner: TakingTurns) -> None:
        self._memory, self._owner = memory, owner
        place = (memory.ctypes.data, False)
        self.__array_interface__ = {"shape": (num_bytes,), "typestr": "|u1", "data": place, "version": 3}
        owner.lend(memory)

    def __del__(self) -> None:
        self._owner.take_back(self._memory)
