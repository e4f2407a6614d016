"""Compute mean and variance per feature, joined from parts.

Parts are joined by the pairwise formula of Chan, Golub and LeVeque (1979), in a fixed order: equal parts give equal
bits, whoever computed them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.kernels import append_frames


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

    @staticmethod
    def from_std(count: int, mean: NDArray[np.float64], std: NDArray[np.float64]) -> "Moments":
        """From what a manifest keeps, mean (D,) and standard deviation (D,)."""
        return Moments(count, mean, std * std * count)

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


class BlockMoments:
    """The `moments` of a shard's frames, summed block by block: conversion and index add alike, so their bits are equal.

    Within a block, deviations from the mean of the blocks before are summed, frame by frame.
    """

    def __init__(self, num_features: int) -> None:
        self.moments = Moments.empty(num_features)
        self._open_block(num_features)

    def _open_block(self, num_features: int) -> None:
        self._num_frames = 0
        self._total = np.zeros(num_features)
        self._total_squared = np.zeros(num_features)

    def append(self, frames: NDArray[np.float32], out: NDArray[Any]) -> bool:
        """Copy an utterance's frames (T, D) to `out` (T, D) and count them; False where a value is not finite."""
        append_frames(frames, out, self.moments.mean, self._total, self._total_squared)
        self._num_frames += len(frames)
        return bool(np.isfinite(self._total).all())

    def close_block(self) -> None:
        """Join the block's frames, at least one, to the moments."""
        part = Moments.from_sums(self._num_frames, self.moments.mean, self._total, self._total_squared)
        self.moments = self.moments.join(part)
        self._open_block(len(self._total))
