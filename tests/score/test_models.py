"""Several models make one network; what can't be averaged, or is not there, is one line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_score import config  # noqa: F401 - fixtures

from shards.errors import InputError, UsageError
from spkid_dist.config import ExportConfig, ScoreConfig
from spkid_dist.export import export_model
from spkid_dist.model import model_from_options
from spkid_dist.score import score_utterances
from spkid_dist.scoring.models import MeanLogProbs, find_models, load_models
from spkid_dist.trainedfolder import Figures, TrainStatistics

SPEAKERS = ["spk0000", "spk0001", "spk0002", "spk0003", "spk0004"]
OPTIONS = {"input_dim": 8, "in_frames": 3, "hsize": 16, "num_spks": 5, "speakers": SPEAKERS, "edge": "zero"}
AUDIO = {"kind": "audio", "ext": "wav", "features": {"kind": "mfcc", "num_ceps": 8}}


@pytest.fixture
def trained(tmp_path):
    """Write a random network and its options as a training's folder has them; returns the weights file and the network."""

    def make(folder, seed=0, name="bestval_e0_weights.ckpt", **changes):
        options = OPTIONS | changes
        torch.manual_seed(seed)
        network = model_from_options(options)
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.save(network.state_dict(), tmp_path / folder / name)
        (tmp_path / folder / "train.opts").write_text(json.dumps(options))
        statistics = TrainStatistics()
        statistics.add(Figures(loss=1.0, accuracy=0.5, wrong=None, utterances=None), None)
        statistics.save(tmp_path / folder)
        return tmp_path / folder / name, network.eval()

    return make


def test_several_models_give_the_mean_of_their_log_probabilities(trained):
    made = [trained(f"ckpt{seed}", seed, hsize=16 + seed, num_layers=1 + seed) for seed in range(3)]
    together = load_models(find_models([], [path for path, _ in made], None))
    windows = torch.randn(50, 24)
    with torch.no_grad():
        expected = torch.stack([network(windows) for _, network in made]).mean(dim=0)
        torch.testing.assert_close(together.network(windows), expected)
    assert not together.network.training
    assert (together.speakers, together.num_features, together.edge) == (SPEAKERS, 8, "zero")


def test_a_scoring_of_several_models_is_the_mean_of_their_scorings(trained, config):
    paths = [trained(f"ckpt{seed}", seed)[0] for seed in range(3)]
    options = {name: value for name, value in config.items() if name not in ("weights_ckpt", "train_cfg")}
    options |= {"top": 5, "pictures": False}
    each = [score_utterances(ScoreConfig(**options, weights_ckpt=path)) for path in paths]
    both = [
        score_utterances(ScoreConfig(**options, weights_ckpt=paths)),
        score_utterances(ScoreConfig(**options, model=[path.parent for path in paths])),
    ]
    single = [np.take_along_axis(one.top_means, one.top_classes.argsort(axis=1), axis=1) for one in each]
    expected = np.mean(single, axis=0)
    for found in both:
        np.testing.assert_array_equal(found.found, expected.argmax(axis=1))
        means = np.take_along_axis(found.top_means, found.top_classes.argsort(axis=1), axis=1)
        np.testing.assert_allclose(means, expected, rtol=1e-5)
    facts = json.loads(config["log_file"].with_suffix(".json").read_text())
    assert facts["weights_ckpt"] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speakers": SPEAKERS[::-1]},
            r"its speakers are 5 \(class 0 is 'spk0004'\), but those of .* are 5 \(class 0 is",
        ),
        (
            {"speakers": SPEAKERS[:4], "num_spks": 4},
            r"its speakers are 4, but those of .* are 5 \(class 4 is 'spk0004'\)",
        ),
        ({"in_frames": 5}, r"its frames per window \(in_frames\) are 5, but those of .* are 3"),
        ({"input_dim": 4}, r"its features per frame are 4, but those of .* are 8"),
        ({"edge": "edge"}, r"\(edge\) are edge, but those of .* are zero"),
        ({"normalize": "utterance"}, r"\(normalize\) are True, but those of .* are False"),
        (
            {"source": {"kind": "npy", "ext": "npy"}},
            r"its source files are kind npy, ext npy, but those of .* are kind fmatrix",
        ),
        ({"source": AUDIO}, r"its source files are kind audio, .*num_ceps.*, but those of .* are kind fmatrix"),
        ({"ext": "fea"}, r"its source files are ext fea, but those of .* are ext mcp"),
    ],
)
@pytest.mark.fast
def test_models_that_can_not_be_averaged_are_named_with_what_differs(trained, changes, message):
    first, other = trained("a")[0], trained("b", seed=1, **changes)[0]
    with pytest.raises(InputError, match=message) as error:
        load_models(find_models([], [first, other], None))
    assert str(error.value).startswith(f"{other}: its ")
    assert f"but those of {first} are" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_models_that_differ_in_what_lies_within_the_network_are_averaged(trained):
    paths = [
        trained("a", hsize=8, source=AUDIO)[0],
        trained("b", normalize="global", batch_norm=True, dropout=0.5, source=AUDIO | {"ext": "flac"})[0],
    ]
    assert isinstance(load_models(find_models([], paths, None)).network, MeanLogProbs)


@pytest.mark.fast
def test_a_model_that_is_given_twice_is_refused_however_it_is_named(trained, tmp_path, monkeypatch):
    path, _ = trained("mine")
    other = trained("other", seed=1)[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(path.parent)
    twice = r"is given twice(, before as mine.*)?; give each model once"
    for again in (path, tmp_path / "other/../mine" / path.name, tmp_path / "link" / path.name):
        with pytest.raises(UsageError, match=twice):
            ScoreConfig(weights_ckpt=(Path("mine") / path.name, other, again))
        with pytest.raises(UsageError, match=twice):
            ScoreConfig(model=(Path("mine"), other.parent, again.parent))
    copy = trained("copy", seed=1)[0]
    copy.write_bytes(path.read_bytes())
    with pytest.raises(
        InputError, match=r"copy/bestval_e0.* holds the same weights as .*mine/.*; give each model once"
    ):
        find_models([], [path, other, copy], None)
    assert len(find_models([], [path, other], None)) == 2


@pytest.mark.fast
def test_the_options_are_those_beside_the_weights(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, _ = trained("mine", edge="edge")
    trained("ckpt", edge="valid")
    (lone := tmp_path / "lone").mkdir()
    (lone / "w.ckpt").write_bytes(path.read_bytes())
    assert load_models(find_models([], [path], None)).edge == "edge"
    assert load_models(find_models([path.parent], [], None)).edge == "edge"
    assert load_models(find_models([], [lone / "w.ckpt"], None)).edge == "valid"  # ckpt/train.opts
    given = tmp_path / "ckpt/train.opts"
    other = trained("other", seed=1, edge="edge")[0]
    assert load_models(find_models([], [other, lone / "w.ckpt"], given)).edge == "valid"
    given.unlink()
    with pytest.raises(InputError, match=r"lone/train\.opts: can't read the training options: No such file"):
        load_models(find_models([], [lone / "w.ckpt"], None))


@pytest.mark.fast
def test_weights_that_do_not_exist_are_answered_with_those_that_do(trained, tmp_path):
    for epoch in (9, 10, 11):
        trained("ckpt", name=f"e{epoch}_weights.ckpt")
    folder = tmp_path / "ckpt"
    with pytest.raises(InputError) as error:
        find_models([], [folder / "e12_weights.ckpt"], None)
    assert str(error.value) == (
        f"{folder}/e12_weights.ckpt: can't read these weights: No such file or directory; {folder} has e11_weights.ckpt, "
        "e10_weights.ckpt, e9_weights.ckpt"
    )
    for epoch in range(9):
        trained("ckpt", name=f"e{epoch}_weights.ckpt")
    with pytest.raises(InputError, match=r"has e11_weights\.ckpt, .*, e7_weights\.ckpt and 7 more$"):
        find_models([], [folder / "e12_weights.ckpt"], None)
    for nothing in (tmp_path / "nothing.ckpt", tmp_path / "nowhere/w.ckpt"):
        with pytest.raises(InputError, match=r"No such file or directory; check --weights_ckpt$"):
            find_models([], [nothing], None)
    with pytest.raises(InputError, match=r"ckpt: is a folder, expected a weights file; .*by --model"):
        find_models([], [folder], None)
    (tmp_path / "none").mkdir()
    weights = folder / "e9_weights.ckpt"
    for place, message in (
        (tmp_path / "none", "holds no train.opts, so it is no training; give the --save_path of one"),
        (tmp_path / "ckptt", "does not exist; give the folder of a training, its --save_path"),
        (weights, f"is a file, expected the folder of a training; give {folder}, or the file by --weights_ckpt"),
        (folder / "train.opts", "is a file, expected the folder of a training; give the --save_path of one"),
    ):
        with pytest.raises(InputError) as error:
            find_models([place], [], None)
        assert str(error.value) == f"{place}: {message}"


def test_an_export_takes_the_folder_of_a_training(trained, tmp_path, spkid):
    path, _ = trained("ckpt")
    code, _, error = spkid("export", "--model", path.parent, "--out", tmp_path / "out", "--format", "safetensors")
    assert (code, error) == (0, "")
    described = json.loads((tmp_path / "out/model.json").read_text())
    assert (described["weights"], described["speakers"]) == (path.name, SPEAKERS)
    again = export_model(ExportConfig(weights_ckpt=path, out=tmp_path / "again", format="safetensors"))
    other = json.loads(again.read_text())
    for model, place in ((described, tmp_path / "out"), (other, tmp_path / "again")):
        digest = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
        assert model.pop("sha256") == {"model.safetensors": digest}  # safetensors orders its metadata as it likes
    assert other == described


@pytest.mark.fast
def test_an_export_needs_one_model():
    for given in ({}, {"model": "ckpt", "weights_ckpt": "w.ckpt"}):
        with pytest.raises(UsageError, match=r"no model is given: .*--model|--model and --weights_ckpt: .*give one"):
            ExportConfig(out="x", **given)


@pytest.mark.fast
@pytest.mark.parametrize("flag", ["model", "weights_ckpt"])
def test_an_export_of_two_models_is_refused(spkid, tmp_path, flag):
    code, _, error = spkid("export", f"--{flag}", "a", f"--{flag}", "b", "--out", tmp_path / "out")
    assert (code, error) == (
        2,
        "spkid: error: export takes one model, and a, b are given; export each into a folder of its own\n",
    )


def test_the_flags_are_repeated_on_the_command_line(trained, config, tmp_path, spkid):
    paths = [trained(f"ckpt{seed}", seed)[0] for seed in range(2)]
    flags = ["--db_path", config["db_path"], "--te_list_file", config["te_list_file"], "--no_pictures"]
    words = [word for path in paths for word in ("--weights_ckpt", path)]
    code, printed, error = spkid("score", *flags, *words, "--log_file", tmp_path / "a.log", "--top", 2)
    assert (code, error) == (0, "")
    assert f"the mean of 2 models' log-probabilities: {paths[0]}, {paths[1]}" in printed
    (tmp_path / "flags.yaml").write_text(f"model: [{paths[0].parent}, {paths[1].parent}]\ntop: 2\n")
    code, _, error = spkid("score", "--config", tmp_path / "flags.yaml", *flags, "--log_file", tmp_path / "b.log")
    assert (code, error) == (0, "")
    assert (tmp_path / "a.log").read_bytes() == (tmp_path / "b.log").read_bytes()
    code, _, error = spkid("score", *flags)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("spkid: error: no model is given")
