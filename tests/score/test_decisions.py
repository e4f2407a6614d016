"""`spkid score` with a calibration: confidences, log-likelihood ratios, and utterances that it calls unknown."""

import json
import shutil

import numpy as np
import pytest

from shards import InputError, UsageError
from spkid_dist import (
    CalibrateConfig,
    ScoreConfig,
    TrialsConfig,
    calibrate_model,
    read_scores,
    score_trials,
    score_utterances,
)
from spkid_dist.scoring.calibration import log_posteriors
from spkid_dist.scoring.reliability import reliability


@pytest.fixture
def calibrated(voices):
    """The voices, with a calibration that has no threshold."""
    calibrate_model(CalibrateConfig(**voices.shards("dev")))
    return voices


@pytest.fixture
def files(tmp_path):
    return {"log_file": tmp_path / "results.log", "pictures": False}


def lines_of(files):
    return dict(line.split("\t")[:2] for line in files["log_file"].read_text().splitlines())


def facts_of(files):
    return json.loads(files["log_file"].with_suffix(".json").read_text())


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@pytest.mark.parametrize("top", [None, 2])
def test_scores_have_the_calibrated_confidence_of_the_found_speaker(calibrated, files, tmp_path, ending, top, capsys):
    path = tmp_path / f"scores{ending}"
    result = score_utterances(ScoreConfig(**calibrated.shards("test"), **files, scores=path, top=top))
    assert "scores are calibrated by" in capsys.readouterr().out
    raw_path = tmp_path / "raw.npz"
    raw_files = files | {"log_file": tmp_path / "raw.log"}
    score_utterances(ScoreConfig(**calibrated.shards("test"), **raw_files, scores=raw_path, calibration=False))
    held, raw = read_scores(path), read_scores(raw_path)
    assert (raw.scale, raw.ratios, raw.posteriors) == (None, None, None)
    scores = held.scale.scaled(raw.means.astype(float), raw.windows)
    rows = np.arange(len(scores))
    np.testing.assert_allclose(held.posteriors, np.exp(log_posteriors(scores))[rows, held.found], rtol=1e-4)
    rivals = np.exp(scores).sum(axis=1) - np.exp(scores[rows, held.found])
    np.testing.assert_allclose(held.ratios, scores[rows, held.found] - np.log(rivals / 4), atol=1e-4)
    np.testing.assert_array_equal(held.found, raw.found)
    expected = reliability(scores, raw.true)
    assert result.decisions.reliability.nll == pytest.approx(expected.nll, rel=1e-5)
    facts = facts_of(files)
    assert facts["confidence"]["nll"] == pytest.approx(expected.nll, rel=1e-5)
    assert facts["confidence"]["expected_calibration_error"] == pytest.approx(expected.expected_error, abs=1e-3)
    assert "open_set" not in facts
    assert (files["log_file"].read_text() == raw_files["log_file"].read_text()) == (top is None)


def test_without_a_calibration_nothing_is_decided(voices, files):
    result = score_utterances(ScoreConfig(**voices.shards("test"), **files))
    assert result.decisions is None
    assert not {"confidence", "calibration"} & facts_of(files).keys()


def test_an_utterance_below_the_threshold_is_unknown(calibrated, files):
    plain = score_utterances(ScoreConfig(**calibrated.shards("mixed"), **files))
    names = lines_of(files)
    threshold = float(np.median(plain.decisions.ratios))
    result = score_utterances(ScoreConfig(**calibrated.shards("mixed"), **files, threshold=threshold))
    accepted = plain.decisions.ratios >= threshold
    expected = {k: names[k] if is_known else "unknown" for k, is_known in zip(plain.keys, accepted, strict=True)}
    assert lines_of(files) == expected
    np.testing.assert_array_equal(result.found, plain.found)
    known, right = plain.true >= 0, plain.true == plain.found
    assert result.rates == plain.rates  # of the closed set
    facts = facts_of(files)
    assert facts["called_unknown"] == (~accepted).sum()
    counts = {
        "false_acceptances": (accepted & ~known).sum(),
        "false_rejections": (~accepted & known).sum(),
        "misidentifications": (accepted & known & ~right).sum(),
    }
    for name, count in counts.items():
        assert facts["open_set"][name]["errors"] == count
    assert facts["open_set"]["identification_rate"]["right"] == (accepted & right).sum()
    assert [facts["open_set"][name]["total"] for name in counts] == [24, 40, 40]


def test_that_speakers_are_unknown_to_the_model_is_said_once(voices, files, capsys):
    score_utterances(ScoreConfig(**voices.shards("mixed"), **files))
    printed = capsys.readouterr().out
    said = "24 of 64 utterances are of speakers that the model does not know, such as 'spk0005'. Error rates leave them out."
    assert printed.splitlines().count(said) == 1
    assert printed.count("leave") == 1
    assert " targets, " in printed
    assert " nontargets)" in printed
    assert "left out" not in printed


def test_the_fitted_threshold_is_the_default_and_can_be_left_out(voices, files, capsys):
    fitted = calibrate_model(CalibrateConfig(**voices.shards("dev"), unknown=voices.folder / "strangers")).threshold
    drawn = files | {"pictures": True}
    result = score_utterances(ScoreConfig(**voices.shards("mixed"), **drawn))
    assert result.decisions.threshold == fitted
    assert "unknown" in lines_of(files).values()
    printed = capsys.readouterr().out
    assert f"open set, threshold {fitted:.4f} on the log-likelihood ratio of the found speaker:" in printed
    assert "  false acceptances: " in printed
    picture = files["log_file"].with_suffix(".open_set.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for without in ({"threshold": float("-inf")}, {"calibration": False}):
        score_utterances(ScoreConfig(**voices.shards("mixed"), **files, **without))
        assert "unknown" not in lines_of(files).values()
        assert "open_set" not in facts_of(files)
    assert not picture.exists()


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_an_utterance_that_is_unknown_keeps_its_best_speakers_and_scores(calibrated, files, tmp_path, ending):
    path = tmp_path / f"scores{ending}"
    flags = calibrated.shards("test")
    ratios = score_utterances(ScoreConfig(**flags, **files)).decisions.ratios
    threshold = float(np.median(ratios))
    result = score_utterances(ScoreConfig(**flags, **files, top=3, threshold=threshold, scores=path))
    held = read_scores(path)
    assert held.threshold == threshold
    np.testing.assert_array_equal(held.accepted, ratios >= threshold)
    assert 0 < held.accepted.sum() < len(held.accepted)
    lines = files["log_file"].read_text().splitlines()
    for line, is_known, found, classes, means in zip(
        lines, held.accepted, result.found, held.top_classes, held.top_means, strict=True
    ):
        _, name, *best = line.split("\t")
        assert name == (result.speakers[found] if is_known else "unknown")
        assert best[::2] == [result.speakers[one] for one in classes]
        np.testing.assert_allclose([float(one) for one in best[1::2]], means, rtol=1e-5)
    score_utterances(ScoreConfig(**flags, **files, scores=path))
    assert (read_scores(path).threshold, read_scores(path).accepted) == (None, None)


def test_utterances_that_nobody_names_are_in_no_open_set_figure(calibrated, files, tmp_path):
    known, strange = calibrated.listed("test")[0], calibrated.listed("strangers")[0]
    for name, key in (("ana", known), ("ana", strange), ("nobody", strange)):
        path = tmp_path / "db" / {"ana": f"x/{key.split('/')[1]}/u.mcp", "nobody": "flat.mcp"}[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((calibrated.folder / f"mcp/{key}.mcp").read_bytes())
    keys = [f"x/{key.split('/')[1]}/u" for key in (known, strange)] + ["flat"]
    (tmp_path / "list").write_text("\n".join(keys))
    flags = {"weights_ckpt": calibrated.weights, "db_path": tmp_path / "db", "te_list_file": tmp_path / "list"}
    result = score_utterances(ScoreConfig(**flags, **files, threshold=0.0))
    assert result.true.tolist()[1:] == [-1, -1]
    figures = result.decisions.open_set
    assert (figures.false_acceptances.total, figures.false_rejections.total) == (1, 1)
    (tmp_path / "list").write_text("flat")
    result = score_utterances(ScoreConfig(**flags, **files, threshold=0.0))
    assert (result.decisions.open_set, result.decisions.reliability, result.rates) == (None, None, None)
    assert facts_of(files)["called_unknown"] in (0, 1)


def test_a_threshold_without_a_calibration_is_refused(voices, files):
    with pytest.raises(UsageError, match=r"--threshold 1\.5: the scores are not calibrated.*run spkid calibrate first"):
        score_utterances(ScoreConfig(**voices.shards("test"), **files, threshold=1.5))
    with pytest.raises(UsageError, match="--threshold nan: expected a number"):
        ScoreConfig(**voices.shards("test"), **files, threshold=float("nan"))
    assert not files["log_file"].exists()


def test_a_speaker_with_the_name_of_unknown_ones_is_refused_where_there_is_a_threshold(voices, files):
    options = voices.weights.with_name("train.opts")
    edited = json.loads(options.read_text().replace('"spk0004"', '"unknown"'))
    del edited["digest"]  # as the message says of files that were edited
    options.write_text(json.dumps(edited))
    calibrate_model(CalibrateConfig(**voices.shards("dev")))
    assert score_utterances(ScoreConfig(**voices.shards("test"), **files)).decisions is not None
    with pytest.raises(InputError, match=r"has a speaker named 'unknown'.*give --threshold=-inf"):
        score_utterances(ScoreConfig(**voices.shards("test"), **files, threshold=0.0))
    result = score_utterances(ScoreConfig(**voices.shards("test"), **files, threshold=float("-inf")))
    assert result.decisions.threshold is None


def test_a_damaged_calibration_stops_a_scoring(calibrated, files):
    path = calibrated.weights.with_name(f"{calibrated.weights.stem}.calibration.json")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"calibration\.json: the calibration: temperature is missing"):
        score_utterances(ScoreConfig(**calibrated.shards("test"), **files))
    assert not files["log_file"].exists()


def test_equal_errors_of_claims_are_those_of_calibrated_scores(calibrated, files):
    raw = score_utterances(ScoreConfig(**calibrated.shards("test"), **files, calibration=False))
    result = score_utterances(ScoreConfig(**calibrated.shards("test"), **files))
    assert result.det.equal_error[1] != raw.det.equal_error[1]
    assert result.det.equal_error[0] == pytest.approx(raw.det.equal_error[0], abs=0.1)


def test_weights_without_the_calibration_of_others_beside_them_say_so(calibrated, files, tmp_path, capsys):
    other = calibrated.weights.with_name("averaged_e1_weights.ckpt")
    shutil.copy(next((calibrated.folder / "ckpt").glob("*e0_weights.ckpt")), other)
    flags = calibrated.shards("test") | {"weights_ckpt": other}
    line = (
        f"{other}: not calibrated, but {calibrated.weights.name} is, by {calibrated.weights.stem}.calibration.json; run spkid "
        "calibrate for these weights, or score with those\n"
    )
    score_utterances(ScoreConfig(**flags, **files))
    assert line in capsys.readouterr().out
    (tmp_path / "trials").write_text(f"spk0001 {calibrated.listed('test')[0]} target\n")
    score_trials(TrialsConfig(**flags, trials=tmp_path / "trials", out=tmp_path / "out"))
    assert line in capsys.readouterr().out
    for quiet in ({"calibration": False}, {"weights_ckpt": calibrated.weights}):
        score_utterances(ScoreConfig(**(flags | quiet), **files))
        assert "not calibrated" not in capsys.readouterr().out
