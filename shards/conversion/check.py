"""Find the utterances at which a conversion would stop, by loading all of them once.

A dataset then holds the others as if they alone had been listed: plan, bytes and identity follow from what is stored.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from shards.conversion.frames import check_finite, check_shape
from shards.corpus import Utterance
from shards.errors import InputError
from shards.sources import Source, source_of_task

CHUNK_UTTERANCES = 256  # handed to a worker at a time


@dataclass(frozen=True)
class BadUtterance:
    """An utterance that can't be stored, and why."""

    utterance: Utterance
    reason: str


def find_bad(
    utterances: Sequence[Utterance],
    source: Source,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] = lambda _utterances, _frames: None,
) -> list[BadUtterance]:
    """The bad ones among `utterances`, in their order; D is what most of the others have.

    With `executor`, that does the loading. Raises InputError where none is good.
    """
    chunks = [utterances[at : at + CHUNK_UTTERANCES] for at in range(0, len(utterances), CHUNK_UTTERANCES)]
    inspected: Iterator[list[int | str]]
    if executor is None:
        inspected = map(_Inspection(source), chunks)
    else:
        sources = (source_of_task(source, chunk) for chunk in chunks)
        inspected = executor.map(_inspect_all, map(_Inspection, sources), chunks)
    features: list[int | str] = []
    for found in inspected:
        features += found
        progress(len(found), 0)
    counts = Counter(found for found in features if isinstance(found, int))
    if not counts:
        raise InputError(f"none of the {len(utterances)} utterances is good; the first: {features[0]}")
    usual = counts.most_common(1)[0][0]
    return list(_bad(utterances, features, usual, source))


def _bad(
    utterances: Sequence[Utterance], features: Sequence[int | str], usual: int, source: Source
) -> Iterator[BadUtterance]:
    for utterance, found in zip(utterances, features, strict=True):
        if isinstance(found, str):
            yield BadUtterance(utterance, found)
        elif found != usual:
            where = source.where(utterance)
            yield BadUtterance(utterance, f"{where}: {found} features per frame, but most have {usual}")


def _inspect_all(inspection: "_Inspection", utterances: Sequence[Utterance]) -> list[int | str]:
    """What a worker does."""
    return inspection(utterances)


@dataclass(frozen=True)
class _Inspection:
    """What is called for a chunk, and pickled with it where there are workers."""

    source: Source

    def __call__(self, utterances: Sequence[Utterance]) -> list[int | str]:
        """D of each utterance, or what is wrong with it."""
        return [self._inspect(utterance) for utterance in utterances]

    def _inspect(self, utterance: Utterance) -> int | str:
        try:
            frames = self.source.load(utterance)
            check_shape(frames, frames.shape[1], "", self.source.where(utterance))
            check_finite(frames, self.source.where(utterance))
        except InputError as error:
            return str(error)
        return int(frames.shape[1])
