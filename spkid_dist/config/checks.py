"""What several commands check of their values."""

import math

from shards.errors import UsageError


def at_least(minimum: float, **values: float) -> None:
    """Raise UsageError for the first of `values`, by flag, that is below `minimum`."""
    for name, value in values.items():
        if not value >= minimum:  # not `<`: NaN is refused too
            raise UsageError(f"--{name} {value}: expected {minimum} or more")


def from_zero_below(bound: float, **values: float) -> None:
    """Raise UsageError for the first of `values`, by flag, that is below 0, or not below `bound`."""
    for name, value in values.items():
        if not 0 <= value < bound:
            expected = "a finite number" if bound == math.inf else f"less than {bound}"
            raise UsageError(f"--{name} {value}: expected 0 or more, and {expected}")
