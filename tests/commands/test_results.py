"""One table of several trainings."""

import json
import os

import pytest

from shards import InputError
from shards.files import write_json
from spkid_dist.commands.results import results
from spkid_dist.config import ResultsConfig

pytestmark = pytest.mark.fast


def write_training(folder, hsize, va_loss):
    folder.mkdir(parents=True)
    write_json(folder / "train.opts", {"input_dim": 3, "in_frames": 5, "hsize": hsize, "num_spks": 2})
    if va_loss is not None:
        accuracies = [1 - loss / 10 for loss in va_loss]
        write_json(folder / "train_stats.json", {"tr_loss": [], "tr_acc": [], "va_loss": va_loss, "va_acc": accuracies})


def test_the_best_training_comes_first_and_those_without_a_result_last(tmp_path, capsys):
    write_training(tmp_path / "a", 10, [0.5, 0.25, 0.5])
    write_training(tmp_path / "b", 20, None)
    write_training(tmp_path / "c", 30, [0.125])
    results(ResultsConfig(folder=tmp_path))
    expected = [
        "training hsize in_frames epochs best_epoch va_loss va_acc va_wrong avg_wrong data ended",
        "c 30 5 1 0 0.125 0.9875 - - - -",
        "a 10 5 3 1 0.25 0.975 - - - -",
        "b 20 5 0 - - - - - - -",
    ]
    table = [line.split("\t") for line in (tmp_path / "results.tsv").read_text().splitlines()]
    assert table == [line.split() for line in expected]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert printed == table


def test_options_that_differ_and_the_data_are_shown(tmp_path, capsys):
    for name, more in (("a", {"lr": 0.1, "seed": 0, "tr_fingerprint": "0123456789"}), ("b", {"lr": 0.2, "seed": 0})):
        write_training(tmp_path / name, 10, [0.5])
        options = json.loads((tmp_path / name / "train.opts").read_text()) | more | {"save_path": name}
        write_json(tmp_path / name / "train.opts", options)
    results(ResultsConfig(folder=tmp_path, json=True))
    first, second = json.loads(capsys.readouterr().out)
    assert (first["lr"], second["lr"], first["data"], second["data"]) == (0.1, 0.2, "01234567", None)
    assert not {"seed", "save_path"} & first.keys()


def test_a_training_that_has_ended_shows_when(tmp_path):
    for name in "ab":
        write_training(tmp_path / name, 10, [0.5])
    write_json(tmp_path / "a/summary.json", {})
    os.utime(tmp_path / "a/summary.json", (0, 60))
    found = results(ResultsConfig(folder=tmp_path))
    assert {result.training: result.ended for result in found} == {"a": "1970-01-01T00:01", "b": None}


def test_a_trainings_own_folder_is_one_line_and_gets_no_file(tmp_path):
    write_training(tmp_path / "a", 10, [0.5])
    (found,) = results(ResultsConfig(folder=tmp_path / "a"))
    assert found.training == "a"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["train.opts", "train_stats.json"]


def test_an_unknown_result_goes_last_in_whatever_order_the_folders_come(tmp_path):
    losses = {"a": [None], "b": [0.5, None], "c": [None, 0.25], "d": [None], "e": [None, 0.5]}
    for name, va_loss in losses.items():
        write_training(tmp_path / name, 10, [0.0] * len(va_loss))
        path = tmp_path / name / "train_stats.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"va_loss": va_loss}))
    found = results(ResultsConfig(folder=tmp_path))
    assert [(result.training, result.best_epoch, result.va_loss) for result in found] == [
        ("c", 1, 0.25), ("b", 0, 0.5), ("e", 1, 0.5), ("a", None, None), ("d", None, None),
    ]  # fmt: skip


def test_a_folder_without_trainings_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no training below it"):
        results(ResultsConfig(folder=tmp_path))


def test_damaged_statistics_are_named(tmp_path):
    write_training(tmp_path / "a", 10, [0.5])
    (tmp_path / "a/train_stats.json").write_text('{"va_loss": [1]}')
    with pytest.raises(InputError, match=r"a/train_stats\.json: not the statistics of a training: tr_loss is missing"):
        results(ResultsConfig(folder=tmp_path))
