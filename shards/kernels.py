"""The compiled loops of the sharder: plain functions on arrays that write into what the caller allocated.

Shapes: T frames of an utterance, D features per frame. Each kernel has a NumPy twin in `tests/test_kernels.py`.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def append_frames(
    source: NDArray[np.float32],
    out: NDArray[np.float32],
    shift: NDArray[np.float64],
    total: NDArray[np.float64],
    total_squared: NDArray[np.float64],
) -> None:
    """Copy an utterance's frames (T, D) to `out` (T, D) and add them to the block's sums, in one pass.

    `total` and `total_squared` (D,) gain the sums of ``x - shift`` and of its square; `shift` (D,) is any value near the
    mean, against cancellation. They end up not finite exactly when a value is NaN or infinite: squares of float32 do not
    overflow float64, so the loop needs no test.
    """
    num_frames, num_features = source.shape
    for t in range(num_frames):
        for d in range(num_features):
            value = source[t, d]
            out[t, d] = value
            deviation = np.float64(value) - shift[d]
            total[d] += deviation
            total_squared[d] += deviation * deviation
