"""Shard features of your own kind: write a source, and let worker processes convert a corpus with it.

    python examples/own_source.py RECORDINGS TRAIN_LIST TEST_LIST OUT [--workers 2]

RECORDINGS is a folder of wav files (16 bits, one channel). A list has one utterance per line, without `.wav`; the second
part of a line names the speaker. The datasets OUT/train and OUT/test are for `spkid train` and `spkid score --te_shards`.

A source needs three methods: `describe`, `where` and `load`. The source below computes the logarithm of the energy in 20
bands of frequency, with numpy alone.

Shapes: n samples of a recording, T frames, D features.
"""

import argparse
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import InputError, Layout, ShardDataset, Utterance, convert, make_plan, read_list

FRAME_SAMPLES, SHIFT_SAMPLES = 256, 80  # 32 ms and 10 ms at 8 kHz


@dataclass(frozen=True)
class BandEnergies:
    """The energies of wav files ``{folder}/{key}.wav`` in bands of equal width.

    Each worker process gets a copy, so the fields are plain values and open no file.
    """

    folder: Path
    num_bands: int = 20  # D

    def describe(self) -> dict[str, Any]:
        """The name of this kind of source, and all options that change the frames; the dataset keeps them."""
        return {"kind": "band_energies", "num_bands": self.num_bands}

    def where(self, utterance: Utterance) -> str:
        """The file that error messages name."""
        return f"{self.folder}/{utterance.key}.wav"

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The frames of an utterance, (T, D) float32.

        Raises:
            InputError: the file is missing, is no wav file of 16 bits and one channel, or is too short.
        """
        samples = read_samples(self.where(utterance))
        starts = range(0, len(samples) - FRAME_SAMPLES + 1, SHIFT_SAMPLES)
        if not starts:
            raise InputError(f"{self.where(utterance)}: {len(samples)} samples; expected {FRAME_SAMPLES} or more")
        pieces = np.stack([samples[start : start + FRAME_SAMPLES] for start in starts])  # (T, FRAME_SAMPLES)
        spectrum = np.abs(np.fft.rfft(pieces * np.hanning(FRAME_SAMPLES))) ** 2
        bands = np.array_split(spectrum[:, 1:], self.num_bands, axis=1)
        energies = np.stack([band.sum(axis=1) for band in bands], axis=1)  # (T, D)
        return np.log(energies + 1e-6).astype(np.float32)


def read_samples(path: str) -> NDArray[np.float32]:
    """The samples of a wav file, (n,) float32 in -1..1."""
    try:
        with wave.open(path) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise InputError(f"{path}: expected one channel and 16 bits per sample; convert the file")
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"{path}: can't read this wav file: {error}") from None
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def shard(utterances: list[Utterance], speakers: list[str], source: BandEnergies, out: Path, workers: int) -> None:
    """Convert utterances to the dataset `out`, and say what is in it."""
    # Worker processes share the shards out, so there must be at least as many shards as workers. This corpus is tiny, and
    # so are its shards. For a large corpus, take the defaults: Layout().
    layout = Layout(shard_bytes=200_000, block_frames=1000)
    plan = make_plan(utterances, speakers, source, layout)
    convert(plan, source, out, workers=workers)
    manifest = ShardDataset(out).manifest
    print(
        f"{out}: {manifest.num_utterances} utterances, {manifest.num_frames} frames of {manifest.num_features} features, "
        f"{len(manifest.speakers)} speakers, {len(manifest.shards)} shards"
    )


def main() -> None:
    """Shard the recordings of a training list and of a test list."""
    parser = argparse.ArgumentParser(description="Shard features of your own kind.")
    parser.add_argument("recordings", type=Path, help="folder of wav files")
    parser.add_argument("train_list", type=Path, help="list of the training utterances, one per line")
    parser.add_argument("test_list", type=Path, help="list of the test utterances")
    parser.add_argument("out", type=Path, help="folder of the two datasets")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    source = BandEnergies(arguments.recordings)
    training, test = read_list(arguments.train_list), read_list(arguments.test_list)
    # The place of a speaker in this list is the speaker's class. Both datasets need the same list.
    speakers = sorted({utterance.speaker for utterance in training})
    shard(training, speakers, source, arguments.out / "train", arguments.workers)
    shard(test, speakers, source, arguments.out / "test", arguments.workers)


if (
    __name__ == "__main__"
):  # worker processes import this file: without this line, each would start the conversion again
    main()
