"""Bring frames to the form that the rest of the program takes: float32, row by row, in the machine's byte order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError


def to_float32(frames: NDArray[Any], where: str) -> NDArray[np.float32]:
    """The floating frames (T, D) as C-ordered float32; `where` is for messages.

    NaN and infinity stay what they are: who uses the frames refuses them, whatever file they come from.

    Raises:
        InputError: a finite value is beyond float32.
    """
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(frames, np.float32)
    if frames.dtype.itemsize > converted.dtype.itemsize:
        beyond = np.argwhere(np.isinf(converted) & np.isfinite(frames))
        if len(beyond):
            frame, feature = (int(i) for i in beyond[0])
            raise InputError(
                f"{where}: frame {frame}, feature {feature} is {frames[frame, feature]}; expected at most "
                f"{np.finfo(np.float32).max:.4g}, float32's largest: scale the features"
            )
    return converted
