"""Frames and weights of any finite size: an answer that is one, or one line that names the utterance or the weights."""

import json
import warnings

import numpy as np
import pytest
import torch
from conftest import shard_folder
from trained_folders import SPEAKERS, make_training

from shards import InputError, Layout
from shards.files import write_json
from shards.sources.fmatrix import write_fmatrix
from spkid_dist import (
    CalibrateConfig,
    EmbedConfig,
    ScoreConfig,
    TrialsConfig,
    calibrate_model,
    embed_utterances,
    load_model,
    read_embeddings,
    read_scores,
    score_trials,
    score_utterances,
)
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.calibrationfile import write_calibration
from spkid_dist.scoring.trials import TrialCounts, det_curve
from spkid_dist.weights.file import save_weights

ODD = "X/eve/odd"
FMATRIX = {"kind": "fmatrix", "ext": "mcp"}
VALUES = [3.4e38, 1e30, 65504.0, 1e-45]
NORMALIZATIONS = ["none", "global", "utterance"]
COMMANDS = ["score", "trials", "calibrate", "embed", "identify"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Feature files of three speakers; that of ODD is written by each test."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    keys = [f"X/{name}/{number}" for name in SPEAKERS for number in range(4)] + [ODD]
    for key in keys:
        path = folder / "mcp" / f"{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, draw.normal(size=(20, 8)).astype(np.float32))
    (folder / "cfg").mkdir()
    (folder / "cfg/list").write_text("".join(f"{key}\n" for key in keys))
    lines = [f"{name} {key} {'target' if name in key else 'nontarget'}\n" for key in keys for name in SPEAKERS]
    (folder / "trials").write_text("".join(lines))
    write_json(folder / "cfg/spk2idx.json", {name: number for number, name in enumerate(SPEAKERS)})
    return folder


def odd_frames(value):
    """Frames (20, 8) of noise in which every second value is as large, of either sign."""
    frames = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    frames[:, ::2] = value
    frames[::3] *= -1
    return frames


def run(command, corpus, place, out, shards, pictures):
    """Do a command with warnings as errors; what it found, as numbers."""
    files = {"te_shards": shards} if shards else {"db_path": corpus / "mcp", "te_list_file": corpus / "cfg/list"}
    given = {"model": place} | files
    if command == "score":
        found = score_utterances(ScoreConfig(**given, log_file=out / "x.log", scores=out / "x.npz", pictures=pictures))
        assert set(read_scores(out / "x.npz").keys) == set(found.keys)
        return found.mean_log_probs
    if command == "trials":
        files.pop("te_list_file", None)
        return score_trials(
            TrialsConfig(trials=corpus / "trials", model=place, **files, out=out / "x.txt", pictures=pictures)
        ).scores
    if command == "calibrate":
        return np.array([calibrate_model(CalibrateConfig(**given, force=True)).fit.scale.temperature])
    if command == "embed":
        return read_embeddings(embed_utterances(EmbedConfig(**given, out=out / "x.npz"))).vectors
    answers = list(load_model(place).answers([corpus / "mcp" / f"{key}.mcp" for key in ("X/ana/0", ODD, "X/bob/1")]))
    if isinstance(answers[1], InputError):
        assert not isinstance(answers[0], InputError)
        assert not isinstance(answers[2], InputError)
        raise answers[1]
    return np.array([answer.score for answer in answers])


def answer(command, corpus, place, out, shards=None, *, pictures=False):
    """The numbers, or the message of the one line."""
    out.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return run(command, corpus, place, out, shards, pictures)
        except InputError as error:
            assert "\n" not in str(error)
            return str(error)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("value", VALUES)
def test_a_value_of_any_size_has_an_answer_or_a_line(corpus, tmp_path, normalize, value):
    write_fmatrix(corpus / "mcp" / f"{ODD}.mcp", odd_frames(value))
    place = make_training(tmp_path / "ckpt", FMATRIX, normalize=normalize)
    shard_folder(corpus, corpus / "cfg/list", tmp_path / "shards", Layout())
    for command in COMMANDS:
        found = answer(command, corpus, place, tmp_path / "out")
        from_shards = answer(command, corpus, place, tmp_path / "out", tmp_path / "shards")
        if command == "calibrate" and ("nothing can be calibrated" in str(found) or "the fit found" in str(found)):
            continue  # by random weights
        if isinstance(found, str):
            assert abs(value) > 1e15, found
            assert ODD in found
            assert "frames have values from" in found
            assert isinstance(from_shards, str)
        else:
            assert np.isfinite(found).all()
            assert np.isfinite(from_shards).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_in_files(corpus, tmp_path, value):
    write_fmatrix(corpus / "mcp" / f"{ODD}.mcp", odd_frames(value))
    place = make_training(tmp_path / "ckpt", FMATRIX)
    for command in COMMANDS:
        found = answer(command, corpus, place, tmp_path / "out")
        assert isinstance(found, str)
        assert f"{ODD}.mcp: frame 0, feature 0 is" in found


@pytest.mark.parametrize("factor", [1e30, 1e19, 1e12])
def test_weights_of_any_size_have_an_answer_or_a_line(corpus, tmp_path, factor):
    write_fmatrix(corpus / "mcp" / f"{ODD}.mcp", odd_frames(1.0))
    place = make_training(tmp_path / "ckpt", FMATRIX)
    weights = place / "bestval_e0_weights.ckpt"
    state = torch.load(weights, weights_only=True)
    for threshold in (None, 0.0):
        torch.save({name: one * factor if name.startswith("6") else one for name, one in state.items()}, weights)
        for calibrated in (False, True):
            if calibrated:
                write_calibration([weights], Scale(temperature=1e-20), threshold, {})
            for command in COMMANDS:
                found = answer(command, corpus, place, tmp_path / "out")
                assert isinstance(found, str) or not np.isnan(found).any(), found
                if command in ("score", "identify", "embed"):
                    assert not isinstance(found, str) or "too large to compute with" in found
            (place / "bestval_e0_weights.calibration.json").unlink(missing_ok=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("sealed", [True, False])
def test_weights_that_are_not_finite_are_named(corpus, tmp_path, value, sealed):
    place = make_training(tmp_path / "ckpt", FMATRIX, batch_norm=True)
    weights = place / "bestval_e0_weights.ckpt"
    state = torch.load(weights, weights_only=True)
    state["1.running_var"][3] = value
    if sealed:
        network = torch.nn.Module()
        network.state_dict = lambda: state
        save_weights(network, weights)
    else:
        torch.save(dict(state), weights)
    for command in COMMANDS:
        found = answer(command, corpus, place, tmp_path / "out")
        assert found.startswith(f"{weights}: 1.running_var is not finite in all its values")


def test_impossible_speakers_are_counted_and_a_speaker_is_found(corpus, tmp_path):
    write_fmatrix(corpus / "mcp" / f"{ODD}.mcp", odd_frames(1.0))
    place = make_training(tmp_path / "ckpt", FMATRIX)
    state = torch.load(place / "bestval_e0_weights.ckpt", weights_only=True)
    state["6.bias"][:] = torch.tensor([3e38, -3e38, -3e38])
    torch.save(dict(state), place / "bestval_e0_weights.ckpt")
    write_calibration([place / "bestval_e0_weights.ckpt"], Scale(), 0.0, {})
    found = answer("score", corpus, place, tmp_path / "out", pictures=True)
    assert (found == 0).all()
    facts = json.loads((tmp_path / "out/x.json").read_text())
    assert facts["utterance_errors"]["errors"] == 9
    assert (read_scores(tmp_path / "out/x.npz").means[:, 1:] == -np.inf).all()
    assert (read_scores(tmp_path / "out/x.npz").ratios == np.inf).all()
    for command in ("trials", "calibrate"):
        assert "finite" in answer(command, corpus, place, tmp_path / "out")
    assert answer("identify", corpus, place, tmp_path / "out").tolist() == [0, 0, 0]


def test_scores_beyond_float32_are_in_the_last_bins():
    counts = TrialCounts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts.add(np.array([[1e300, -1e300], [np.inf, -np.inf], [1e39, 0.0]]), np.array([0, 0, 1]))
        rate, threshold = det_curve(counts).equal_error
    assert counts.targets.sum() == counts.others.sum() == 3
    assert 0 < rate < 0.5
    assert not np.isnan(threshold)
