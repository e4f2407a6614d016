"""Twins of compiled loops, written to be obviously right."""

import numpy as np

from spkid_dist.config.choices import EDGE, VALID


def twin_windows(frames, context, edge):
    """All windows of one utterance (T, D), as (N, C*D)."""
    num_frames = len(frames)
    if edge == VALID:
        starts = range(num_frames - context + 1)
        return [frames[t : t + context].ravel() for t in starts]
    left = (context - 1) // 2
    mode = {"mode": "edge"} if edge == EDGE else {"mode": "constant", "constant_values": 0}
    wide = np.pad(frames, ((left, context - 1 - left), (0, 0)), **mode)
    return [wide[t : t + context].ravel() for t in range(num_frames)]


def twin_normalize(utterance):
    """One utterance (T, D) float32 to mean 0 and deviation 1; what float32 can't tell from constant to 0."""
    wide = utterance.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    constant = std <= np.finfo(np.float32).eps * abs(mean)
    return np.where(constant, 0, (wide - mean) / np.where(constant, 1, std)).astype(np.float32)
