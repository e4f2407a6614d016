"""Check an utterance's frames (T, D), whatever their source: at least one, of D features, all finite."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError

TRANSPOSED = "it seems to be transposed, (features, frames): save array.T"


def check_shape(frames: NDArray[np.float32], num_features: int, expectation: str, where: str) -> None:
    """Raise InputError where there is no frame, or D is not `num_features`; `expectation` says why it should be."""
    if len(frames) == 0:
        raise InputError(f"{where}: 0 frames; expected at least 1: remove the utterance from the list")
    if frames.shape[1] != num_features:
        remedy = TRANSPOSED if len(frames) == num_features else "all need the same number: compute them again alike"
        raise InputError(f"{where}: {frames.shape[1]} features per frame, but {expectation} {num_features}; {remedy}")


def check_not_transposed(utterances: Sequence[NDArray[np.float32]], where: str) -> None:
    """Raise InputError where utterances differ in D, but not in T, which a corpus of speech does not; `where` the first is."""
    num_frames, num_features = ({frames.shape[axis] for frames in utterances} for axis in (0, 1))
    if len(num_features) > 1 and len(num_frames) == 1:
        raise InputError(
            f"{where} and {len(utterances) - 1} other utterances that were read first have {num_frames.pop()} frames each, but "
            f"{min(num_features)} to {max(num_features)} features per frame; {TRANSPOSED}"
        )


def check_finite(frames: NDArray[np.float32], where: str) -> None:
    """Raise InputError where a value is NaN or infinite."""
    if not np.isfinite(frames).all():
        frame, feature = (int(i) for i in np.argwhere(~np.isfinite(frames))[0])
        raise InputError(
            f"{where}: frame {frame}, feature {feature} is {frames[frame, feature]}; expected finite numbers: "
            "compute the file again, or remove the utterance from the list"
        )
