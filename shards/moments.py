"""Mean and variance per feature, joined from parts.

Parts are joined by the pairwise formula of Chan, Golub and LeVeque (1979), in a fixed order: equal parts give equal
bits, whoever computed them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Count of frames, mean (D,) and sum of squared deviations (D,) of a set of frames, float64."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @staticmethod
    def empty(num_features: int) -> "Moments":
        """The moments of no frames."""
        return Moments(0, np.zeros(num_features), np.zeros(num_features))

    @staticmethod
    def from_sums(
        count: int, shift: NDArray[np.float64], total: NDArray[np.float64], total_squared: NDArray[np.float64]
    ) -> "Moments":
        """From the sums (D,) of ``x - shift`` and of its square over `count` > 0 frames."""
        offset = total / count
        return Moments(count, shift + offset, np.maximum(total_squared - count * offset * offset, 0.0))

    def join(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        squares = self.squares + other.squares + delta * delta * (self.count * other.count / count)
        return Moments(count, mean, squares)

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation per feature (D,), of the population."""
        return np.sqrt(self.squares / max(self.count, 1))
