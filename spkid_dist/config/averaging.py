"""Read the option `--average`: which weights of a training are averaged."""

import math
from dataclasses import dataclass
from typing import Literal

from shards.errors import UsageError

EXPECTED = "none, epochs:N with N of 2 or more, or ema:DECAY with DECAY above 0 and below 1"


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """How weights are averaged: not at all, over the last `epochs` epochs, or over all batches with the decay `decay`."""

    kind: Literal["none", "epochs", "ema"]
    epochs: int = 0
    decay: float = 0.0

    @staticmethod
    def parse(text: str) -> "Averaging":
        """The averaging that a value of --average asks for.

        Raises:
            UsageError: it can't be.
        """
        kind, _, value = text.partition(":")
        if text == "none":
            return Averaging(kind="none")
        if kind == "epochs" and value.isascii() and value.isdigit() and int(value) >= 2:
            return Averaging(kind="epochs", epochs=int(value))
        if kind == "ema" and 0 < _number(value) < 1:
            return Averaging(kind="ema", decay=_number(value))
        raise UsageError(f"--average {text}: expected {EXPECTED}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
