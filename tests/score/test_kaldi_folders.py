"""Scoring straight from a Kaldi data folder."""

from pathlib import Path

import kaldiio
import numpy as np
import pytest
from source_checks import kaldi_folder
from trained_folders import make_training

from shards import InputError
from spkid_dist import load_model
from spkid_dist.commands.embed import embed_utterances
from spkid_dist.config import EmbedConfig, ScoreConfig
from spkid_dist.score import score_utterances
from spkid_dist.scoring.embeddingfile import read_embeddings

KEYS = ["spk0-utt0", "spk1-utt1", "spk0-utt2"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    kaldi_folder(tmp_path / "data")
    make_training(tmp_path / "ckpt", source={"kind": "kaldi"}, input_dim=4, speakers=["spk0", "spk1"], num_spks=2)
    return tmp_path


def test_a_kaldi_folder_is_scored_without_a_list(trained: Path) -> None:
    flags = {"db_path": trained / "data", "model": trained / "ckpt"}
    whole = score_utterances(ScoreConfig(log_file=trained / "all.log", **flags))
    lines = (trained / "all.log").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines if line.startswith("spk")] == KEYS
    assert whole.true.tolist() == [0, 1, 0]
    (trained / "list").write_text("".join(f"{key}\n" for key in KEYS))
    score_utterances(ScoreConfig(log_file=trained / "list.log", te_list_file=trained / "list", **flags))
    assert (trained / "list.log").read_text() == (trained / "all.log").read_text()


def test_a_kaldi_folder_without_speakers_is_scored_without_a_list(trained: Path) -> None:
    (trained / "data/utt2spk").unlink()
    config = ScoreConfig(
        db_path=trained / "data", model=trained / "ckpt", log_file=trained / "s.log", speaker_regex="(none)"
    )
    assert len(score_utterances(config).found) == 3


def test_a_kaldi_folder_is_embedded_without_a_list(trained: Path) -> None:
    embed_utterances(EmbedConfig(db_path=trained / "data", model=trained / "ckpt", out=trained / "e.npz"))
    assert sorted(read_embeddings(trained / "e.npz").keys) == sorted(KEYS)


def test_a_model_of_normalised_frames_takes_a_folder_and_no_single_matrix(tmp_path: Path) -> None:
    kaldi_folder(tmp_path / "data")
    place = (tmp_path / "data/feats.scp").read_text().split()[1]
    stats = np.zeros((2, 5))
    stats[0, 4] = 1
    kaldiio.save_ark(str(tmp_path / "c.ark"), {"spk0": stats, "spk1": stats}, scp=str(tmp_path / "data/cmvn.scp"))
    source = {"kind": "kaldi", "features": {"cmvn": "mean"}}
    make_training(tmp_path / "ckpt", source=source, input_dim=4, speakers=["spk0", "spk1"], num_spks=2)
    config = ScoreConfig(db_path=tmp_path / "data", model=tmp_path / "ckpt", log_file=tmp_path / "s.log")
    assert len(score_utterances(config).found) == 3
    with pytest.raises(InputError, match=r"the model was trained on frames after cmvn\.scp, which a file alone"):
        load_model(tmp_path / "ckpt").identify([place])
