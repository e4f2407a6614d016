"""Scorings that keep scores: those of the network, the same by one process and by many, and nothing of a failed one."""

import json
import resource

import numpy as np
import pytest
import torch
from test_score import break_options, config, model, shards  # noqa: F401 - fixtures
from training import run
from twins import twin_windows

from shards.errors import InputError, UsageError
from shards.sources.fmatrix import read_fmatrix
from spkid_dist import read_scores
from spkid_dist.config import ScoreConfig
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.model import build_model
from spkid_dist.score import score_utterances
from spkid_dist.scoring.trials import TrialCounts, det_curve

NAMES = [f"spk{i:04d}" for i in range(5)]


def plain_means(network, config, in_frames=7, edge="zero"):
    """Mean log-probabilities by a loop of one utterance at a time, (U, K) float64, and the windows (U,)."""
    means, windows = [], []
    for key in config["te_list_file"].read_text().split():
        frames = read_fmatrix(f"{config['db_path']}/{key}.mcp")
        with torch.no_grad():
            log_probs = network(torch.from_numpy(np.stack(twin_windows(frames, in_frames, EDGE_CODES[edge]))))
        means.append(log_probs.double().mean(dim=0).numpy())
        windows.append(len(log_probs))
    return np.array(means), np.array(windows)


@pytest.mark.parametrize("kind", [".npz", ".parquet"])
def test_scores_are_those_of_a_plain_loop(model, config, tmp_path, kind):
    means, windows = plain_means(model(7, "zero"), config)
    path = tmp_path / f"new/scores{kind}"
    result = score_utterances(ScoreConfig(**config, scores=path, pictures=False))
    found = read_scores(path)
    assert (found.keys, found.speakers) == (config["te_list_file"].read_text().split(), NAMES)
    np.testing.assert_allclose(found.means, means, rtol=1e-5)
    np.testing.assert_array_equal(found.windows, windows)
    np.testing.assert_array_equal(found.found, means.argmax(axis=1))
    np.testing.assert_array_equal(found.true, [NAMES.index(key.split("/")[1]) for key in found.keys])
    ordered = np.sort(means, axis=1)
    np.testing.assert_allclose(found.margins, ordered[:, -1] - ordered[:, -2], atol=1e-6)
    np.testing.assert_array_equal(result.margins.astype(np.float32), found.margins)
    assert result.top_classes is None
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert json.loads(config["log_file"].with_suffix(".json").read_text())["scores"] == str(path)


@pytest.mark.parametrize("top", [1, 2, 99])
def test_the_best_speakers_are_those_of_sorting_all(model, config, tmp_path, top):
    model(7, "zero")
    score_utterances(ScoreConfig(**config, scores=tmp_path / "all.npz", pictures=False))
    without = config["log_file"].read_text()
    options = config | {"log_file": tmp_path / "top.log"}
    result = score_utterances(ScoreConfig(**options, scores=tmp_path / "top.npz", top=top, pictures=False))
    whole, best = read_scores(tmp_path / "all.npz"), read_scores(tmp_path / "top.npz")
    expected = np.argsort(-whole.means, axis=1)[:, :top]
    np.testing.assert_array_equal(best.top_classes, expected)
    np.testing.assert_array_equal(best.top_means, np.take_along_axis(whole.means, expected, axis=1))
    np.testing.assert_array_equal(best.top_classes, result.top_classes)
    np.testing.assert_array_equal(best.top_means, result.top_means)
    assert best.means is None
    lines = (tmp_path / "top.log").read_text().splitlines()
    for line, short, classes, means in zip(lines, without.splitlines(), expected, best.top_means, strict=True):
        key, name, *rest = line.split("\t")
        assert f"{key}\t{name}" == short
        assert rest[::2] == [NAMES[one] for one in classes]
        np.testing.assert_allclose([float(one) for one in rest[1::2]], means, rtol=1e-5)


def test_the_results_without_top_are_the_same_bytes_with_scores(model, config, tmp_path):
    model(7, "zero")
    score_utterances(ScoreConfig(**config, pictures=False))
    before = config["log_file"].read_bytes()
    score_utterances(ScoreConfig(**config, scores=tmp_path / "x.npz", pictures=False))
    assert config["log_file"].read_bytes() == before
    assert all(line.count(b"\t") == 1 for line in before.splitlines())


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 10])
def test_two_processes_write_the_bytes_of_one(model, config, shards, tmp_path, monkeypatch, count):
    """Also where one of them has no utterance. A batch of one window each gives the same bits, however windows are dealt."""
    model(7, "valid")
    monkeypatch.chdir(tmp_path)
    keys = config["te_list_file"].read_text().split()[::-1][:count]  # not in the order of the shards
    (tmp_path / "list").write_text("\n".join(keys))
    options = config | {"te_shards": shards, "te_list_file": tmp_path / "list", "batch_size": 1, "scores": "one.npz"}
    score_utterances(ScoreConfig(**options | {"pictures": False}))
    options |= {"scores": "two.npz", "log_file": "two.log", "top": 3} if count == 1 else {"scores": "two.npz"}
    done = run(options, processes=2, module=("-m", "spkid_dist.score", "--no-pictures"))
    assert done.returncode == 0, done.stderr[-3000:]
    if count == 1:
        one, two = read_scores("one.npz"), read_scores("two.npz")
        np.testing.assert_array_equal(two.top_means, -np.sort(-one.means, axis=1)[:, :3])
        assert (tmp_path / "two.log").read_text().startswith(config["log_file"].read_text().rstrip("\n"))
    else:
        assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_the_equal_error_rate_is_that_of_log_likelihood_ratios(model, config, capsys):
    means, _ = plain_means(model(7, "zero"), config)
    result = score_utterances(ScoreConfig(**config, pictures=False))
    rivals = [[np.log(np.exp(np.delete(row, k)).mean()) for k in range(5)] for row in means]
    ratios = means - np.array(rivals)
    counts = TrialCounts()
    counts.add(ratios, result.true)
    expected, threshold = det_curve(counts).equal_error
    facts = json.loads(config["log_file"].with_suffix(".json").read_text())["claimed_speakers"]
    assert facts["equal_error_rate"] == pytest.approx(expected)
    assert facts["threshold"] == pytest.approx(threshold, abs=1e-3)
    assert facts["score"] == "log_likelihood_ratio"
    assert f"{expected:.2%} at a log-likelihood ratio of {facts['threshold']:.3f}" in capsys.readouterr().out


def test_one_speaker_has_no_rivals_and_no_equal_error_rate(config, tmp_path):
    torch.save(build_model(24, 16, 1).state_dict(), tmp_path / "w.ckpt")
    options = {"input_dim": 8, "in_frames": 3, "hsize": 16, "num_spks": 1, "speakers": ["spk0000"]}
    (tmp_path / "train.opts").write_text(json.dumps(options))
    result = score_utterances(ScoreConfig(**config, scores=tmp_path / "x.npz", top=2, pictures=False))
    assert result.det is None
    assert "claimed_speakers" not in json.loads(config["log_file"].with_suffix(".json").read_text())
    assert (read_scores(tmp_path / "x.npz").margins == np.inf).all()
    assert config["log_file"].read_text().splitlines()[0].count("\t") == 3


def test_a_network_whose_outputs_are_no_numbers_is_refused(model, config, tmp_path):
    network = model(3, "zero")
    network[0].weight.data[0, 0] = np.nan
    torch.save(network.state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"w\.ckpt: 0\.weight is not finite in all its values: .*; give others"):
        score_utterances(ScoreConfig(**config, scores=tmp_path / "x.npz"))
    assert {path.name for path in tmp_path.iterdir()} == {"w.ckpt", "train.opts"}


def test_scores_that_find_no_room_leave_the_earlier_scoring(model, config, tmp_path):
    model(3, "zero")
    options = config | {"scores": tmp_path / "x.npz", "pictures": False, "log_file": tmp_path / "out/x.log"}
    score_utterances(ScoreConfig(**options))
    before = {path: path.read_bytes() for path in (*tmp_path.glob("x*"), *tmp_path.glob("out/*"))}
    (tmp_path / "out/x.log").write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limit[1]))
    try:
        with pytest.raises(InputError, match=r"x\.npz: can't be written: File too large"):
            score_utterances(ScoreConfig(**options))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = {path: path.read_bytes() for path in (*tmp_path.glob("x*"), *tmp_path.glob("out/*"))}
    assert after == before | {tmp_path / "out/x.log": b"old"}


def test_a_place_that_can_not_be_is_refused_before_anything_is_scored(model, config, tmp_path):
    model(3, "zero")
    (tmp_path / "x.npz").mkdir()
    (tmp_path / "list").write_text("SYN/spk0000/nobody")  # which scoring would notice
    with pytest.raises(InputError, match=r"x\.npz: is a folder or a device"):
        score_utterances(ScoreConfig(**config | {"te_list_file": tmp_path / "list"}, scores=tmp_path / "x.npz"))
    assert not config["log_file"].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": "x.csv"}, r"--scores x\.csv: expected a file name that ends in \.npz or \.parquet"),
        ({"scores": "npz"}, r"--scores npz: expected a file name"),
        ({"scores": "x.npz", "log_file": "x.npz"}, r"--scores x\.npz: is the file of --log_file; give another name"),
        ({"scores": "a/../x.npz", "log_file": "x.npz"}, r"--scores a/\.\./x\.npz: is the file of --log_file"),
        ({"top": 0}, r"--top 0: expected 1 or more"),
        ({"top": 1.5}, r"--top 1\.5: expected a whole number"),
        ({"weights_ckpt": ()}, r"no model is given: give the folder of a training by --model, or a weights file by"),
        ({"model": "ckpt"}, r"--model and --weights_ckpt: each names the models another way; give one of them"),
        ({"weights_ckpt": ["a", "b", "a"]}, r"--weights_ckpt a is given twice"),
        ({"weights_ckpt": (), "model": ["a", "a"]}, r"--model a is given twice"),
        ({"weights_ckpt": [3]}, r"--weights_ckpt \[3\]: expected a path"),
    ],
)
def test_flags_that_can_not_be_are_refused(config, changes, message):
    with pytest.raises(UsageError, match=message):
        ScoreConfig(**config | changes)
