"""Scoring equals the plain computation, and says what it does not know."""

import json

import numpy as np
import pytest
import torch
from test_kernels import twin_windows

from shards import InputError
from shards.sources.fmatrix import read_fmatrix
from spkid_dist.config import ScoreConfig
from spkid_dist.confusion import ratio_interval, wilson_interval, worst_pairs
from spkid_dist.model import build_model
from spkid_dist.score import score
from spkid_dist.windows import EDGE_CODES


@pytest.fixture
def model(synthetic, tmp_path):
    """A random network's weights and options, made by hand, for windows of `in_frames` under `edge`."""

    def make(in_frames, edge):
        torch.manual_seed(1)
        network = build_model(8 * in_frames, 16, 5)
        torch.save(network.state_dict(), tmp_path / "w.ckpt")
        options = {"input_dim": 8, "in_frames": in_frames, "hsize": 16, "num_spks": 5}
        options |= {"spk2idx": str(synthetic / "cfg/spk2idx.json")} | ({"edge": edge} if edge else {})
        (tmp_path / "train.opts").write_text(json.dumps(options))
        return network

    return make


@pytest.fixture
def config(synthetic, tmp_path):
    return {
        "db_path": synthetic / "mcp",
        "te_list_file": synthetic / "cfg/all.test",
        "weights_ckpt": tmp_path / "w.ckpt",
        "train_cfg": tmp_path / "train.opts",
        "log_file": tmp_path / "results.log",
    }


@pytest.mark.parametrize("edge", ["zero", "edge", "valid", None])
@pytest.mark.parametrize("batch_size", [1, 100, 10_000])
def test_the_speaker_is_the_argmax_of_summed_log_probabilities(model, config, edge, batch_size):
    network = model(7, edge)
    scores = score(ScoreConfig(**config, batch_size=batch_size))
    names = [f"spk{i:04d}" for i in range(5)]
    expected, wrong = [], []
    for key in config["te_list_file"].read_text().split():
        frames = read_fmatrix(f"{config['db_path']}/{key}.mcp")
        windows = torch.from_numpy(np.stack(twin_windows(frames, 7, EDGE_CODES[edge or "valid"])))
        with torch.no_grad():
            log_probs = network(windows)
        expected.append(f"{key}\t{names[int(log_probs.sum(dim=0).argmax())]}")
        wrong.append(int((log_probs.argmax(dim=1) != names.index(key.split("/")[1])).sum()))
    assert config["log_file"].read_text().splitlines() == expected
    assert scores.wrong_windows.tolist() == wrong


def test_an_utterance_shorter_than_the_window_gets_a_speaker(model, config):
    model(500, "valid")
    score(ScoreConfig(**config))
    assert len(config["log_file"].read_text().splitlines()) == 10


def test_utterances_of_unknown_speakers_are_left_out_of_the_rates(model, config, synthetic, tmp_path, capsys):
    model(3, "zero")
    source = synthetic / "mcp" / "SYN/spk0000/spk0000_0000.mcp"
    (tmp_path / "db/who").mkdir(parents=True)
    (tmp_path / "db/who/x.mcp").write_bytes(source.read_bytes())
    (tmp_path / "db/flat.mcp").write_bytes(source.read_bytes())
    (tmp_path / "list").write_text("who/x\nflat\n")
    score(ScoreConfig(**(config | {"db_path": tmp_path / "db", "te_list_file": tmp_path / "list"})))
    assert "no true speaker is known" in capsys.readouterr().out


def test_verbose_prints_each_speaker(model, config, capsys):
    model(3, "zero")
    score(ScoreConfig(**config, verbose=True))
    printed = capsys.readouterr().out
    assert all(line in printed for line in config["log_file"].read_text().splitlines())


def break_options(**changes):
    def change(folder):
        options = json.loads((folder / "train.opts").read_text())
        (folder / "train.opts").write_text(json.dumps(options | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "w.ckpt").unlink(), r"w\.ckpt: can't read these weights: No such file"),
        (
            lambda f: (f / "w.ckpt").write_bytes(b"PK\x03\x04 no"),
            r"w\.ckpt: not a weights file of torch, or a damaged one",
        ),
        (lambda f: torch.save([1], f / "w.ckpt"), r"w\.ckpt: holds a list, expected 0\.weight, 0\.bias"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "w.ckpt"), r"w\.ckpt: holds a, expected 0\.weight"),
        (break_options(hsize=17), r"w\.ckpt: 0\.weight is \(16, 24\), but the options make it \(17, 24\)"),
        (break_options(hsize="x"), r"train\.opts: hsize is 'x', expected a whole number"),
        (break_options(activation="step"), r"train\.opts: activation is 'step', expected one of relu, gelu"),
        (break_options(normalize=None), r"train\.opts: normalize is None, expected one of none, global, utterance"),
        (break_options(dropout=1), r"train\.opts: dropout is 1, expected a number from 0, below 1"),
        (break_options(batch_norm=True), r"w\.ckpt: holds .*, expected 0\.weight, 0\.bias, 1\.weight"),
        (break_options(num_spks=6), r"num_spks is 6, but there are 5 speaker names"),
        (lambda f: (f / "train.opts").write_text("{"), r"train\.opts:1: not JSON"),
        (lambda f: (f / "train.opts").unlink(), r"train\.opts: can't read the training options"),
    ],
)
def test_files_that_do_not_fit_are_refused(model, config, tmp_path, damage, message):
    model(3, "zero")
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        score(ScoreConfig(**config))
    assert not config["log_file"].exists()


def test_features_of_another_size_are_refused(model, config, tmp_path):
    model(3, "zero")
    break_options(input_dim=4)(tmp_path)
    torch.save(build_model(12, 16, 5).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"spk0000_0006\.mcp: 8 features per frame, but the model was trained on 4"):
        score(ScoreConfig(**config))


def test_wilson_interval_has_its_published_values():
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    published = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)]
    for errors, trials, low, high in published:
        assert wilson_interval(errors, trials) == pytest.approx((low, high), abs=5e-5)


def test_ratio_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        trials = draw.integers(50, 300, size=80)
        rates = draw.beta(2, 18, size=80)  # utterances differ, frames of one are alike
        low, high = ratio_interval(draw.binomial(trials, rates), trials)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 400 <= 0.97


def test_worst_pairs_come_first():
    true, found = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 1, 0, 1, 0, 0])
    assert worst_pairs(true, found) == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
