"""Folders of trainings as `spkid train` leaves them, with random weights, and recordings to try them on."""

import json

import numpy as np
import soundfile
import torch

from shards import FeatureOptions
from shards.sources.features import compute_features
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.model import model_from_options, set_moments
from spkid_dist.weights.file import save_weights

RATE = 8000
SPEAKERS = ["ana", "bob", "eve"]
FEATURES = FeatureOptions(sample_rate=RATE, num_bins=8)


def make_training(folder, source=None, **changes):
    """A folder with options, statistics and the weights of one epoch, for windows of 6 frames of 8 features by default."""
    folder.mkdir(parents=True)
    source = source or {"kind": "audio", "ext": "wav", "features": FEATURES.describe()}
    options = {
        "input_dim": 8,
        "in_frames": 6,
        "hsize": 16,
        "num_spks": 3,
        "speakers": SPEAKERS,
        "source": source,
    } | changes
    torch.manual_seed(7)
    network = model_from_options(options)
    if options.get("normalize") == "global":
        set_moments(network, [float(value) for value in range(options["input_dim"])], [5.0] * options["input_dim"])
    network.train()
    network(
        torch.randn(50, options["in_frames"] * options["input_dim"]) * 5
    )  # so that batch normalisation has seen batches
    save_weights(network, folder / "bestval_e0_weights.ckpt")
    (folder / "train.opts").write_text(json.dumps(options))
    statistics = {"tr_loss": [], "tr_acc": [], "va_loss": [0.5], "va_acc": [0.9]}
    (folder / "train_stats.json").write_text(json.dumps(statistics))
    return folder


def voice(seconds=0.4, number=0, seed=0):
    """Samples (n,) float32 of a tone in noise."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.05
    return (noise + 0.2 * np.sin(np.arange(len(noise)) * (0.1 + 0.3 * number))).astype(np.float32)


def write_wav(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def write_recordings(folder):
    """Recordings of one window and of many, their features as files, and a list; their keys."""
    keys = []
    for number, seconds in enumerate([0.4, 0.025, 0.3, 0.07, 1.0, 0.35, 0.5]):
        keys.append(f"{SPEAKERS[number % 3]}/{number}")
        samples = voice(seconds, number, seed=number)
        write_wav(folder / "wav" / f"{keys[-1]}.wav", samples, subtype="FLOAT")
        path = folder / "mcp" / f"{keys[-1]}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, compute_features(samples, FEATURES, "x"))
    (folder / "list").write_text("".join(f"{key}\n" for key in keys))
    return keys


def files_of(corpus, kind="wav"):
    """The paths of the recordings, or of their features, of a folder and its keys."""
    folder, keys = corpus
    return [folder / kind / f"{key}.{kind}" for key in keys]
