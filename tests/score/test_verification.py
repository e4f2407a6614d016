"""`spkid trials` scores claims as their definition says, whatever the scores come from, and refuses what it can't score."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from training import run

from shards import InputError, UsageError, Utterance
from shards.sources.kaldi import KaldiSource
from shards.sources.kaldiscp import ArkEntry
from spkid_dist import CalibrateConfig, ScoreConfig, TrialsConfig, calibrate_model, read_scores, score_trials
from spkid_dist import score_utterances as score
from spkid_dist.scoring.detection import detection_figures
from spkid_dist.scoring.scorefile import write_scores
from spkid_dist.scoring.scores import Scores
from spkid_dist.scoring.trialscores import _is_there


@pytest.fixture
def trials(voices, tmp_path):
    """All claims of the test utterances by two of the speakers, and half of the others, in Kaldi's form."""
    lines = []
    for key in voices.listed("test"):
        for speaker in range(0, 5, 1 + len(lines) % 2):
            true = key.split("/")[1] == f"spk{speaker:04d}"
            lines.append(f"spk{speaker:04d} {key} {'target' if true else 'nontarget'}\n")
    path = tmp_path / "trials"
    path.write_text("".join(lines[::-1]))
    return path


@pytest.fixture
def outputs(tmp_path):
    return {"out": tmp_path / "out/scores.txt", "pictures": False}


def as_voxceleb(path):
    """The same trials in VoxCeleb's form."""
    other = path.with_suffix(".vox")
    words = [line.split() for line in path.read_text().splitlines()]
    other.write_text("".join(f"{int(label == 'target')} {claim} {key}\n" for claim, key, label in words))
    return other


def expected_scores(voices, trials, tmp_path):
    """Each trial's log-likelihood ratio, by the definition, from the mean log-probabilities of a scoring."""
    config = voices.shards("test")
    path = tmp_path / "expected.npz"
    score(ScoreConfig(**config, scores=path, calibration=False, log_file=tmp_path / "expected.log", pictures=False))
    held = read_scores(path)
    expected = []
    for line in trials.read_text().splitlines():
        claim, key, _ = line.split()
        means = held.means[held.keys.index(key)].astype(float)
        claimed = held.speakers.index(claim)
        expected.append(means[claimed] - np.log(np.exp(np.delete(means, claimed)).mean()))
    return np.array(expected), path


def test_a_score_is_the_claim_against_the_mean_of_its_rivals(voices, trials, outputs, tmp_path):
    result = score_trials(TrialsConfig(trials=trials, **voices.shards("test"), **outputs))
    expected, scores_file = expected_scores(voices, trials, tmp_path)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    words = [line.split() for line in outputs["out"].read_text().splitlines()]
    claims = [line.split()[:2] for line in trials.read_text().splitlines()]
    assert [word[:2] for word in words] == claims
    np.testing.assert_allclose([float(word[2]) for word in words], result.scores, rtol=1e-7)
    for flags in (
        voices.files("test") | {"trials": trials},
        voices.shards("test") | {"trials": as_voxceleb(trials)},
        {"scores": scores_file, "trials": trials},
    ):
        flags.pop("te_list_file", None)
        other = score_trials(TrialsConfig(**flags, **outputs))
        np.testing.assert_allclose(other.scores, result.scores, atol=1e-5)
        assert other.figures.curve.equal_error[0] == pytest.approx(result.figures.curve.equal_error[0], abs=1e-3)


def test_figures_are_those_of_the_scores(voices, trials, outputs, capsys):
    result = score_trials(
        TrialsConfig(trials=trials, **voices.shards("test"), **outputs | {"pictures": True}, p_target=(0.2,))
    )
    printed = capsys.readouterr().out
    facts = json.loads(outputs["out"].with_suffix(".json").read_text())
    target = np.array([line.endswith(" target") for line in trials.read_text().splitlines()])
    figures = detection_figures(result.scores, target, [0.2], calibrated=False)
    assert facts["equal_error_rate"] == figures.curve.equal_error[0]
    assert 0 < facts["equal_error_rate"] < 0.5
    assert facts["detection_costs"][0]["minDCF"] == figures.costs[0].minimum
    assert (facts["targets"], facts["others"]) == (int(target.sum()), int((~target).sum()))
    assert (facts["calibrated"], facts["calibration"], facts["cllr"]) == (False, None, None)
    assert f"equal error rate: {figures.curve.equal_error[0]:.2%}" in printed
    assert "the scores are not calibrated, so actDCF and Cllr are left out; run spkid calibrate for them" in printed
    assert outputs["out"].with_suffix(".det.png").read_bytes().startswith(b"\x89PNG")


def test_a_calibration_beside_the_weights_is_used(voices, trials, outputs, tmp_path, capsys):
    calibration = calibrate_model(CalibrateConfig(**voices.shards("dev")))
    flags = {"trials": trials} | voices.shards("test") | outputs
    raw = score_trials(TrialsConfig(**flags, calibration=False))
    calibrated = score_trials(TrialsConfig(**flags))
    assert (raw.calibrated, calibrated.calibrated) == (False, True)
    assert raw.figures.cllr is None
    assert calibrated.figures.cllr >= calibrated.figures.min_cllr
    facts = json.loads(outputs["out"].with_suffix(".json").read_text())
    assert facts["calibration"] == str(calibration.path)
    assert f"scores are calibrated by {calibration.path}" in capsys.readouterr().out
    # A file of scores says how they are calibrated.
    scores = tmp_path / "scores.parquet"
    score(ScoreConfig(**voices.shards("test"), scores=scores, log_file=tmp_path / "s.log", pictures=False))
    from_file = score_trials(TrialsConfig(trials=trials, scores=scores, **outputs))
    np.testing.assert_allclose(from_file.scores, calibrated.scores, atol=1e-4)
    assert from_file.figures.cllr == pytest.approx(calibrated.figures.cllr, abs=1e-4)
    raw_file = score_trials(TrialsConfig(trials=trials, scores=scores, **outputs, calibration=False))
    np.testing.assert_allclose(raw_file.scores, raw.scores, atol=1e-4)
    assert (raw_file.calibrated, raw_file.figures.cllr, raw_file.figures.costs[0].actual) == (False, None, None)


def test_two_processes_score_trials_as_one_does(voices, trials, outputs, tmp_path):
    flags = {"trials": trials} | voices.shards("test")
    alone = score_trials(TrialsConfig(**flags, **outputs))
    together = tmp_path / "together.txt"
    module = ("-m", "spkid_dist", "trials", "--no_pictures")
    done = run(flags | {"out": together}, processes=2, module=module)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(line.split()[2]) for line in together.read_text().splitlines()]
    np.testing.assert_allclose(found, alone.scores, rtol=1e-5)
    facts = json.loads(together.with_suffix(".json").read_text())
    assert facts["equal_error_rate"] == pytest.approx(alone.figures.curve.equal_error[0])


@pytest.mark.parametrize(("label", "what"), [("target", "a target"), ("nontarget", "no target")])
def test_trials_of_one_class_have_scores_and_no_error_rates(voices, outputs, tmp_path, capsys, label, what):
    key = voices.listed("test")[0]
    (tmp_path / "trials").write_text(f"spk0001 {key} {label}\nspk0002 {key} {label}\n")
    outputs["out"].parent.mkdir()
    outputs["out"].with_suffix(".det.png").write_bytes(b"of an earlier list")
    flags = voices.shards("test") | outputs | {"pictures": True}
    result = score_trials(TrialsConfig(trials=tmp_path / "trials", **flags))
    assert result.figures is None
    assert f"every trial is {what}, so there are no error rates and no costs" in capsys.readouterr().out
    assert len(outputs["out"].read_text().splitlines()) == 2
    facts = json.loads(outputs["out"].with_suffix(".json").read_text())
    assert facts["targets"] + facts["others"] == 2
    assert "equal_error_rate" not in facts
    assert not outputs["out"].with_suffix(".det.png").exists()


def test_names_of_audio_files_are_found_by_their_keys(voices, trials, outputs):
    flags = voices.shards("test")
    plain = score_trials(TrialsConfig(trials=trials, **flags, **outputs))
    ended = trials.with_suffix(".wav")
    words = [line.split() for line in trials.read_text().splitlines()]
    ended.write_text("".join(f"{claim} {key}{'.wav' * (i % 2)} {t}\n" for i, (claim, key, t) in enumerate(words)))
    found = score_trials(TrialsConfig(trials=ended, **flags, **outputs))
    np.testing.assert_array_equal(found.scores, plain.scores)
    of_files = voices.files("test")
    of_files.pop("te_list_file")
    ended.write_text("".join(f"{claim} {key}.mcp {label}\n" for claim, key, label in words))
    found = score_trials(TrialsConfig(trials=ended, **of_files, **outputs))
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)


def test_only_the_utterances_of_trials_are_scored_and_each_once(voices, outputs, tmp_path, capsys):
    key, other = voices.listed("test")[:2]
    lines = [f"spk{number % 5:04d} {key if number < 9 else other} nontarget\n" for number in range(10)]
    (tmp_path / "trials").write_text("".join(lines))
    score_trials(TrialsConfig(trials=tmp_path / "trials", **voices.shards("test"), **outputs))
    printed = capsys.readouterr().out
    assert "10 trials (0 targets) of 5 claims and 2 utterances" in printed
    assert "4 of them stand in the list more than once, and are counted each time" in printed
    assert "2 utterances, 1 process(es)" in printed


@pytest.mark.parametrize("kind", ["shards", "files", "scores"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "spk0001 SYN/spk0001/none target",
            r"trials:3: utterance 'SYN/spk0001/none' is not in .*\(1 of the 3 utterances",
        ),
        (
            "spk0007 {key} target",
            r"trials:3: speaker 'spk0007' is not one of the model's speakers \(1 of the 2 claimed speakers",
        ),
        ("spk0001 SYN/spk0001/none.wav target", r"trials:3: utterance 'SYN/spk0001/none\.wav' is not in"),
    ],
)
def test_trials_of_what_is_not_known_are_one_line(voices, outputs, tmp_path, kind, line, message):
    key, other = voices.listed("test")[:2]
    path = tmp_path / "trials"
    path.write_text(f"spk0001 {key} target\nspk0001 {other} target\n" + line.format(key=key))
    flags = voices.shards("test") if kind == "shards" else voices.files("test")
    flags.pop("te_list_file", None)
    if kind == "scores":
        scores = tmp_path / "s.npz"
        score(ScoreConfig(**voices.shards("test"), scores=scores, log_file=tmp_path / "s.log", pictures=False))
        flags = {"scores": scores}
    with pytest.raises(InputError, match=message):
        score_trials(TrialsConfig(trials=path, **flags, **outputs))
    assert not outputs["out"].exists()


def test_an_utterance_outside_the_feature_folder_is_refused(voices, outputs, tmp_path):
    (tmp_path / "trials").write_text("spk0001 SYN/../x target\n")
    flags = voices.files("test")
    flags.pop("te_list_file")
    with pytest.raises(InputError, match=r"trials:1: utterance 'SYN/\.\./x' leaves the feature folder"):
        score_trials(TrialsConfig(trials=tmp_path / "trials", **flags, **outputs))


def test_the_command_ends_in_one_line_and_code_1(voices, outputs, tmp_path, spkid, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "trials").write_text("carla SYN/x/y target\n")
    flags = ("--weights_ckpt", voices.weights, "--te_shards", voices.folder / "test", "--out", outputs["out"])
    code, _, error = spkid("trials", "--trials", tmp_path / "trials", *flags, "--p_target", "0.1", "0.5")
    assert code == 1
    assert error.startswith(
        f"spkid: error: {tmp_path}/trials:1: speaker 'carla' is not one of the model's speakers (1 of the 1"
    )


def test_a_kaldi_folder_has_what_its_feats_scp_lists(tmp_path):
    source = KaldiSource(tmp_path, {"a": ArkEntry("x.ark", 0, None)})
    assert [_is_there(source, Utterance(key, "")) for key in ("a", "b")] == [True, False]


def test_scores_of_the_best_speakers_alone_can_not_serve_trials(voices, trials, outputs, tmp_path):
    scores = tmp_path / "top.npz"
    flags = voices.shards("test") | {"log_file": tmp_path / "s.log", "pictures": False}
    score(ScoreConfig(**flags, scores=scores, top=2))
    with pytest.raises(
        InputError, match=r"top\.npz: keeps the best 2 of 5 speakers, but a log-likelihood ratio takes all"
    ):
        score_trials(TrialsConfig(trials=trials, scores=scores, **outputs))


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_scores_say_whose_they_are_and_are_compared_with_a_model(voices, trials, outputs, tmp_path, ending, capsys):
    scores, log = tmp_path / f"s{ending}", {"log_file": tmp_path / "s.log", "pictures": False}
    score(ScoreConfig(**voices.shards("test"), **log, scores=scores))
    origin = read_scores(scores).origin
    assert (list(origin.weights.values()), origin.te_shards) == ([voices.weights.name], str(voices.folder / "test"))
    flags = {"trials": trials, "scores": scores} | outputs
    score_trials(TrialsConfig(**flags))
    assert (
        f"{scores}: scores by {voices.weights.name}, on the dataset {voices.folder / 'test'}\n"
        in capsys.readouterr().out
    )
    score_trials(TrialsConfig(**flags, weights_ckpt=voices.weights))
    other = next((voices.folder / "ckpt").glob("*e0_weights.ckpt"))
    with pytest.raises(
        InputError, match=r"holds scores by bestval_e1.*, but the weights in .*e0_weights\.ckpt are others"
    ):
        score_trials(TrialsConfig(**flags, weights_ckpt=other))
    write_scores(scores, replace(read_scores(scores), origin=None))
    score_trials(TrialsConfig(**flags))
    with pytest.raises(InputError, match=r"does not say which weights its scores are by"):
        score_trials(TrialsConfig(**flags, weights_ckpt=other))


def test_scores_of_one_speaker_have_no_rivals_however_many_are_kept(trials, outputs, tmp_path):
    one = np.zeros(1, np.int64)
    kept = {"top_classes": one.astype(np.int32)[:, None], "top_means": np.zeros((1, 1), np.float32)}
    scores = Scores(
        keys=["u"],
        speakers=["ana"],
        found=one,
        true=one,
        margins=np.array([np.inf], np.float32),
        windows=one + 1,
        **kept,
    )
    write_scores(tmp_path / "one.npz", scores)
    with pytest.raises(InputError, match=r"knows one speaker only, 'ana'"):
        score_trials(TrialsConfig(trials=trials, scores=tmp_path / "one.npz", **outputs))


def test_scores_that_are_no_numbers_are_refused(voices, trials, outputs, tmp_path):
    _, path = expected_scores(voices, trials, tmp_path)
    with np.load(path) as arrays:
        held = dict(arrays)
    held["scores"][:, 1] = np.nan
    np.savez(tmp_path / "nan.npz", **held)
    with pytest.raises(InputError, match=r"nan\.npz: .*the scores of utterance 'SYN/.*' are not finite"):
        score_trials(TrialsConfig(trials=trials, scores=tmp_path / "nan.npz", **outputs))
    assert not outputs["out"].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_target": (0.0,)}, r"--p_target 0\.0: expected a probability above 0 and below 1"),
        ({"p_target": (0.5, 1.0)}, r"--p_target 1\.0"),
        ({"p_target": (float("nan"),)}, r"--p_target nan"),
        ({"p_target": ()}, r"--p_target: no value is given"),
        ({"out": "x.json"}, r"--out x\.json: .*give another ending, such as \.txt"),
        ({"out": "trials"}, r"--out trials: is the file of --trials"),
        ({"weights_ckpt": (), "scores": "s.npz", "out": "s.npz"}, r"--out s\.npz: is the file of --scores"),
        ({"scores": "s.npz", "model": "m"}, r"--model and --weights_ckpt: each names the models another way"),
        ({"weights_ckpt": (), "scores": "s.npz", "te_shards": "x"}, r"--te_shards with --scores"),
        ({"weights_ckpt": ()}, r"no model is given"),
        ({"te_shards": "x", "ext": "mcp"}, r"--ext with --te_shards"),
    ],
)
def test_flags_that_can_not_be_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TrialsConfig(**({"trials": "trials", "weights_ckpt": "w.ckpt"} | changes))


def test_a_calibration_of_other_weights_is_not_used(voices, trials, outputs):
    calibrate_model(CalibrateConfig(**voices.shards("dev")))
    other = next((voices.folder / "ckpt").glob("*e0_weights.ckpt"))
    shutil.copy(other, voices.weights)
    with pytest.raises(InputError, match=r"this calibration was made for other weights.*run spkid calibrate again"):
        score_trials(TrialsConfig(trials=trials, **voices.shards("test"), **outputs))
    assert score_trials(TrialsConfig(trials=trials, **voices.shards("test"), **outputs, calibration=False)).figures
