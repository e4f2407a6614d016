"""Flags from a file: as they would be on the command line, which comes first; what can't be is one line."""

import json
from pathlib import Path

import pytest
import torch
from training import OPTIONS

from shards.errors import InputError, UsageError
from spkid_dist.commands.registry import _parse
from spkid_dist.config import ScoreConfig, ShardConfig, TrainConfig
from spkid_dist.trained import read_options

RECIPES = Path(__file__).parents[2] / "recipes"


def parsed(tmp_path, text, *words, command="train"):
    path = tmp_path / "flags.yaml"
    path.write_text(text)
    return _parse([command, "--config", str(path), *map(str, words)])


def test_a_file_gives_flags_and_the_command_line_comes_first(tmp_path):
    found = parsed(tmp_path, "lr: 1e-2\nbatch_norm: true\nhsize: 7\ntr_speakers: [anna, ben]\n", "--hsize", 9)
    assert found == TrainConfig(lr=0.01, batch_norm=True, hsize=9, tr_speakers=("anna", "ben"))
    assert parsed(tmp_path, "tr_speakers: [anna, ben]", "--tr_speakers=carl").tr_speakers == ("carl",)


def test_a_stray_word_does_not_join_a_list_of_the_file(tmp_path):
    with pytest.raises(UsageError, match="Unrecognized options: carl"):
        parsed(tmp_path, "tr_speakers: [anna, ben]", "carl")


def test_words_that_yaml_might_take_for_truths_stay_words(tmp_path):
    assert parsed(tmp_path, "mixed_precision: no").mixed_precision == "no"
    assert parsed(tmp_path, "normalize: none\npatience: null\nbatch_norm: false") == TrainConfig()


def test_values_reach_the_flag_as_they_are_written(tmp_path):
    assert parsed(tmp_path, "tr_speakers: [0001, 010, 1_0, 1e3]").tr_speakers == ("0001", "010", "1_0", "1e3")
    assert parsed(tmp_path, 'lr: "1e-2"\nhsize: 1_000') == TrainConfig(lr=0.01, hsize=1000)
    with pytest.raises(UsageError, match=r"--timeout_minutes: .*1:30"):
        parsed(tmp_path, "timeout_minutes: 1:30")


def test_a_train_opts_gives_its_options_and_not_what_was_of_its_run(tmp_path):
    of_data = {"input_dim": 3, "num_spks": 2, "speakers": ["anna", "ben"], "training_id": "0"}
    text = json.dumps(of_data | {"lr": 0.5, "clip_grad_norm": None, "overwrite": True, "resume": "auto"})
    assert parsed(tmp_path, text) == TrainConfig(lr=0.5)
    assert parsed(tmp_path, "lr: 0.5\nresume: auto") == TrainConfig(lr=0.5, resume="auto")


def test_nested_flags_and_switches_that_are_on_by_default(tmp_path):
    found = parsed(tmp_path, "out: x\nsource: audio\nfeatures: {kind: mfcc, num_ceps: 12}", command="shard")
    assert isinstance(found, ShardConfig)
    assert (found.features.kind, found.features.num_ceps) == ("mfcc", 12)
    assert parsed(tmp_path, "out: x\nfeatures: null", command="shard") == ShardConfig(out="x")
    for twice in ("features.kind: mfcc\nfeatures: {kind: fbank}", "features: mfcc"):
        with pytest.raises(UsageError, match=r"twice|features: 'mfcc': expected flags below it"):
            parsed(tmp_path, f"out: x\n{twice}", command="shard")
    found = parsed(tmp_path, "weights_ckpt: w\npictures: false", command="score")
    assert found == ScoreConfig(weights_ckpt=Path("w"), pictures=False)
    assert parsed(tmp_path, "weights_ckpt: w\npictures: true", command="score").pictures


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 0.1", "learning_rate: no such flag of spkid train; did you mean --lr?"),
        ("lr: 0.1\nlr: 0.2", "lr stands there twice"),
        ("batch_size: 1\nbatch-size: 2", "batch_size stands there twice"),
        ("batch_norm: 1", "batch_norm: '1': expected true or false"),
        ("batch_norm: yes", "batch_norm: 'yes': expected true or false"),
        ("lr: true", "lr: True: expected NUMBER"),
        ("lr: [0.1, 0.2]", "lr: ['0.1', '0.2']: expected NUMBER"),
        ("lr: &again {lr: *again}", "expected NUMBER"),
        ("tr_speakers: []", "tr_speakers: []: expected TEXT ..."),
        ("tr_speakers: [anna, --overwrite]", "none may begin with a dash"),
        ("tr_speakers: [anna, null]", "tr_speakers: ['anna', None]: expected TEXT ..."),
        ("- lr", "holds a list, expected flags by their names"),
        ("", "holds nothing, expected flags"),
        ("lr: [", "not YAML: "),
        ("what", "holds one value, expected flags"),
    ],
)
def test_what_can_not_be_is_one_line_that_names_the_file(tmp_path, text, message):
    with pytest.raises((InputError, UsageError)) as found:
        parsed(tmp_path, text)
    assert str(found.value).startswith(f"{tmp_path}/flags.yaml: ")
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config: expected a file"),
        (["--config=a", "--config=b"], "--config is given 2 times"),
        (["--config", "/nowhere"], "/nowhere: can't read this --config file: No such file"),
        (["--config", "/"], "/: can't read this --config file: not a regular file, but a folder"),
        (["--config", "/dev/zero"], "/dev/zero: can't read this --config file: not a regular file"),
    ],
)
def test_a_config_that_is_no_file_is_one_line(words, message):
    with pytest.raises((InputError, UsageError), match=message):
        _parse(["train", *words])


def test_a_config_of_a_terabyte_of_nothing_is_not_read(tmp_path):
    with (tmp_path / "flags.yaml").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match=r"flags\.yaml: can't read this --config file: more than the 64000000 bytes"):
        _parse(["train", "--config", str(tmp_path / "flags.yaml")])


def test_a_value_of_the_wrong_type_names_the_file(tmp_path):
    with pytest.raises(UsageError) as error:
        parsed(tmp_path, "lr: fast")
    assert str(error.value) == (
        f"--lr: could not convert string to float: 'fast' (flags were read from {tmp_path}/flags.yaml, too); see spkid "
        "train --help"
    )


def test_a_training_is_repeated_bit_for_bit_by_its_train_opts(tmp_path, shards, spkid):
    flags = [f"--{name}={value}" for name, value in (OPTIONS | shards | {"epoch": 1}).items()]
    assert spkid("train", *flags, "--batch_norm", "--save_path", tmp_path / "a")[0] == 0
    assert spkid("train", "--config", tmp_path / "a/train.opts", "--save_path", tmp_path / "b")[0] == 0
    weights = [torch.load(tmp_path / name / "bestval_e0_weights.ckpt", weights_only=True) for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    options = [read_options(tmp_path / name / "train.opts") for name in "ab"]
    assert options[0] | {"save_path": str(tmp_path / "b")} == options[1]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_flags_of_a_training(path):
    assert _parse(["train", "--config", str(path)]).batch_norm
