"""What the tests of the sources share: utterances, small corpora, and what an error may be."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
import soundfile

from shards import FeatureOptions, InputError, Utterance

FRAMES = np.random.default_rng(0).standard_normal((13, 5)).astype(np.float32)
RATE = 8000


def utterance(key: str) -> Utterance:
    return Utterance(key, "")


def error_of(call: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as raised:
        call(*arguments, **options)
    return str(raised.value)


def only_input_errors(call: Callable[..., np.ndarray], *arguments: object) -> None:
    """Whatever the input: frames, or our own error, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert call(*arguments).dtype == np.float32
        except InputError as error:
            assert "\n" not in str(error)


def kaldi_folder(folder: Path, compression_method: int | None = None, dtype: str = "f4") -> dict[str, np.ndarray]:
    """A data folder with three utterances of two speakers."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(1)
    frames = {f"spk{i % 2}-utt{i}": generator.standard_normal((9 + i, 4)).astype(dtype) for i in range(3)}
    kaldiio.save_ark(
        str(folder / "feats.ark"), frames, scp=str(folder / "feats.scp"), compression_method=compression_method
    )
    (folder / "utt2spk").write_text("".join(f"{key} {key[:4]}\n" for key in frames))
    return frames


def samples(seconds: float = 0.5, channels: int = 1, rate: int = RATE) -> np.ndarray:
    """A chord with noise, (n,) or (n, channels) float32."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(2).standard_normal((len(time), channels)) * 0.01
    chord = sum(np.sin(2 * np.pi * frequency * time) for frequency in (220.0, 700.0, 1900.0)) * 0.2
    return (chord[:, None] * np.linspace(1, 0.5, channels) + noise).astype(np.float32).squeeze()


def write_audio(path: Path, data: np.ndarray | None = None, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, samples() if data is None else data, rate, **options)
    return path


def options(**changes: Any) -> FeatureOptions:
    return FeatureOptions(**{"sample_rate": RATE} | changes)
