"""Check an utterance's frames (T, D), whatever their source: at least one, of D features, all finite."""

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError


def check_shape(frames: NDArray[np.float32], num_features: int, expectation: str, where: str) -> None:
    """Raise InputError where there is no frame, or D is not `num_features`; `expectation` says why it should be."""
    if len(frames) == 0:
        raise InputError(f"{where}: 0 frames; expected at least 1: remove the utterance from the list")
    if frames.shape[1] != num_features:
        raise InputError(
            f"{where}: {frames.shape[1]} features per frame, but {expectation} {num_features}; "
            "all need the same number: compute them again alike"
        )


def check_finite(frames: NDArray[np.float32], where: str) -> None:
    """Raise InputError where a value is NaN or infinite."""
    if not np.isfinite(frames).all():
        frame, feature = (int(i) for i in np.argwhere(~np.isfinite(frames))[0])
        raise InputError(
            f"{where}: frame {frame}, feature {feature} is {frames[frame, feature]}; expected finite numbers: "
            "compute the file again, or remove the utterance from the list"
        )
