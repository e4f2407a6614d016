"""Bring decoded audio to one channel and one sample rate, piece by piece: choose or mix channels, then resample with soxr.

Pieces of any size give the same samples bit for bit, so files, standard input and arrays agree.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.extras import import_extra
from shards.sources.featureoptions import LEAST_RATE, MOST_RATE, FeatureOptions

SOXR_QUALITY = "HQ"  # 20 bits; 16-bit recordings lose nothing that one could measure
PIECE_SAMPLES = 2**18  # after resampling, at a time


class Remedies(Protocol):
    """What messages advise to do about a file; `{found}` stands for its sample rate."""

    @property
    def sample_rate(self) -> str:
        """About another sample rate."""
        ...

    @property
    def one_channel(self) -> str:
        """About several channels."""
        ...

    @property
    def channel(self) -> str:
        """About too few channels."""
        ...


def prepare_mono(features: FeatureOptions, needed_by: str) -> None:
    """Raise UsageError where soxr is needed and not installed; `needed_by` is for the message."""
    if features.resample:
        import_extra("soxr", "audio", f"--features.resample of {needed_by}")


def check_shape(rate: int, channels: int, features: FeatureOptions, where: str, remedies: Remedies) -> None:
    """Raise InputError where a file of this sample rate and so many channels is none that `features` take."""
    if rate != features.sample_rate and not features.resample:
        raise InputError(
            f"{where}: its sample rate is {rate} Hz, expected {features.sample_rate} Hz: "
            f"{remedies.sample_rate.format(found=rate)}"
        )
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(
            f"{where}: its sample rate is {rate} Hz, expected {LEAST_RATE} to {MOST_RATE} Hz: record or convert it again"
        )
    if features.channel is None and channels != 1 and not features.downmix:
        raise InputError(f"{where}: it has {channels} channels, expected one: {remedies.one_channel}")
    if features.channel is not None and features.channel > channels:
        raise InputError(
            f"{where}: it has {channels} channels, expected at least {features.channel}: {remedies.channel}"
        )


def make_mono(
    pieces: Iterable[NDArray[np.float32]], rate: int, features: FeatureOptions
) -> Iterator[NDArray[np.float32]]:
    """One channel (n,) at the sample rate of `features`, of pieces (n, channels) at `rate`."""
    mixed = (_mix(piece, features) for piece in pieces)
    return mixed if rate == features.sample_rate else resample(mixed, rate, features.sample_rate)


def _mix(piece: NDArray[np.float32], features: FeatureOptions) -> NDArray[np.float32]:
    if features.downmix:
        return np.asarray(piece.mean(axis=1, dtype=np.float64), np.float32)
    return np.ascontiguousarray(piece[:, (features.channel or 1) - 1])


def resample(pieces: Iterable[NDArray[np.float32]], rate: int, wanted: int) -> Iterator[NDArray[np.float32]]:
    """The samples (n,) at the sample rate `wanted`, of pieces (n,) at `rate`, with soxr, in bounded memory.

    Raises:
        UsageError: soxr is not installed.
    """
    soxr = import_extra("soxr", "audio")
    stream: Any = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality=SOXR_QUALITY)
    size = max(1, PIECE_SAMPLES * rate // max(rate, wanted))
    for piece in pieces:
        for first in range(0, len(piece), size):
            yield stream.resample_chunk(piece[first : first + size])
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
