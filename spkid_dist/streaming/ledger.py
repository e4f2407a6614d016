"""Account for an epoch: which windows were consumed, in three numbers that add up over ranks and restarts.

A window's id is its number in the order of storage, so a whole epoch's sums are known beforehand: a window that was lost,
or came twice, is an error when the epoch ends, not a slightly worse model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import SpkidError

WORD = 2**64


class LedgerError(SpkidError):
    """The windows consumed in an epoch are not those of the dataset, each once."""


@dataclass(frozen=True)
class Ledger:
    """Of the consumed windows' ids: how many, their sum modulo 2^64, and their exclusive or."""

    count: int = 0
    total: int = 0
    xor: int = 0

    @staticmethod
    def of(ids: NDArray[np.int64]) -> "Ledger":
        """The ledger of the windows `ids` (N,)."""
        words = ids.view(np.uint64)
        return Ledger(len(ids), int(np.add.reduce(words)), int(np.bitwise_xor.reduce(words)))

    @staticmethod
    def of_epoch(num_windows: int) -> "Ledger":
        """That of the ids 0 to N - 1, each once."""
        last = num_windows - 1
        xor = (last, 1, num_windows, 0)[last % 4] if num_windows else 0  # 0 ^ 1 ^ ... ^ last has a period of 4
        return Ledger(num_windows, num_windows * last // 2 % WORD, xor)

    @staticmethod
    def join(parts: "Iterable[Ledger]") -> "Ledger":
        """That of all parts together."""
        count = total = xor = 0
        for part in parts:
            count, total, xor = count + part.count, (total + part.total) % WORD, xor ^ part.xor
        return Ledger(count, total, xor)


def check_epoch(consumed: Ledger, num_windows: int, epoch: int) -> None:
    """Compare what all ranks consumed in an epoch with what it has.

    Raises:
        LedgerError: a window is missing, or came twice.
    """
    expected = Ledger.of_epoch(num_windows)
    if consumed == expected:
        return
    missing = expected.count - consumed.count
    difference = (expected.total - consumed.total) % WORD
    if missing > 0:
        what = f"{missing} windows were not consumed" if missing > 1 else f"window {difference} was not consumed"
    elif missing < 0:
        what = (
            f"{-missing} windows too many were consumed" if missing < -1 else f"window {-difference % WORD} came twice"
        )
    else:
        what = "some windows came twice and as many not at all"
    raise LedgerError(
        f"epoch {epoch}: {what} (ledger: count {consumed.count}, sum {consumed.total}, xor {consumed.xor}; expected "
        f"{expected.count}, {expected.total}, {expected.xor}); this model has not seen each window once: check that all "
        "ranks read the same dataset with the same options"
    )
