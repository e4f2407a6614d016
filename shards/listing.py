"""Put lists of utterances into their order of storage, without holding them in memory.

An utterance's place follows from a 64-bit hash of its key and the seed: the order of storage is that of (hash, key).
`ListFile` reads a list of any length in pieces. The first scan counts the utterances of each of 2^16 prefixes of the
hash, so that any range of ranks is known to lie in a range of prefixes; `select` scans again and keeps those alone.

The arithmetic, n utterances of about 40 bytes a line:

- a scan splits and hashes about 0.3 GB/s or more, which is about 10 M utterances/s: n = 10^9, 40 GB, is some minutes; it
  keeps the histogram (2^16 counts, 0.5 MB), a chunk (4 MB), one utterance of each speaker, and the first 64;
- a selection keeps what it selects as Python objects, about 250 bytes each while it sorts, and what else is in the prefixes
  at its two ends: n / 2^16 each, 15 thousand of n = 10^9;
- 64 bits: among n = 10^9 keys two have equal hashes with a chance of n^2 / 2^65 = 3 %; they are ordered by their keys.

A scan also sums two hashes of each (key, speaker), modulo 2^64: equal for the same utterances in whatever order, so that
it can be computed from the tars too. It is in the job's identity. Two sets that differ have equal sums with a chance of
about 2^-64, the chance that single keys have equal hashes; against an adversary it is no protection.

Where the speaker is a component of the key, all of this is compiled; any other rule is called for each key, about 1 us.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance, check_key, listed_twice, speaker_of
from shards.errors import InputError
from shards.hashing import MASK, HashSet, Slices, UtteranceSum, sum_utterances
from shards.kernels import find_improper, split_lines
from shards.lines import CHUNK_BYTES, numbered_lines, read_chunks
from shards.names import check_name
from shards.plaintext import unsafe_character
from shards.speakers import ComponentRule, SpeakerRule

SAMPLE_UTTERANCES = 64  # the first ones: loaded beforehand to estimate the size of a shard's share
PREFIX_BITS = 16
CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in "\r\n")


class Listing(Protocol):
    """Utterances in the order of (hash of key, key), which depends on a seed."""

    @property
    def total(self) -> UtteranceSum:
        """Their number and sum."""
        ...

    @property
    def first(self) -> list[Utterance]:
        """The first 64, or all."""
        ...

    @property
    def examples(self) -> list[Utterance]:
        """An utterance of each speaker."""
        ...

    def select(self, ranks: range) -> list[Utterance]:
        """The utterances of these ranks, in order.

        Raises:
            InputError: one occurs twice.
        """
        ...


class MemoryListing:
    """Utterances that are in memory; at least one.

    Raises:
        InputError: one occurs twice, or has a name that can't be (`check_name`).
    """

    def __init__(self, utterances: Sequence[Utterance], seed: int) -> None:
        for utterance in utterances:
            check_name(utterance.key, "utterance", "the list")
            check_name(utterance.speaker, "speaker", f"utterance {utterance.key!r}")
        keys = [utterance.key for utterance in utterances]
        order, twice = storage_order(Slices.of(keys).hashes(seed), keys)
        if twice is not None:
            raise InputError(f"utterance {twice!r} is listed twice; expected once: remove one")
        self._ordered = [utterances[index] for index in order]
        self.total = sum_utterances(utterances, seed)
        self.first = self._ordered[:SAMPLE_UTTERANCES]
        self.examples = list({utterance.speaker: utterance for utterance in utterances}.values())

    def select(self, ranks: range) -> list[Utterance]:
        """The utterances of these ranks."""
        return self._ordered[ranks.start : ranks.stop]


def storage_order(hashes: NDArray[np.uint64], keys: Sequence[str]) -> tuple[list[int], str | None]:
    """The indices (n,) that sort by (hash, key), and a key that occurs twice, if one does."""
    order: list[int] = np.argsort(hashes, kind="stable").tolist()
    ordered = hashes[order]
    if not (ordered[1:] == ordered[:-1]).any():
        return order, None
    values = hashes.tolist()
    order.sort(key=lambda index: (values[index], keys[index]))
    return order, next((keys[a] for a, b in pairwise(order) if keys[a] == keys[b]), None)


class ListFile:
    """The utterances that a file lists; it is scanned when this is made, and for each selection.

    Args:
        path: the list, a file that can be read again.
        rule: names the speakers.
        seed: of the order.
        are_paths: whether keys are paths below a folder; those of Kaldi folders are any text.

    Raises:
        InputError: the list is missing, empty, no regular file or not UTF-8; a key has no speaker, or is no path as
            `shards.corpus.check_key` has it.
    """

    def __init__(self, path: Path, rule: SpeakerRule, seed: int, *, are_paths: bool = True) -> None:
        self._path, self._rule, self._seed, self._are_paths = path, rule, seed, are_paths
        self._selected: tuple[range, list[Utterance]] = (range(0), [])
        self.total = UtteranceSum()
        self.examples: list[Utterance] = []
        first = _FirstKeys()
        speakers = HashSet()
        histogram = np.zeros(2**PREFIX_BITS, np.int64)
        for keys in self._key_chunks():
            named = self._speakers(keys)
            hashes, speaker_hashes = keys.hashes(seed), named.hashes(seed)
            self.total += UtteranceSum.of(hashes, speaker_hashes)
            histogram += np.bincount(_prefixes(hashes), minlength=len(histogram))
            first.add(hashes, keys)
            new = speakers.add(speaker_hashes)
            self.examples += map(Utterance, keys.strings(new), named.strings(new))
        if not self.total.count:
            raise InputError(f"{path}: the utterance list is empty; give at least one utterance, one a line")
        self._first_rank = np.concatenate([[0], np.cumsum(histogram)])  # of each prefix
        self.first = [Utterance(key, rule(key)) for _, key in first.keys]

    def select(self, ranks: range) -> list[Utterance]:
        """The utterances of these ranks; what was selected last is kept, and not read again.

        Raises:
            InputError: one occurs twice, or the list has changed since it was scanned.
        """
        kept, utterances = self._selected
        if not kept.start <= ranks.start <= ranks.stop <= kept.stop:
            del utterances
            self._selected = (range(0), [])  # before the next one takes as much memory
            utterances, kept = self._read(ranks), ranks
            self._selected = (kept, utterances)
        return utterances[ranks.start - kept.start : ranks.stop - kept.start]

    def _read(self, ranks: range) -> list[Utterance]:
        low = int(np.searchsorted(self._first_rank, ranks.start, "right")) - 1
        high = int(np.searchsorted(self._first_rank, ranks.stop, "left"))  # the first prefix that is not needed
        selected: list[str] = []
        parts = []
        for keys in self._key_chunks():
            hashes = keys.hashes(self._seed)
            prefixes = _prefixes(hashes)
            chosen = np.flatnonzero((prefixes >= low) & (prefixes < high))
            selected += keys.strings(chosen)
            parts.append(hashes[chosen])
        first, last = (int(rank) for rank in self._first_rank[[low, high]])
        if len(selected) != last - first:
            raise InputError(f"{self._path}: it changed while it was read; run again when it is complete")
        order, twice = storage_order(np.concatenate(parts), selected)
        if twice is not None:
            raise self._twice(twice)
        wanted = order[ranks.start - first : ranks.stop - first]
        names: dict[str, str] = {}  # one string a speaker, not one an utterance
        speakers = (self._rule(selected[index]) for index in wanted)
        return [Utterance(selected[i], names.setdefault(s, s)) for i, s in zip(wanted, speakers, strict=True)]

    def _key_chunks(self) -> Iterator[Slices]:
        """The keys, some thousand at a time; a chunk's arrays are used again for the next."""
        room = CHUNK_BYTES + 1  # a chunk is at most two reads long
        starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
        for chunk in read_chunks(self._path):
            data = np.frombuffer(chunk, np.uint8)
            count = split_lines(data, starts, ends)
            keys = Slices(data, starts[:count], ends[:count])
            is_wrong = self._are_paths and find_improper(data, keys.starts, keys.ends) >= 0
            if is_wrong or _has_unsafe(chunk, keys):
                self._name_mistake()
            yield keys

    def _speakers(self, keys: Slices) -> Slices:
        """The keys' speakers."""
        if isinstance(self._rule, ComponentRule):
            speakers = keys.component(self._rule.component)
            if (speakers.starts == speakers.ends).any():
                self._name_mistake()
            return speakers.in_one_form()
        try:
            return Slices.of([self._rule(key) for key in keys.strings(np.arange(len(keys)))])
        except InputError:
            self._name_mistake()

    def _name_mistake(self) -> NoReturn:
        """Raise InputError for the first line that is wrong."""
        for number, key in numbered_lines(self._path):
            check_key(key, f"{self._path}:{number}", is_path=self._are_paths)
            speaker_of(key, self._rule, f"{self._path}:{number}")
        raise InputError(f"{self._path}: it changed while it was read; run again when it is complete")

    def _twice(self, key: str) -> InputError:
        numbers = [number for number, other in numbered_lines(self._path) if other == key]
        return listed_twice(self._path, key, *numbers[:2])


def _has_unsafe(chunk: bytes, keys: Slices) -> bool:
    """Whether a key of the chunk has a character that no name may have; most chunks have none at all."""
    if chunk.isascii() and len(chunk.translate(None, CONTROLS)) == len(chunk):
        return False
    return any(unsafe_character(key) is not None for key in keys.strings(np.arange(len(keys))))


def _prefixes(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - PREFIX_BITS)).astype(np.int64)


class _FirstKeys:
    """The first keys by (hash, key) of all that were added: `keys`, (hash, key) each."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, str]] = []
        self._bound = MASK

    def add(self, hashes: NDArray[np.uint64], keys: Slices) -> None:
        """Add a chunk's."""
        if len(hashes) > SAMPLE_UTTERANCES:
            self._bound = min(self._bound, int(np.partition(hashes, SAMPLE_UTTERANCES - 1)[SAMPLE_UTTERANCES - 1]))
        chosen = np.flatnonzero(hashes <= np.uint64(self._bound))
        new = zip(hashes[chosen].tolist(), keys.strings(chosen), strict=True)
        self.keys = sorted([*self.keys, *new])[:SAMPLE_UTTERANCES]
        if len(self.keys) == SAMPLE_UTTERANCES:
            self._bound = self.keys[-1][0]
