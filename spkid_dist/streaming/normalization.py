"""Bring features to mean 0 and deviation 1, so that no feature outweighs another by its scale.

``global`` takes mean and deviation of the whole training set. They are part of the network (its layer ``normalize``) and of
its weights file, so whatever runs the network normalises too. The layer sees finished windows: the zero frames of
``--edge zero`` are frames as any other to it, and become -mean / deviation.

``utterance`` takes them of each utterance's own frames, before windows are cut, in training and in scoring. It removes what
is the same in all frames of an utterance: the channel, and also a speaker's own mean. The zero frames of ``--edge zero``
are added afterwards, so they are the utterance's mean.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.layout import BlockArrays
from spkid_dist.streaming.kernels import normalize_utterances, round_to_bfloat16


def normalize_block(block: BlockArrays) -> BlockArrays:
    """The block with each of its utterances normalised: frames (T, D) float32, a copy."""
    return replace(block, frames=normalize_frames(block.frames, block.lengths))


def bfloat16_block(block: BlockArrays) -> BlockArrays:
    """The block with its frames (T, D) rounded to bfloat16: their bits as uint16, a copy."""
    bits = np.ascontiguousarray(block.frames, np.float32).view(np.uint32).reshape(-1)
    rounded = np.empty(block.frames.shape, np.uint16)
    round_to_bfloat16(bits, rounded.reshape(-1))
    return replace(block, frames=rounded)


def normalize_frames(frames: NDArray[Any], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """Frames (T, D) of utterances of `lengths` (U,) end to end, each normalised; a copy."""
    wide = frames.astype(np.float32)  # the compiled loop knows no float16
    normalize_utterances(wide, lengths, wide)
    return wide
