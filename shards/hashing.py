"""Hash keys and speakers, thousands at a time, and identify a set of utterances by the sum of hashes.

`shards.listing` has the arithmetic. The utterance table's hashes are others: `shards.layout.key_hash`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.kernels import add_unseen, find_component, hash_slices, sum_pairs
from shards.names import one_form

MASK = 2**64 - 1


@dataclass(frozen=True)
class Slices:
    """Byte strings in one array: string i is ``data[starts[i]:ends[i]]``; `data` uint8, the others (n,) int64."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @staticmethod
    def of(strings: Sequence[str]) -> "Slices":
        """The strings as UTF-8."""
        encoded = [string.encode() for string in strings]
        lengths = np.array([len(string) for string in encoded], np.int64)
        ends = np.cumsum(lengths)
        return Slices(np.frombuffer(b"".join(encoded), np.uint8), ends - lengths, ends)

    def __len__(self) -> int:
        return len(self.starts)

    def strings(self, indices: NDArray[np.int64]) -> list[str]:
        """The strings of these indices (m,)."""
        if not len(indices):
            return []
        text = self.data.tobytes()
        bounds = zip(self.starts[indices].tolist(), self.ends[indices].tolist(), strict=True)
        return [text[start:end].decode() for start, end in bounds]

    def hashes(self, seed: int) -> NDArray[np.uint64]:
        """The strings' hashes (n,)."""
        hashes = np.empty(len(self), np.uint64)
        hash_slices(self.data, self.starts, self.ends, np.uint64(seed), hashes)
        return hashes

    def component(self, number: int) -> "Slices":
        """A component of each string, split at ``/`` and counted from 1; empty where it is missing."""
        firsts, lasts = np.empty_like(self.starts), np.empty_like(self.ends)
        find_component(self.data, self.starts, self.ends, number, firsts, lasts)
        return Slices(self.data, firsts, lasts)

    def in_one_form(self) -> "Slices":
        """The strings in the form in which speakers are compared."""
        text = self.data.tobytes()
        if text.isascii() or unicodedata.is_normalized("NFC", text.decode()):
            return self
        return Slices.of(list(map(one_form, self.strings(np.arange(len(self))))))


@dataclass(frozen=True)
class UtteranceSum:
    """What a set of utterances is known by, in whatever order: their number, and two sums of hashes modulo 2^64."""

    count: int = 0
    sums: tuple[int, int] = (0, 0)

    def __add__(self, other: "UtteranceSum") -> "UtteranceSum":
        first, second = ((mine + theirs) & MASK for mine, theirs in zip(self.sums, other.sums, strict=True))
        return UtteranceSum(self.count + other.count, (first, second))

    def __str__(self) -> str:
        return f"{self.count}:{self.sums[0]:016x}{self.sums[1]:016x}"

    @staticmethod
    def of(keys: NDArray[np.uint64], speakers: NDArray[np.uint64]) -> "UtteranceSum":
        """From the hashes (n,) of keys and of speakers."""
        sums = np.zeros(2, np.uint64)
        sum_pairs(keys, speakers, sums)
        return UtteranceSum(len(keys), (int(sums[0]), int(sums[1])))


def sum_utterances(utterances: Sequence[Utterance], seed: int) -> UtteranceSum:
    """The sum of utterances in memory."""
    if not utterances:
        return UtteranceSum()
    keys, speakers = (Slices.of([getattr(u, name) for u in utterances]) for name in ("key", "speaker"))
    return UtteranceSum.of(keys.hashes(seed), speakers.hashes(seed))


class HashSet:
    """A set of 64-bit hashes that grows."""

    def __init__(self) -> None:
        self._table = np.zeros(2**12, np.uint64)
        self._count = 0

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Add hashes (n,), and return the indices of those that are new."""
        needed = 2 * (self._count + len(hashes))
        if needed > len(self._table):
            held = self._table[self._table != 0]
            self._table = np.zeros(2 ** needed.bit_length(), np.uint64)
            add_unseen(held, self._table, np.empty(len(held), np.int64))
        unseen = np.empty(len(hashes), np.int64)
        count = add_unseen(hashes, self._table, unseen)
        self._count += count
        return unseen[:count]
