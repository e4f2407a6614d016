"""Names that an encoding can't hold: paths that are not UTF-8, speakers on a terminal that knows ASCII alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_dataset
from training import OPTIONS, command, environment

ODD = os.fsdecode(b"caf\xe9")  # Latin-1: no UTF-8
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def run(*words, **variables):
    return subprocess.run(
        [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", *words],
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long  # in parts: the two below, and tests of names that are not UTF-8 in lists
@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {}, ASCII])
def test_the_whole_way_in_a_folder_whose_name_is_not_utf8(variables, synthetic, tmp_path):
    place = tmp_path / ODD
    place.mkdir()
    corpus = place / "corpus"
    os.symlink(synthetic, corpus)  # noqa: PTH211 - a name that Path takes too
    for name, list_name in (("tr", "all.train"), ("va", "all.test")):
        lists = ("--list", str(corpus / "cfg" / list_name), "--spk2idx", str(corpus / "cfg/spk2idx.json"))
        done = run("shard", "--db_path", str(corpus / "mcp"), *lists, "--out", str(place / name), **variables)
        assert (done.returncode, done.stderr) == (0, "")
    options = {
        "tr_shards": place / "tr",
        "va_shards": place / "va",
        "save_path": place / "ckpt",
        "epoch": 1,
        "hsize": 8,
    }
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = run("train", *words, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    saved = json.loads((place / "ckpt" / "train.opts").read_text(encoding="utf-8"))
    assert saved["save_path"] == str(place / "ckpt")
    (weights,) = (place / "ckpt").glob("*_weights.ckpt")
    scored = (
        "--weights_ckpt",
        str(weights),
        "--train_cfg",
        str(place / "ckpt/train.opts"),
        "--te_shards",
        str(place / "va"),
    )
    done = run("score", *scored, "--log_file", str(place / "results.log"), **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((place / "results.json").read_text(encoding="utf-8"))["weights_ckpt"] == str(weights)
    for name in ("info", "verify"):
        done = run(name, str(place / "tr"), **variables)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_mistake_in_such_a_folder_is_one_line(tmp_path):
    done = run("info", str(tmp_path / ODD), **ASCII)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "spkid: error: " in done.stderr
    assert r"caf\udce9" in done.stderr


@pytest.mark.long  # a name: test_the_whole_way_in_a_folder_whose_name_is_not_utf8
def test_speakers_that_the_terminal_cannot_show_are_escaped(tmp_path):
    folder = random_dataset(tmp_path)  # its speakers are ana, bß, çé
    options = OPTIONS | {"tr_shards": folder, "va_shards": folder, "save_path": tmp_path / "ckpt", "epoch": 1}
    done = subprocess.run(command(options), env=environment() | ASCII, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (weights,) = (tmp_path / "ckpt").glob("*_weights.ckpt")
    flags = (
        "--weights_ckpt",
        str(weights),
        "--train_cfg",
        str(tmp_path / "ckpt/train.opts"),
        "--te_shards",
        str(folder),
    )
    done = run("score", *flags, "--verbose", "--log_file", str(tmp_path / "results.log"), **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"B/b\xdf/\xfc001" in done.stdout
    assert "B/bß/ü001\t" in (tmp_path / "results.log").read_text(encoding="utf-8")


def test_a_folder_named_stop_is_one_line(shards, tmp_path):
    (tmp_path / "ckpt" / "STOP").mkdir(parents=True)
    options = OPTIONS | shards | {"save_path": Path(tmp_path / "ckpt"), "epoch": 1}
    done = subprocess.run(command(options), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"spkid: error: {tmp_path}/ckpt/STOP: is a folder, but a file of this name is how a training is told to stop; "
        "rename the folder\n"
    )
