"""Read frames from files: one small module per kind of source, all behind `Source`; `shards.sources.registry` lists them."""

from typing import Any, Protocol

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
