"""A model of five speakers, trained a little, with held-out utterances of theirs and of three strangers."""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import shard_folder

from shards import Layout
from spkid_dist import TrainConfig, train_model
from spkid_dist.measure.synthetic import SyntheticCorpus

KNOWN = 5


@dataclass(frozen=True)
class Voices:
    """A corpus in `folder` with its lists and datasets, and weights of a training on it.

    Lists ``cfg/NAME`` and datasets ``NAME``: train, dev, test, strangers (of speakers whom the model does not know), and mixed
    (test and strangers).
    """

    folder: Path
    weights: Path

    def listed(self, name: str) -> list[str]:
        return (self.folder / "cfg" / name).read_text().split()

    def shards(self, name: str) -> dict[str, Any]:
        """Flags that name the weights and a dataset."""
        return {"weights_ckpt": self.weights, "te_shards": self.folder / name}

    def files(self, name: str) -> dict[str, Any]:
        """Flags that name the weights, and the files of a list."""
        lists = {"te_list_file": self.folder / "cfg" / name}
        return {"weights_ckpt": self.weights, "db_path": self.folder / "mcp", **lists}


def make_voices(folder: Path) -> Voices:
    """Write the corpus and train the model."""
    corpus = SyntheticCorpus(
        num_speakers=8, train_utterances=4, test_utterances=16, mean_frames=30, num_features=8, channel_spread=0.5
    )
    corpus.write(folder)
    cfg = folder / "cfg"
    names = corpus.speakers()[:KNOWN]
    (cfg / "spk2idx.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))

    def is_known(key: str) -> bool:
        return key.split("/")[1] in names

    train, rest = ((cfg / name).read_text().split() for name in ("all.train", "all.test"))
    held_out = [key for key in rest if is_known(key)]
    strangers = [key for key in rest if not is_known(key)]
    lists = {
        "train": [key for key in train if is_known(key)],
        "dev": held_out[::2],
        "test": held_out[1::2],
        "strangers": strangers[::2],
        "mixed": held_out[1::2] + strangers[1::2],
    }
    for name, keys in lists.items():
        (cfg / name).write_text("".join(f"{key}\n" for key in keys))
        if name not in ("strangers", "mixed"):
            shard_folder(folder, cfg / name, folder / name, Layout(block_frames=200))
    (cfg / "spk2idx.json").rename(cfg / "five.json")  # the datasets with strangers have a map of their own
    for name in ("strangers", "mixed"):
        shard_folder(folder, cfg / name, folder / name, Layout(block_frames=200))
    options: dict[str, Any] = {
        "tr_shards": folder / "train",
        "va_shards": folder / "test",
        "save_path": folder / "ckpt",
    }
    network = {"in_frames": 5, "hsize": 24, "batch_size": 100, "num_streams": 4, "shuffle_windows": 512, "epoch": 2}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setenv("ACCELERATE_USE_CPU", "true")
        result = train_model(TrainConfig(**options, **network, lr=0.01))
    return Voices(folder, result.best_weights)


def with_own_model(voices: Voices, folder: Path) -> Voices:
    """The same with a copy of the model's files in a new folder, where calibrations may be written."""
    folder.mkdir()
    for path in (voices.weights, voices.folder / "ckpt/train.opts"):
        shutil.copy(path, folder)
    return Voices(voices.folder, folder / voices.weights.name)
