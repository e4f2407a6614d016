"""What all systems are given: the utterances of a corpus in memory, and the windows that are cut from them.

Shapes: T frames of an utterance, D features a frame, C frames a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.sources.fmatrix import read_fmatrix


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Utterances (T, D) float32 with their speakers' classes; a window is `in_frames` neighbouring frames, end to end."""

    keys: list[str]
    utterances: list[NDArray[np.float32]]
    labels: list[int]
    in_frames: int

    @property
    def window_values(self) -> int:
        """C*D."""
        return self.in_frames * self.utterances[0].shape[1]

    @property
    def num_windows(self) -> int:
        """Windows of all utterances, none of which hangs over an end."""
        return sum(max(0, len(frames) - self.in_frames + 1) for frames in self.utterances)

    def windows(self) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Every window (C*D,) float32, its own copy, and its class."""
        for frames, label in zip(self.utterances, self.labels, strict=True):
            for window in split_utterance(frames, self.in_frames):
                yield window.copy(), label


def split_utterance(frames: NDArray[np.float32], in_frames: int) -> NDArray[np.float32]:
    """The windows (T - C + 1, C*D) of an utterance (T, D), as a read-only view; none where it is shorter than C."""
    num_features = frames.shape[1]
    if len(frames) < in_frames:
        return np.empty((0, in_frames * num_features), frames.dtype)
    flat = np.ascontiguousarray(frames).reshape(-1)
    return np.lib.stride_tricks.sliding_window_view(flat, in_frames * num_features)[::num_features]


def read_corpus(folder: Path, in_frames: int) -> Corpus:
    """The training list of a corpus that `SyntheticCorpus.write` made."""
    keys = (folder / "cfg/all.train").read_text().split()
    utterances = [read_fmatrix(f"{folder}/mcp/{key}.mcp") for key in keys]
    labels = [int(key.split("/")[1][3:]) for key in keys]
    return Corpus(keys=keys, utterances=utterances, labels=labels, in_frames=in_frames)
