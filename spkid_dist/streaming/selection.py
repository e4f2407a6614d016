"""Choose which utterances of a dataset are taken, and how often: by speaker, by utterance, or balanced among speakers.

A choice is an integer an utterance, its *repeats*: 0 leaves it out, 1 takes it, 3 takes its windows three times an epoch. All
else (the order, the pools, the ledger, a resume) follows from the counts of windows as ever, so nothing is sharded anew,
and blocks without a chosen utterance are never read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.dataset import ShardDataset
from shards.errors import InputError, UsageError
from shards.layout import key_hash
from shards.names import classes_of, one_form

SHOWN = 3
MOST_REPEATS = 2**31 - 1  # that int32 counts
MOST_WINDOWS = 2**60  # of an epoch: far below what int64 counts


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to take of a dataset.

    Args:
        speakers: names of the speakers to take; None for all. Classes keep their numbers.
        utterances: keys of the utterances to take; None for all.
        balance: take the utterances of each chosen speaker so often that all have about as many windows as the one with
            the most; no utterance is left out, and repeats of a speaker's utterances differ by one at most.
    """

    speakers: Sequence[str] | None = None
    utterances: Sequence[str] | None = None
    balance: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether all utterances are taken once."""
        return self.speakers is None and self.utterances is None and not self.balance

    @property
    def identity(self) -> str | None:
        """A digest of the choice, whatever its order; None for everything."""
        if self.is_everything:
            return None
        names = [None if names is None else sorted(set(names)) for names in (self.speakers, self.utterances)]
        return xxhash.xxh3_128_hexdigest(json.dumps([*names, self.balance]).encode())

    def repeats(self, dataset: ShardDataset, windows: NDArray[np.int32]) -> NDArray[np.int32]:
        """How often each utterance of the table is taken: (U,); `windows` (U,) is how many each has.

        Raises:
            InputError: a speaker or an utterance is not in the dataset, or its table is damaged.
            UsageError: nothing is chosen, or what balances speakers is beyond all numbers.
        """
        chosen = np.ones(len(dataset.utterances), bool)
        if self.speakers is not None:
            chosen &= np.isin(dataset.utterance_column("speaker"), self._classes(dataset))
        if self.utterances is not None:
            chosen &= self._listed(dataset)
        if not chosen.any():
            raise UsageError(f"{dataset.folder}: no utterance is chosen; name speakers or utterances that it has")
        if not self.balance:
            return chosen.astype(np.int32)
        taken = _balanced(dataset.utterance_column("speaker"), windows, chosen)
        if taken.max() > MOST_REPEATS or np.dot(taken, windows) > MOST_WINDOWS:
            raise UsageError(
                f"{dataset.folder}: to balance its speakers, an utterance would be taken {taken.max():.3g} times, and an epoch "
                f"have {np.dot(taken, windows):.3g} windows; choose speakers whose numbers of windows differ less"
            )
        return taken.astype(np.int32)

    def _classes(self, dataset: ShardDataset) -> list[int]:
        assert self.speakers is not None
        classes = classes_of(dataset.manifest.speakers)
        unknown = [name for name in self.speakers if one_form(name) not in classes]
        if unknown:
            raise InputError(
                f"{dataset.folder}: has no speaker {', '.join(map(repr, unknown[:SHOWN]))} among its "
                f"{len(dataset.manifest.speakers)}; see them with: spkid info {dataset.folder}"
            )
        return [classes[one_form(name)] for name in self.speakers]

    def _listed(self, dataset: ShardDataset) -> NDArray[np.bool_]:
        assert self.utterances is not None
        hashes = np.array([key_hash(key) for key in self.utterances], np.uint64)
        stored = dataset.utterances["key_hash"]
        missing = np.flatnonzero(~np.isin(hashes, stored))
        if len(missing):
            shown = ", ".join(repr(self.utterances[index]) for index in missing[:SHOWN])
            raise InputError(
                f"{dataset.folder}: lacks {len(missing)} of the {len(hashes)} chosen utterances: {shown}; choose among those "
                "that were sharded"
            )
        return np.isin(stored, hashes)


def _balanced(speaker: NDArray[np.int32], windows: NDArray[np.int32], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Repeats (U,) that give each speaker about as many windows as the one with the most.

    The j-th utterance of a speaker is taken floor((j + 1) q) - floor(j q) times, where q is how many times as many windows
    it needs: what is cut off is never more than one utterance's worth.
    """
    speakers = speaker[chosen]
    totals = np.bincount(speakers, weights=windows[chosen])
    by_speaker = np.argsort(speakers, kind="stable")
    counts = np.bincount(speakers)
    place = np.arange(len(speakers)) - np.repeat(np.cumsum(counts) - counts, counts)  # j, in the order by speaker
    most = max(1.0, totals.max())
    times = (most / np.where(totals, totals, most))[speakers[by_speaker]]
    taken = np.floor((place + 1) * times + 1e-9) - np.floor(place * times + 1e-9)  # 1e-9: a whole number stays one
    repeats = np.zeros(len(chosen))
    repeats[np.flatnonzero(chosen)[by_speaker]] = taken
    return repeats
