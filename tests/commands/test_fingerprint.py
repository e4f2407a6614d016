"""`--fingerprint` pins the dataset that a command reads: the right one is read, another is refused in one line with both."""

from pathlib import Path

import pytest
from http_store import serve

from shards import InputError, ShardDataset, StoreOptions, UsageError
from spkid_dist.config import BenchConfig, DoctorConfig, ScoreConfig, SimulateConfig, TrainConfig
from spkid_dist.dataset import WindowDataset

OTHER = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def fingerprint(shards):
    return ShardDataset(shards["tr_shards"]).fingerprint


def refused(folder, found):
    return (
        f"spkid: error: {folder}: its fingerprint is {found}, expected {OTHER} (--fingerprint): it is another dataset"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("info", "{folder}"),
        ("verify", "{folder}"),
        ("doctor", "--shards", "{folder}", "--save_path", "{tmp}"),
        ("simulate", "--shards", "{folder}", "--device", "h100"),
    ],
    ids=lambda words: words[0],
)
def test_only_the_dataset_that_is_asked_for_is_read(spkid, shards, fingerprint, tmp_path, words):
    folder = str(shards["tr_shards"])
    words = [word.format(folder=folder, tmp=tmp_path) for word in words]
    code, _, error = spkid(*words, "--fingerprint", fingerprint.upper())
    assert (code, error) == (0, "")
    code, printed, error = spkid(*words, "--fingerprint", OTHER)
    assert code == 1
    told = error if words[0] != "doctor" else f"{printed}{error}"
    assert refused(folder, fingerprint).removeprefix("spkid: error: ") in told


def test_a_training_compares_both_sets(spkid, shards, fingerprint, tmp_path):
    validation = ShardDataset(shards["va_shards"]).fingerprint
    places = [word for name, value in shards.items() for word in (f"--{name}", value)]
    small = ("--epoch", 1, "--hsize", 4, "--in_frames", 3, "--batch_size", 512, "--save_path", tmp_path / "ckpt")
    code, _, error = spkid("train", *places, *small, "--fingerprint", OTHER)
    assert code == 1
    assert error.startswith(refused(shards["tr_shards"], fingerprint))
    code, _, error = spkid("train", *places, *small, "--fingerprint", fingerprint, OTHER)
    assert code == 1
    assert error.startswith(refused(shards["va_shards"], validation))
    code, _, error = spkid("train", *places, *small, "--fingerprint", fingerprint, validation, "--overwrite")
    assert (code, error) == (0, "")
    score = ("--model", tmp_path / "ckpt", "--te_shards", shards["va_shards"], "--fingerprint")
    out = {"score": "--log_file", "embed": "--out", "trials": "--out", "calibrate": "--unknown"}
    data = ShardDataset(shards["va_shards"])
    speaker, key = data.manifest.speakers[0], data.keys(0, data.read_block(0))[0]
    (tmp_path / "trials").write_text(f"{speaker} {key} target\n")
    more = {"trials": ("--trials", tmp_path / "trials"), "score": ("--no_pictures",)}
    for command, flag in out.items():
        code, _, error = spkid(command, *score, OTHER, flag, tmp_path / f"{command}.npz", *more.get(command, ()))
        assert code == 1
        assert error.startswith(refused(shards["va_shards"], validation)), command
    code, _, error = spkid("score", *score, validation, "--log_file", tmp_path / "out.log", "--no_pictures")
    assert (code, error) == (0, "")


def test_a_url_is_pinned_before_anything_else_is_read(shards, fingerprint):
    with serve(Path(shards["tr_shards"])) as store:
        with pytest.raises(InputError, match=rf"its fingerprint is {fingerprint}, expected {OTHER}"):
            ShardDataset(store.url, StoreOptions(fingerprint=OTHER))
        assert {name for name, _ in store.requests} == {"manifest.json"}
        data = WindowDataset(store.url, store=StoreOptions(fingerprint=fingerprint), in_frames=3)
        assert data.data.fingerprint == fingerprint
        data.close()


@pytest.mark.parametrize("text", ["", "0123", f"{OTHER}0", f"g{OTHER[1:]}"])
def test_what_is_no_fingerprint_is_used_wrongly(shards, text):
    with pytest.raises(UsageError, match="expected the 32 digits 0-9 and a-f"):
        StoreOptions(fingerprint=text)
    with pytest.raises(UsageError, match="expected the 32 digits 0-9 and a-f"):
        TrainConfig(**{name: str(path) for name, path in shards.items()}, fingerprint=(text,))


def test_a_fingerprint_goes_with_a_dataset():
    for made, flag in (
        (lambda: TrainConfig(fingerprint=(OTHER,)), "--tr_shards"),
        (lambda: ScoreConfig(fingerprint=OTHER, model=Path("ckpt")), "--te_shards"),
        (lambda: DoctorConfig(fingerprint=OTHER), "--shards"),
        (lambda: BenchConfig(fingerprint=OTHER), "--shards"),
        (lambda: SimulateConfig(fingerprint=OTHER, frames=9, utterances=3, speakers=2), "--shards"),
    ):
        with pytest.raises(UsageError, match=f"--fingerprint without {flag}"):
            made()
    with pytest.raises(UsageError, match="3 values, expected that of the training set"):
        TrainConfig(tr_shards="a", va_shards="b", fingerprint=(OTHER,) * 3)
