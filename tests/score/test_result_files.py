"""The files of a scoring belong together: nothing of an earlier one stands beside them."""

import json

import pytest
from test_score import config, model  # noqa: F401 - fixtures

from shards import InputError
from shards.holding import FolderHold
from spkid_dist import read_scores
from spkid_dist.config import ScoreConfig
from spkid_dist.score import score_utterances
from spkid_dist.scoring.weightsdigest import weights_digest


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


def test_scores_of_an_earlier_scoring_stay_and_say_whose_they_are(model, config, tmp_path, capsys):
    model(3, "zero")
    scores = tmp_path / "mine.npz"
    score_utterances(ScoreConfig(**config, scores=scores))
    digest = weights_digest(config["weights_ckpt"])
    held = read_scores(scores)
    assert held.origin.weights == {digest: config["weights_ckpt"].name}
    assert held.origin.te_list_file == str(config["te_list_file"])
    kept = "mine.npz: these scores of an earlier scoring are kept"
    score_utterances(ScoreConfig(**config, scores=scores))
    assert kept not in capsys.readouterr().out
    score_utterances(ScoreConfig(**config))
    assert kept in capsys.readouterr().out
    assert "scores" not in json.loads(config["log_file"].with_suffix(".json").read_text())
    assert read_scores(scores).origin == held.origin
    score_utterances(ScoreConfig(**config))
    assert kept not in capsys.readouterr().out


def test_two_scorings_do_not_write_the_same_scores(model, config, tmp_path):
    model(3, "zero")
    scores = tmp_path / "out/s.npz"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with FolderHold(tmp_path / "out", "", [].append, name=".s.npz.held-by.json"):
        for path in (scores, tmp_path / "link/s.npz"):
            with pytest.raises(InputError, match=r": in use by process \d+ on .*give another --scores"):
                score_utterances(ScoreConfig(**config, scores=path))
        score_utterances(ScoreConfig(**config, scores=tmp_path / "out/t.npz"))
    assert not scores.exists()
    score_utterances(ScoreConfig(**config, scores=scores))
    assert not list((tmp_path / "out").glob(".*"))
