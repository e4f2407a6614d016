"""No command writes over what it reads, by whatever path."""

from pathlib import Path

import pytest

from shards import InputError, UsageError
from shards.holding import FolderHold
from spkid_dist import CalibrateConfig, EmbedConfig, ScoreConfig, TrialsConfig, calibrate_model, embed_utterances
from spkid_dist import score_utterances as score
from spkid_dist.config.places import BESIDE_SCORES, BESIDE_TRIALS
from spkid_dist.scoring.decisionpictures import OPEN_SET
from spkid_dist.scoring.pictures import PICTURES

MODEL = {"weights_ckpt": "m/w.ckpt"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sub")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (
            TrialsConfig,
            {"trials": "list.json", "out": "list.txt"},
            "--out list.txt: beside it list.json is written, which is",
        ),
        (TrialsConfig, {"trials": "list.det.png", "out": "list.txt"}, "the file of --trials; give another name"),
        (TrialsConfig, {"trials": "link/t", "out": "sub/t"}, "--out sub/t: is the file of --trials"),
        (TrialsConfig, {"trials": "t", "spk2idx": "out.json", "out": "out.txt"}, "the file of --spk2idx"),
        (TrialsConfig, {"trials": "t", "out": "m/w.ckpt"}, "the file of --weights_ckpt"),
        (
            ScoreConfig,
            {"te_list_file": "x.json", "log_file": "x.log"},
            "x.json is written, which is the file of --te_list_file",
        ),
        (ScoreConfig, {"te_list_file": "x.lengths.png", "log_file": "x.log"}, "the file of --te_list_file"),
        (ScoreConfig, {"log_file": "spk_rec.test"}, "the file of --te_list_file"),
        (ScoreConfig, {"utt2spk": "sub/../u.npz", "scores": "u.npz"}, "--scores u.npz: is the file of --utt2spk"),
        (
            ScoreConfig,
            {"te_shards": "sub", "log_file": "link/manifest.log"},
            "manifest.json is a file of the dataset sub",
        ),
        (ScoreConfig, {"train_cfg": "a.json", "log_file": "a.log"}, "the file of --train_cfg"),
        (
            EmbedConfig,
            {"te_list_file": "x.keys", "out": "x.npy"},
            "x.keys is written, which is the file of --te_list_file",
        ),
        (
            EmbedConfig,
            {"te_list_file": "x.scp", "out": "x.ark"},
            "x.scp is written, which is the file of --te_list_file",
        ),
        (
            EmbedConfig,
            {"db_path": "sub", "out": "link/feats.ark"},
            "feats.scp is written, which is the file of --db_path",
        ),
        (EmbedConfig, {"te_shards": "sub", "out": "sub/utterances.npy"}, "utterances.npy is a file of the dataset sub"),
    ],
)
def test_an_output_that_is_an_input_is_refused(config, flags, message):
    with pytest.raises(UsageError) as error:
        config(**(MODEL | flags))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_other_names_are_free():
    TrialsConfig(**MODEL, trials="list.json", out="scores.txt")
    TrialsConfig(trials="t", scores="s.npz", out="s.txt")
    ScoreConfig(**MODEL, te_list_file="x.list", log_file="x.log", scores="x.npz")
    ScoreConfig(**MODEL, te_shards="s3://bucket/manifest", log_file="manifest.log")
    EmbedConfig(**MODEL, te_list_file="x.scp", out="x.npz")
    CalibrateConfig(**MODEL, te_list_file="x.json")


@pytest.mark.fast
def test_the_names_beside_results_are_those_of_all_pictures():
    assert set(BESIDE_SCORES) == {".json", *(f".{name}.png" for name in (*PICTURES, OPEN_SET))}
    assert set(BESIDE_TRIALS) == {".json", ".det.png"}


def test_a_calibration_does_not_replace_the_list_it_is_made_from(voices):
    place = voices.weights.with_name(f"{voices.weights.stem}.calibration.json")
    place.write_bytes((voices.folder / "cfg/dev").read_bytes())
    with pytest.raises(
        UsageError, match=r"--model .*calibration\.json: is the file of --te_list_file; give another name"
    ):
        calibrate_model(CalibrateConfig(**voices.files("dev") | {"te_list_file": place}))


@pytest.mark.parametrize("name", ["train.opts", "train_stats.log", "{stem}.ckpt", "{stem}.calibration.log"])
def test_what_a_folder_of_a_training_has_is_kept(voices, name):
    """The weights and the options that --weights_ckpt or --model leads to."""
    place = voices.weights.with_name(name.format(stem=voices.weights.stem))
    before = {path.name: path.read_bytes() for path in voices.weights.parent.iterdir()}
    flags = voices.shards("test") | {"weights_ckpt": Path("link") / voices.weights.name}
    (Path("link")).unlink()
    Path("link").symlink_to(voices.weights.parent)
    with pytest.raises(UsageError, match=r"is the file of (--weights_ckpt|the training's|the weights')"):
        score(ScoreConfig(**flags, log_file=place, pictures=False))
    assert {path.name: path.read_bytes() for path in voices.weights.parent.iterdir()} == before


def test_two_commands_do_not_write_the_same_embeddings(voices, tmp_path):
    with (
        FolderHold(tmp_path / "out", "", [].append, name=".x.npz.held-by.json"),
        pytest.raises(InputError, match=r"out: in use by process \d+ on .*give another --out"),
    ):
        embed_utterances(EmbedConfig(**voices.shards("test"), out=tmp_path / "out/x.npz"))
    embed_utterances(EmbedConfig(**voices.shards("test"), out=tmp_path / "out/x.npz"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.npz"]
