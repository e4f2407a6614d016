"""Recordings become features that teach as much as ready ones: from wav files to the speakers of held-out files."""

import tarfile

import pytest

from shards import FeatureOptions
from spkid_dist.commands.shard import shard
from spkid_dist.config import ScoreConfig, ShardConfig, TrainConfig
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model

READY_ACCURACY = 0.985  # of frames, of the corpus's ready features and the same training
CASES = {
    "cepstra": ({"kind": "mfcc", "window_ms": 30.0}, {}),
    "log mel": ({}, {"normalize": "global"}),
}


@pytest.fixture(scope="module")
def recordings(fsdd, tmp_path_factory):
    """The recordings below the speakers' folders, as the lists name them."""
    folder = tmp_path_factory.mktemp("recordings")
    with tarfile.open(fsdd / "recordings.tar") as archive:
        for member in archive:
            if member.name.endswith(".wav"):
                name = member.name.rpartition("/")[2]
                target = folder / "FSDD" / name.split("_")[1] / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
    return folder


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_recordings_teach_as_much_as_ready_features(fsdd, recordings, tmp_path, monkeypatch, case):
    """Frames within 0.5 %, and at most 1 of 300 utterances wrong, scored from the recordings."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    features, training = CASES[case]
    wanted = {"source": "audio", "db_path": recordings, "features": FeatureOptions(sample_rate=8000, **features)}
    for part in ("train", "test"):
        lists = {"list_file": fsdd / f"cfg/all.{part}", "spk2idx": fsdd / "cfg/spk2idx.json"}
        shard(ShardConfig(**wanted, **lists, out=str(tmp_path / part)))
    places = {"tr_shards": tmp_path / "train", "va_shards": tmp_path / "test", "save_path": tmp_path / "ckpt"}
    trained = train_model(TrainConfig(**places, in_frames=11, **training))
    assert trained.va_acc >= READY_ACCURACY - 0.005
    files = {"db_path": recordings, "te_list_file": fsdd / "cfg/all.test", "log_file": tmp_path / "results.log"}
    scores = score_utterances(ScoreConfig(weights_ckpt=trained.best_weights, **files, pictures=False))
    assert len(scores.keys) == 300
    assert (scores.found != scores.true).sum() <= 1
