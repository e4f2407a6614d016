"""Options made in Python are of their fields' types: a path may be text, and a value of another type is one line."""

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from training import OPTIONS

from shards.errors import InputError, UsageError
from spkid_dist.commands.registry import COMMANDS
from spkid_dist.config import ExportConfig, ScoreConfig, ShardConfig, TrainConfig
from spkid_dist.train import train_model

NEEDED = {"weights_ckpt": "w.ckpt", "trials": "trials", "out": "out", "folder": "folder", "save_path": "ckpt"}
MODEL = {"model": "ckpt"}  # of a command that takes no weights
CLASSES = [options for options, _, _ in COMMANDS.values()]


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options.__name__)
def test_every_path_may_be_text(options):
    hints = get_type_hints(options)
    paths = [field.name for field in fields(options) if hints[field.name] in (Path, Path | None)]
    names = {field.name for field in fields(options)}
    needed = {name: value for name, value in NEEDED.items() if name in names}
    needed |= MODEL if "model" in names and "weights_ckpt" not in names else {}
    for name in paths:
        try:
            made = options(**needed | {name: "some/where"})
        except UsageError as error:  # that goes only with another option
            assert "expected a path" not in str(error)
            continue
        assert getattr(made, name) == Path("some/where")
        assert isinstance(getattr(made, name), Path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"save_path": 7}, "--save_path 7: expected a path"),
        ({"save_path": None}, "--save_path None: expected a path"),
        ({"batch_norm": "no"}, "--batch_norm 'no': expected True or False"),
        ({"epoch": 2.5}, "--epoch 2.5: expected a whole number"),
        ({"epoch": True}, "--epoch True: expected a whole number"),
        ({"batch_size": "1000"}, "--batch_size '1000': expected a whole number"),
        ({"lr": "0.1"}, "--lr '0.1': expected a number"),
        ({"optimizer": "adamm"}, "--optimizer 'adamm': expected one of adam, adamw, sgd"),
        ({"mixed_precision": "FP16"}, "--mixed_precision 'FP16': expected one of launcher, no, bf16, fp16"),
        ({"tr_speakers": "anna"}, "--tr_speakers 'anna': expected a list of values"),
        ({"tr_shards": 3, "va_shards": "b"}, "--tr_shards 3: expected text"),
    ],
)
def test_a_value_of_another_type_is_one_line(values, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        TrainConfig(**values)


def test_what_means_the_same_is_taken():
    made = TrainConfig(
        epoch=np.int64(3), lr=np.float32(0.5), tr_speakers=["a", "b"], tr_shards=Path("a"), va_shards="b"
    )
    assert (made.epoch, type(made.epoch), made.lr, type(made.lr)) == (3, int, 0.5, float)
    assert (made.tr_speakers, made.tr_shards) == (("a", "b"), "a")
    assert ShardConfig(out=Path("o")).out == "o"
    assert ScoreConfig(weights_ckpt="w", log_file="x.log").log_file == Path("x.log")
    assert ExportConfig(weights_ckpt="w", out="o").out == Path("o")


def test_a_training_whose_paths_are_text(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    text = {name: str(path) for name, path in shards.items()} | {"save_path": str(tmp_path / "ckpt")}
    assert train_model(TrainConfig(**OPTIONS | text | {"epoch": 1})).best_weights.exists()


def test_a_training_on_files_of_another_kind_says_where_the_flags_are(spkid, tmp_path):
    (tmp_path / "list").write_text("0_george_1\n")
    lists = (
        "--tr_list_file",
        tmp_path / "list",
        "--va_list_file",
        tmp_path / "list",
        "--spk2idx",
        tmp_path / "map.json",
    )
    code, _, error = spkid("train", "--db_path", tmp_path, *lists, "--save_path", tmp_path / "ckpt")
    assert code == 1
    assert (
        "these are flags of spkid shard: shard the files with it first, and train on --tr_shards, --va_shards" in error
    )


def test_a_home_folder_is_put_in_the_place_of_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = ShardConfig(db_path="~/mcp", list_file="~/list", out="~/out")
    assert (made.db_path, made.list_file, made.out) == (tmp_path / "mcp", tmp_path / "list", f"{tmp_path}/out")
    assert ScoreConfig(weights_ckpt=("~/a", "b")).weights_ckpt == (tmp_path / "a", Path("b"))
    assert TrainConfig(resume="~/ckpt").resume == f"{tmp_path}/ckpt"
    assert TrainConfig(tr_shards="pipe:cat ~/{name}", va_shards="~/v").va_shards == f"{tmp_path}/v"


def test_without_a_home_folder_its_sign_is_one_line(monkeypatch):
    monkeypatch.setattr(Path, "expanduser", lambda _self: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match=r"^--db_path ~/mcp: this user has no home folder"):
        ShardConfig(db_path="~/mcp", out="out")
    assert TrainConfig().cache_dir  # its default may begin with the sign, and is not looked at before it is needed


@pytest.mark.parametrize("options", CLASSES, ids=lambda options: options.__name__)
def test_a_url_is_refused_where_only_paths_are_read(options):
    hints = get_type_hints(options)
    paths = [field.name for field in fields(options) if Path in (hints[field.name], *get_args(hints[field.name]))]
    names = {field.name for field in fields(options)}
    needed = {name: value for name, value in NEEDED.items() if name in names}
    needed |= MODEL if "model" in names and "weights_ckpt" not in names else {}
    for name in paths:
        for url in ("s3://bucket/name", "https://me:secret@host/x?sig=secret"):
            with pytest.raises(
                UsageError, match=r"this is a URL, and .* takes files and folders of this machine"
            ) as error:
                options(**needed | {name: url})
            assert "secret" not in str(error.value)
            assert "--list_file" not in str(error.value)


def test_a_folder_whose_name_looks_like_a_url_is_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert ShardConfig(db_path="s3:/b", out="out").db_path == Path("s3:/b")
    assert ShardConfig(db_path="a:b", out="out").db_path == Path("a:b")
