"""Make synthetic corpora of any size, from a seed: for the demo, the tests and the benchmarks.

An utterance is a chain of phone-like states. A state has a target in the cepstral domain, common to all speakers; a
speaker has an offset of all states (the vocal tract) and a smaller one of each (the accent); an utterance has an offset of
its own (the channel), which hides the speaker's. Frames go from target to target, smoothed, with noise. Coefficient d
varies as 1 / (1 + d/4), as cepstra fall off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.files import write_atomic, write_json
from shards.sources.fmatrix import write_fmatrix

SMOOTHING_FRAMES = 3  # a target is reached over as many frames to either side
STATE_FRAMES = 8  # mean duration of a state


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus:
    """A corpus to be made; equal fields make equal corpora.

    Spreads are standard deviations of the first coefficient, where the states' is 1.
    """

    num_speakers: int = 40
    train_utterances: int = 20
    test_utterances: int = 5
    mean_frames: int = 200
    num_features: int = 20
    num_states: int = 32
    speaker_spread: float = 0.4
    accent_spread: float = 0.4
    channel_spread: float = 0.3
    noise_spread: float = 0.4
    seed: int = 0

    def speakers(self) -> list[str]:
        """The speakers' names, in class order."""
        return [f"spk{index:04d}" for index in range(self.num_speakers)]

    def keys(self, speaker: int) -> list[str]:
        """A speaker's utterances: the training's first."""
        name = self.speakers()[speaker]
        return [f"SYN/{name}/{name}_{i:04d}" for i in range(self.train_utterances + self.test_utterances)]

    def utterances(self, speaker: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """A speaker's keys and frames (T, D) float32."""
        common = np.random.default_rng((self.seed, 0))
        own = np.random.default_rng((self.seed, 1, speaker))
        scale = 1.0 / (1.0 + np.arange(self.num_features) / 4.0)
        size = (self.num_states, self.num_features)
        targets = common.normal(size=size) * scale
        targets += own.normal(scale=self.speaker_spread, size=self.num_features) * scale
        targets += own.normal(scale=self.accent_spread, size=size) * scale
        for key in self.keys(speaker):
            yield key, self._frames(targets, scale, own)

    def _frames(
        self, targets: NDArray[np.float64], scale: NDArray[np.float64], draw: np.random.Generator
    ) -> NDArray[np.float32]:
        length = int(draw.integers(self.mean_frames // 2, self.mean_frames * 3 // 2 + 1))
        durations = 1 + draw.poisson(STATE_FRAMES - 1, size=length)
        states = np.repeat(draw.integers(0, self.num_states, size=length), durations)[: length + 2 * SMOOTHING_FRAMES]
        path = np.cumsum(targets[states], axis=0)
        width = 2 * SMOOTHING_FRAMES
        smooth = (path[width:] - path[:-width]) / width
        channel = draw.normal(scale=self.channel_spread, size=self.num_features)
        noise = draw.normal(scale=self.noise_spread, size=smooth.shape)
        return (smooth + (channel + noise) * scale).astype(np.float32)

    def write(self, folder: Path, progress: Callable[[int], None] = lambda _speakers: None) -> None:
        """Write ``mcp/KEY.mcp``, ``cfg/all.train``, ``cfg/all.test`` and ``cfg/spk2idx.json`` below `folder`."""
        lists: dict[str, list[str]] = {"all.train": [], "all.test": []}
        for speaker in range(self.num_speakers):
            for number, (key, frames) in enumerate(self.utterances(speaker)):
                path = folder / "mcp" / f"{key}.mcp"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_fmatrix(path, frames)
                lists["all.train" if number < self.train_utterances else "all.test"].append(key)
            progress(1)
        (folder / "cfg").mkdir(exist_ok=True)
        for name, keys in lists.items():
            write_atomic(folder / "cfg" / name, "".join(f"{key}\n" for key in keys).encode())
        write_json(folder / "cfg" / "spk2idx.json", {name: index for index, name in enumerate(self.speakers())})
