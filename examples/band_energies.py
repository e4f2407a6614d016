"""A source of your own for `spkid shard --source band_energies:BandEnergies`: the energies of wav files in 20 bands."""

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import Utterance
from shards.sources.limits import UtteranceLimit


@dataclass(frozen=True)
class BandEnergies:
    """Wav files of 16 bits, ``{db_path}/{key}.wav``; each worker process gets a copy."""

    db_path: Path
    num_bands: int = 20  # D, the features per frame

    @classmethod
    def from_description(cls, description: dict[str, Any], db_path: Path, _limit: UtteranceLimit) -> "BandEnergies":
        """The source that `describe` described, on another folder; `spkid shard` gives the options of its flags alone."""
        return cls(db_path, int(description.get("num_bands", cls.num_bands)))

    def describe(self) -> dict[str, Any]:
        """All options that change the frames, as JSON values: datasets and models keep them."""
        return {"num_bands": self.num_bands}

    def where(self, utterance: Utterance) -> str:
        """The file that messages name."""
        return f"{self.db_path}/{utterance.key}.wav"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The frames of an utterance, (T, D) float32."""
        with wave.open(self.where(utterance)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        pieces = np.lib.stride_tricks.sliding_window_view(samples, 256)[::80]  # (T, 256): 32 ms each, 10 ms apart
        spectrum = np.abs(np.fft.rfft(pieces * np.hanning(256)))[:, 1:] ** 2
        bands = np.array_split(spectrum, self.num_bands, axis=1)
        return np.log(np.stack([band.sum(axis=1) for band in bands], axis=1) + 1e-6).astype(np.float32)
