"""`spkid calibrate` fits to held-out utterances, stores what it found, and refuses what can't be calibrated on."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from training import run

from shards import FmatrixSource, InputError, Layout, UsageError, Utterance, convert, make_plan
from shards.holding import FolderHold
from shards.layout import key_hash, key_sum
from spkid_dist import CalibrateConfig, ScoreConfig, calibrate_model, read_scores, score_utterances
from spkid_dist.model import build_model
from spkid_dist.scoring.calibration import log_posteriors
from spkid_dist.scoring.calibrationfile import calibration_path, read_calibration
from spkid_dist.scoring.collecting import collect_scores
from spkid_dist.scoring.reliability import reliability
from spkid_dist.trained import read_options


def stored(voices):
    return json.loads(voices.weights.with_name(f"{voices.weights.stem}.calibration.json").read_text())


def scored(flags, tmp_path):
    """The means, windows and true classes of a scoring without a calibration."""
    path = tmp_path / "raw.npz"
    score_utterances(
        ScoreConfig(**flags, scores=path, calibration=False, log_file=tmp_path / "raw.log", pictures=False)
    )
    return read_scores(path)


def test_a_calibration_is_stored_beside_the_weights_with_its_figures(voices, tmp_path, capsys):
    result = calibrate_model(CalibrateConfig(**voices.shards("dev")))
    printed = capsys.readouterr().out
    raw = scored(voices.shards("dev"), tmp_path)
    facts = stored(voices)
    assert result.path == voices.weights.with_name(f"{voices.weights.stem}.calibration.json")
    assert result.path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    found = raw.means.argmax(axis=1)
    assert (facts["utterances"], facts["wrong"]) == (len(raw.keys), int((found != raw.true).sum()))
    assert 0 < facts["wrong"] < len(raw.keys)
    for name, exponent, temperature in (
        ("before", 1.0, 1.0),
        ("after", facts["length_exponent"], facts["temperature"]),
    ):
        scores = raw.means.astype(float) * (raw.windows[:, None] ** exponent) / temperature
        expected = -log_posteriors(scores)[np.arange(len(found)), raw.true].mean()
        assert facts[name]["nll"] == pytest.approx(expected, rel=1e-6)
        assert facts[name]["expected_calibration_error"] == pytest.approx(reliability(scores, raw.true).expected_error)
        assert f"utterance NLL {expected:.4f}, expected calibration error" in printed
    assert facts["after"]["nll"] < facts["before"]["nll"]
    assert facts["cross_validated"]["nll"] > facts["after"]["nll"]
    assert (facts["threshold"], facts["open_set"]) == (None, None)
    assert (facts["bins"], facts["dataset"]) == (15, str(voices.folder / "dev"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["date"])


def test_files_and_shards_of_the_same_utterances_give_the_same_calibration(voices):
    calibrate_model(CalibrateConfig(**voices.shards("dev")))
    from_shards = stored(voices)
    calibrate_model(CalibrateConfig(**voices.files("dev")))
    from_files = stored(voices)
    assert from_files["fingerprint"] == from_shards["fingerprint"]
    assert from_files["temperature"] == pytest.approx(from_shards["temperature"], rel=1e-4)
    assert from_files["after"]["nll"] == pytest.approx(from_shards["after"]["nll"], rel=1e-5)


def test_two_processes_calibrate_as_one_does(voices):
    unknown = {"unknown": voices.folder / "strangers"}
    calibrate_model(CalibrateConfig(**voices.shards("dev"), **unknown))
    alone = stored(voices)
    done = run(voices.shards("dev") | unknown, processes=2, module=("-m", "spkid_dist", "calibrate"))
    assert done.returncode == 0, done.stderr[-3000:]
    together = stored(voices)
    for facts in (alone, together):
        facts.pop("date")
    assert together["open_set"]["false_acceptances"] == alone["open_set"]["false_acceptances"]
    for name in ("temperature", "length_exponent", "threshold"):
        assert together[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-6)
    for facts in (alone, together):
        for name in (
            "temperature",
            "length_exponent",
            "threshold",
            "before",
            "after",
            "cross_validated",
            "open_set",
            "digest",
        ):
            facts.pop(name)
    assert together == alone


def test_the_threshold_makes_errors_of_both_kinds_equally_frequent(voices, tmp_path):
    result = calibrate_model(CalibrateConfig(**voices.files("dev"), unknown=voices.folder / "cfg/strangers"))
    scale = result.fit.scale

    def ratios(flags):
        raw = scored(flags, tmp_path)
        best = np.sort(scale.scaled(raw.means.astype(float), raw.windows), axis=1)
        return best[:, -1] - np.log(np.exp(best[:, :-1]).mean(axis=1))

    known, strange = ratios(voices.shards("dev")), ratios(voices.shards("strangers"))
    rejected, accepted = (known < result.threshold).mean(), (strange >= result.threshold).mean()
    assert abs(rejected - accepted) <= max(1 / len(known), 1 / len(strange))
    facts = stored(voices)
    assert facts["threshold"] == result.threshold
    assert facts["open_set"]["false_rejections"]["rate"] == pytest.approx(rejected)
    assert facts["open_set"]["false_acceptances"]["rate"] == pytest.approx(accepted)
    assert facts["open_set"]["false_acceptances"]["total"] == len(voices.listed("strangers"))
    assert result.path.with_name(f"{voices.weights.stem}.calibration.open_set.png").exists()
    calibrate_model(CalibrateConfig(**voices.files("dev")))
    assert stored(voices)["threshold"] is None
    assert not result.path.with_name(f"{voices.weights.stem}.calibration.open_set.png").exists()


def test_strangers_of_the_same_dataset_are_named_by_a_list(voices, tmp_path):
    known = set(voices.listed("test"))
    strange = [key for key in voices.listed("mixed") if key not in known][:12]
    (tmp_path / "strange").write_text("\n".join(strange))
    lists = {"te_list_file": voices.folder / "cfg/test", "unknown": tmp_path / "strange"}
    result = calibrate_model(CalibrateConfig(**voices.shards("mixed"), **lists))
    assert result.open_set.false_acceptances.total == 12
    assert result.utterances == len(known)


def test_several_models_are_calibrated_together(voices):
    other = voices.weights.with_name("e9_weights.ckpt")
    shutil.copy(next((voices.folder / "ckpt").glob("*e0_weights.ckpt")), other)
    weights = (voices.weights, other)
    result = calibrate_model(CalibrateConfig(weights_ckpt=weights, te_shards=voices.folder / "dev"))
    assert result.path == calibration_path(weights)
    assert re.fullmatch(r"(bestval_e1|e9)_weights\+[0-9a-f]{16}\.calibration\.json", result.path.name)
    assert result.path.with_suffix(".png").name.endswith(".calibration.png")
    assert read_calibration(weights).scale == result.fit.scale
    assert read_calibration([voices.weights]) is None


def test_a_training_set_is_refused_whatever_names_it(voices):
    with pytest.raises(
        InputError,
        match=r"the model was trained on this dataset, so its confidences there are too high; .*held out.*--force",
    ):
        calibrate_model(CalibrateConfig(**voices.shards("train")))
    with pytest.raises(InputError, match=r"the model was trained on 20 of these 20 utterances"):
        calibrate_model(CalibrateConfig(**voices.files("train")))
    kept = json.loads(voices.weights.with_name("train.opts").read_text())["tr_keys"]
    assert kept == key_sum([np.array([key_hash(key) for key in voices.listed("train")], np.uint64)])
    assert not list(voices.weights.parent.glob("*calibration*"))
    forced = calibrate_model(CalibrateConfig(**voices.shards("train"), force=True))
    assert forced.path.exists()


def test_weights_that_another_process_calibrates_are_left_alone(voices):
    name = f".{voices.weights.stem}.calibration.json.held-by.json"
    with (
        FolderHold(voices.weights.parent, "", [].append, name=name),
        pytest.raises(InputError, match=r"in use by process \d+ .*or copy the weights and their train\.opts"),
    ):
        calibrate_model(CalibrateConfig(**voices.shards("dev")))
    assert not list(voices.weights.parent.glob("*.calibration.*"))


def test_weights_that_are_replaced_meanwhile_get_no_calibration(voices, monkeypatch):
    """As by a training that goes on; what was fitted is of the weights before."""

    def replace_and_collect(*arguments):
        shutil.copy(next((voices.folder / "ckpt").glob("*e0_weights.ckpt")), voices.weights)
        return collect_scores(*arguments)

    monkeypatch.setattr("spkid_dist.commands.calibrate.collect_scores", replace_and_collect)
    with pytest.raises(
        InputError, match=r"these weights were replaced while they were calibrated; calibrate them again"
    ):
        calibrate_model(CalibrateConfig(**voices.shards("dev")))
    assert not list(voices.weights.parent.glob("*.calibration.*"))


def test_part_of_a_long_list_is_enough(voices, monkeypatch, capsys):
    monkeypatch.setattr("spkid_dist.scoring.collecting.MOST_SCORES", 5 * 14)
    result = calibrate_model(CalibrateConfig(**voices.shards("dev")))
    assert result.utterances == 14  # of 40, every third
    assert "one in 3 utterances is used" in capsys.readouterr().out


def renamed(voices, name, folder):
    """A dataset of the utterances of a list whose speakers have other names than in the training."""
    utterances = [Utterance(key, f"x_{key.split('/')[1]}") for key in voices.listed(name)]
    source = FmatrixSource(voices.folder / "mcp", "mcp")
    speakers = sorted({one.speaker for one in utterances})
    convert(make_plan(utterances, speakers, source, Layout()), source, folder)
    return folder


def test_strangers_are_not_the_models_speakers_under_other_names(voices, tmp_path):
    for name, message in (
        ("train", r"the model was trained on 20 of these 20 utterances, so it knows their speakers by whatever name"),
        ("dev", r"40 of 40 utterances are among those of the model's speakers, too; --unknown takes those of other"),
    ):
        with pytest.raises(InputError, match=message):
            calibrate_model(CalibrateConfig(**voices.shards("dev"), unknown=renamed(voices, name, tmp_path / name)))
    assert not list(voices.weights.parent.glob("*calibration*"))
    calibrate_model(CalibrateConfig(**voices.shards("dev"), unknown=renamed(voices, "strangers", tmp_path / "others")))


def test_strangers_that_nobody_names_are_said_to_be_unchecked(voices, tmp_path, capsys):
    """A table named the speakers of the training, and the one that is given has no others."""
    options = voices.weights.with_name("train.opts")
    kept = read_options(options)
    kept["source"]["speaker_rule"] = {"by": "utt2spk"}
    options.write_text(json.dumps(kept))
    table = tmp_path / "utt2spk"
    table.write_text("".join(f"{key} {key.split('/')[1]}\n" for key in voices.listed("dev")))
    unknown = voices.folder / "cfg/strangers"
    calibrate_model(CalibrateConfig(**voices.files("dev"), utt2spk=table, unknown=unknown))
    count = len(voices.listed("strangers"))
    line = f"{unknown}: nobody names the speakers of {count} of {count} utterances, so nobody checked that these are"
    assert line in capsys.readouterr().out
    with pytest.raises(InputError, match=r"cfg/train: the model was trained on 20 of these 20 utterances"):
        calibrate_model(CalibrateConfig(**voices.files("dev"), utt2spk=table, unknown=voices.folder / "cfg/train"))
    # What was trained on can't be read any more.
    kept |= {"tr_shards": "gone"}
    options.write_text(json.dumps(kept))
    calibrate_model(CalibrateConfig(**voices.files("dev"), utt2spk=table, unknown=unknown))
    printed = capsys.readouterr().out
    doubt = "the training set gone can't be read any more, so nobody checked whether these utterances were trained on\n"
    assert f"\n{doubt}" in printed
    assert f"{unknown}: {doubt}" in printed


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"te_shards": None}, UsageError, r"no utterances are given: give a list of held-out ones by --te_list_file"),
        ({"unknown": "{folder}/cfg"}, InputError, r"cfg: is a folder, but no dataset \(no manifest\.json\)"),
        ({"unknown": "{folder}/cfg/none"}, InputError, r"none: can't read the utterance list"),
        ({"unknown": "{folder}/test"}, InputError, r"test: 40 of 40 utterances are of speakers that the model knows"),
        ({"unknown": "{folder}/mixed"}, InputError, r"mixed: 40 of 64 utterances are of speakers that the model knows"),
        ({"unknown": "{folder}/cfg/strangers"}, InputError, r"strangers: utterance .* is not in the dataset"),
        ({"te_shards": "{folder}/strangers"}, InputError, r"no utterance has a true speaker that the model knows"),
    ],
)
def test_what_can_not_be_calibrated_on_is_one_line(voices, flags, error, message):
    changed = {name: value and value.format(folder=voices.folder) for name, value in flags.items()}
    with pytest.raises(error, match=message):
        calibrate_model(CalibrateConfig(**(voices.shards("dev") | changed)))
    assert not list(voices.weights.parent.glob("*calibration*"))


def test_a_model_of_one_speaker_has_nothing_to_calibrate(voices, tmp_path):
    options = {"input_dim": 8, "in_frames": 3, "hsize": 4, "num_spks": 1, "speakers": ["ana"]}
    (tmp_path / "train.opts").write_text(json.dumps(options))
    torch.save(build_model(24, 4, 1).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"knows one speaker only, 'ana': .* need another one"):
        calibrate_model(CalibrateConfig(weights_ckpt=tmp_path / "w.ckpt", te_shards=voices.folder / "dev"))


def test_speakers_that_the_training_left_out_are_known_and_the_message_says_why(voices):
    options = voices.weights.with_name("train.opts")
    options.write_text(json.dumps(read_options(options) | {"tr_speakers": ["spk0000", "spk0001"]}))
    config = CalibrateConfig(**voices.shards("dev"), unknown=voices.folder / "test")
    with pytest.raises(
        InputError, match=r"speakers that the model knows; .*--tr_speakers.*train on a dataset without them"
    ):
        calibrate_model(config)
