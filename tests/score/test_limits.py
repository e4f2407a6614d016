"""The limit of an utterance's frames holds wherever files are read: in training, in scoring, and for recordings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trained_folders import FEATURES, files_of, make_training, write_recordings

from shards import InputError, UsageError
from shards.sources.limits import UtteranceLimit
from spkid_dist import load_model
from spkid_dist.commands.shard import open_source as open_sharding
from spkid_dist.config import (
    BenchConfig,
    EmbedConfig,
    IdentifyConfig,
    ScoreConfig,
    ShardConfig,
    TrainConfig,
    TrialsConfig,
)
from spkid_dist.scoring.opening import open_source
from spkid_dist.train import train_model

TOO_LONG = r" frames; expected at most 3: .*--max_frames \d+$"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of recordings and their features, and their keys."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_recordings(folder)


@pytest.mark.parametrize(
    "source", [{"kind": "fmatrix"}, {"kind": "npy"}, {"kind": "audio", "features": FEATURES.describe()}]
)
def test_all_kinds_of_source_get_the_limit(source, tmp_path):
    config = ScoreConfig(model=tmp_path, max_frames=3)
    assert open_source(config, {"source": source}).limit == UtteranceLimit(3)
    features = {"features": FEATURES} if source["kind"] == "audio" else {}
    config = ShardConfig(out="out", source=source["kind"], max_frames=3, **features)
    assert open_sharding(config).limit == UtteranceLimit(3)


def test_a_training_from_files_has_the_limit(synthetic, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    lists = {"tr_list_file": synthetic / "cfg/all.train", "va_list_file": synthetic / "cfg/all.test"}
    places = {"spk2idx": synthetic / "cfg/spk2idx.json", "cache_dir": tmp_path, "save_path": tmp_path / "ckpt"}
    with pytest.raises(InputError, match=TOO_LONG):
        train_model(TrainConfig(db_path=synthetic / "mcp", **lists, **places, max_frames=3))


@pytest.mark.parametrize("kind", ["wav", "mcp"])
def test_recordings_have_the_limit(corpus, tmp_path, kind):
    source = {"kind": "audio", "ext": "wav", "features": FEATURES.describe()} if kind == "wav" else {"kind": "fmatrix"}
    place = make_training(tmp_path / "ckpt", source)
    file = files_of(corpus, kind)[0]
    assert load_model(place).identify(file)
    message = r"\d seconds make more than 3 frames" if kind == "wav" else TOO_LONG
    with pytest.raises(InputError, match=message):
        load_model(place, max_frames=3).identify(file)
    if kind == "wav":
        with pytest.raises(InputError, match=message):
            load_model(place, max_frames=3).identify(np.ones(8000) * 0.5, sample_rate=FEATURES.sample_rate)


@pytest.mark.parametrize("kind", ["wav", "mcp"])
def test_standard_input_without_an_end_is_refused(tmp_path, kind):
    source = {"kind": "audio", "ext": "wav", "features": FEATURES.describe()} if kind == "wav" else {"kind": "fmatrix"}
    place = make_training(tmp_path / "ckpt", source)
    words = (sys.executable, "-m", "spkid_dist", "identify", str(place), "-", "--max_frames", "1000")
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run(words, stdin=zeros, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("spkid: error: standard input: more than 577536 bytes; expected at most 1000 frames: ")


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (ShardConfig, {"out": "out"}),
        (TrainConfig, {}),
        (ScoreConfig, {"model": "ckpt"}),
        (EmbedConfig, {"model": "ckpt"}),
        (TrialsConfig, {"model": "ckpt", "trials": "trials"}),
        (IdentifyConfig, {"model": "ckpt"}),
        (BenchConfig, {}),
    ],
)
def test_a_limit_that_can_not_be_is_used_wrongly_everywhere(options, needed):
    assert options(**needed).max_frames == 1_000_000
    with pytest.raises(UsageError, match=r"^--max_frames 0: expected 1 to 1073741824$"):
        options(**needed, max_frames=0)
