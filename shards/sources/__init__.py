"""Read frames from files: one small module per kind of source, all behind `Source`; `shards.sources.registry` lists them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance


class Source(Protocol):
    """Loads the frames of utterances."""

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: the kind of source and all options that change frames (JSON values)."""
        ...

    def where(self, utterance: Utterance) -> str:
        """The file (and place in it) that error messages name."""
        ...

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32.

        Raises:
            InputError: the source is missing or damaged.
        """
        ...


@runtime_checkable
class DividedSource(Source, Protocol):
    """A source that knows something of each utterance, such as where it lies: a worker is sent what its task needs alone.

    A source without this method is sent whole with each task. That is right for one that knows a folder, and too slow for one
    that holds a table of a million lines.
    """

    def for_utterances(self, utterances: Sequence[Utterance]) -> Source:
        """A source that loads these utterances as this one does; for those that it lacks, with the same errors."""
        ...


def source_of_task(source: Source, utterances: Sequence[Utterance]) -> Source:
    """What is pickled for a worker that loads these utterances."""
    return source.for_utterances(utterances) if isinstance(source, DividedSource) else source


@runtime_checkable
class SettlingSource(Source, Protocol):
    """A source that learns from files what all must be alike in, beyond the number of features."""

    def settled(self, utterances: Sequence[Utterance]) -> Source:
        """The source that expects what most of these utterances are."""
        ...


def settled_source(source: Source, utterances: Sequence[Utterance]) -> Source:
    """The source as the dataset describes it, after a look at the first utterances."""
    return source.settled(utterances) if isinstance(source, SettlingSource) else source
