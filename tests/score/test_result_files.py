"""The files of a scoring belong together: nothing of an earlier one stands beside them."""

import json

import pytest
from test_score import config, model  # noqa: F401 - fixtures

from shards import InputError
from spkid_dist.config import ScoreConfig
from spkid_dist.score import score_utterances


def test_nothing_of_an_earlier_scoring_stands_beside_new_results(model, config, synthetic, tmp_path):
    """Neither where the new one draws none, nor where it knows no true speaker; what is somebody else's stays."""
    model(3, "zero")
    beside = {"results.log", "results.json", "results.confusion.png", "results.lengths.png", "results.det.png"}
    (tmp_path / "results.notes.png").write_bytes(b"mine")

    def files():
        return {path.name for path in tmp_path.glob("results.*")} - {"results.notes.png"}

    score_utterances(ScoreConfig(**config))
    assert files() == beside
    score_utterances(ScoreConfig(**config, pictures=False))
    assert files() == {"results.log", "results.json"}
    score_utterances(ScoreConfig(**config))
    (tmp_path / "db").mkdir()
    (tmp_path / "db/flat.mcp").write_bytes((synthetic / "mcp/SYN/spk0000/spk0000_0000.mcp").read_bytes())
    (tmp_path / "list").write_text("flat\n")
    score_utterances(ScoreConfig(**(config | {"db_path": tmp_path / "db", "te_list_file": tmp_path / "list"})))
    assert files() == {"results.log", "results.json"}
    assert "utterance_errors" not in json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "results.notes.png").read_bytes() == b"mine"


def test_a_picture_of_an_earlier_scoring_that_cannot_be_removed_is_named_before_results_change(model, config):
    model(3, "zero")
    config["log_file"].write_text("old")
    in_the_way = config["log_file"].with_suffix(".det.png")
    in_the_way.mkdir()
    with pytest.raises(InputError, match=r"results\.det\.png: this file of an earlier scoring can't be removed"):
        score_utterances(ScoreConfig(**config))
    assert config["log_file"].read_text() == "old"
