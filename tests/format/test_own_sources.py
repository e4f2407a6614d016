"""Sources of one's own: classes that a command line names, or that an installed package registers; no file names one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training import environment

from shards import InputError, ShardDataset, UsageError, Utterance
from shards.sources.limits import UtteranceLimit
from shards.sources.own import OwnSource, is_class_name
from shards.sources.registry import check_source, kinds_of_source, source_from_description
from spkid_dist.config import ScoreConfig, ShardConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
KIND = "band_energies:BandEnergies"
LIMIT = UtteranceLimit()


def spkid(folder, *words, path=EXAMPLES):
    """Run a command in `folder`, with the modules in `path`."""
    roots = os.pathsep.join([str(EXAMPLES.parent), *([] if path is None else [str(path)])])
    done = subprocess.run(
        [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", *map(str, words)],
        env=environment() | {"PYTHONPATH": roots},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def shard_words(digits, out, *more):
    lists = ("--list", digits / "cfg/all.test", "--spk2idx", digits / "cfg/spk2idx.json")
    return (
        "shard",
        "--db_path",
        digits / "wav",
        *lists,
        "--out",
        out,
        "--shard_bytes",
        100_000,
        "--block_frames",
        300,
        *more,
    )


@pytest.mark.long
def test_a_class_that_the_command_line_names_shards_trains_and_scores(digits, tmp_path):
    done = spkid(tmp_path, *shard_words(digits, tmp_path / "te", "--source", KIND, "--workers", 2))
    assert done.returncode == 0, done.stderr
    data = ShardDataset(tmp_path / "te")
    assert data.manifest.source == {"kind": KIND, "num_bands": 20}
    assert (data.manifest.num_utterances, data.manifest.num_features, len(data.manifest.shards) > 1) == (60, 20, True)
    small = ("--epoch", 1, "--hsize", 8, "--in_frames", 5, "--batch_size", 100)
    sets = ("--tr_shards", tmp_path / "te", "--va_shards", tmp_path / "te", "--save_path", tmp_path / "ckpt")
    assert spkid(tmp_path, "train", *sets, *small, path=None).returncode == 0
    model = ("score", "--model", tmp_path / "ckpt", "--log_file", tmp_path / "r.log")
    files = (*model, "--db_path", digits / "wav", "--te_list_file", digits / "cfg/all.test")
    done = spkid(tmp_path, *files)
    assert done.returncode == 1
    assert f"it is a class outside of this program: if you have it and trust it, give --source {KIND}" in done.stderr
    assert not (tmp_path / "r.log").exists()
    assert spkid(tmp_path, *files, "--source", KIND).returncode == 0
    of_files = (tmp_path / "r.log").read_text().splitlines()
    assert spkid(tmp_path, *model, "--te_shards", tmp_path / "te", path=None).returncode == 0
    assert sorted(of_files) == sorted((tmp_path / "r.log").read_text().splitlines())
    done = spkid(tmp_path, *files, "--source", "other:Source")
    assert (done.returncode, "--source other:Source: the files of the training were of" in done.stderr) == (2, True)


def test_a_class_in_the_working_folder_is_found(digits, tmp_path):
    (tmp_path / "mine.py").write_text((EXAMPLES / "band_energies.py").read_text())
    done = spkid(tmp_path, *shard_words(digits, "te", "--source", "mine:BandEnergies", "--workers", 2), path=None)
    assert done.returncode == 0, done.stderr
    assert ShardDataset(tmp_path / "te").manifest.num_utterances == 60


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "nowhere_at_all:Source",
            r"can't be imported: ModuleNotFoundError: No module named 'nowhere_at_all'; expected MODULE",
        ),
        ("json:Source", r"can't be imported: AttributeError"),
        (
            "json:JSONDecoder",
            r"has no method from_description; expected a class with from_description, describe, where",
        ),
    ],
)
def test_what_is_no_source_is_one_line(tmp_path, kind, message):
    with pytest.raises(UsageError, match=message):
        source_from_description({"kind": kind}, tmp_path, LIMIT, kind)


def register(folder, name, target):
    """Make a folder in which an installed package registers a source."""
    (folder / "own-1.0.dist-info").mkdir()
    (folder / "own-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (folder / "own-1.0.dist-info/entry_points.txt").write_text(f"[spkid_dist.sources]\n{name} = {target}\n")


def test_a_source_that_an_installed_package_registers_is_a_kind_like_others(digits, tmp_path, monkeypatch):
    register(tmp_path, "bands", KIND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    assert kinds_of_source()[-1] == "bands"
    assert ShardConfig(source="bands", out="out").source == "bands"
    source = source_from_description({"kind": "bands", "num_bands": 7}, digits / "wav", LIMIT)
    assert source.describe() == {"kind": "bands", "num_bands": 7}
    key = (digits / "cfg/all.test").read_text().split()[0]
    assert source.load(Utterance(key, "")).shape[1] == 7


def test_what_stands_in_a_file_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for named in (None, "other:Source"):
        with pytest.raises((InputError, UsageError), match=r"evil:Source"):
            source_from_description({"kind": "evil:Source"}, tmp_path, LIMIT, named)
    assert "evil" not in sys.modules
    with pytest.raises(
        InputError, match=r"of kind 'bands', expected one of fmatrix, .*install the package that registers it"
    ):
        source_from_description({"kind": "bands"}, tmp_path, LIMIT)


class Gives:
    """A source that gives or raises what it is told."""

    def __init__(self, given):
        self.given = given

    def describe(self):
        return {"of": self.given}

    def where(self, utterance):
        return f"file {utterance.key}"

    def load(self, _utterance):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.ones((3, 2)),
            r"file k: the source m:C gives float64 of shape \(3, 2\); expected an array \(T, D\) of float32",
        ),
        (np.ones(3, np.float32), r"gives float32 of shape \(3,\)"),
        ([[1.0]], r"gives a list"),
        (ZeroDivisionError("so\nso"), r"file k: the source m:C fails: ZeroDivisionError: so\\nso; correct the file"),
        (InputError("as it is"), r"^as it is$"),
        (np.ones((9, 2), np.float32), r"9 frames"),
    ],
)
def test_a_class_that_gives_something_else_is_one_line(given, message):
    with pytest.raises(InputError, match=message):
        OwnSource("m:C", Gives(given), UtteranceLimit(8)).load(Utterance("k", ""))


def test_a_description_that_is_no_json_is_one_line():
    with pytest.raises(
        InputError, match=r"the source m:C: describe\(\) gives .*; expected a dictionary of JSON values"
    ):
        OwnSource("m:C", Gives({1, 2})).describe()


def test_names_of_classes_are_told_from_kinds():
    assert all(map(is_class_name, ("a:B", "a.b_c:D1")))
    assert not any(map(is_class_name, ("a", "a:", ":B", "a:B:C", "a/b:C", "a:B()", "a..b:C", "a b:C")))
    for kind in ("wav", "a:B()", ""):
        with pytest.raises(UsageError, match=r"expected one of fmatrix, .*, or a class of your own as MODULE:CLASS"):
            check_source(kind)
    with pytest.raises(UsageError, match=r"source"):
        ScoreConfig(weights_ckpt="w", te_shards="d", source="a:B")


def test_the_example_keeps_its_options_in_the_description():
    sys.path.append(str(EXAMPLES))
    source = source_from_description({"kind": KIND, "num_bands": 5}, Path("x"), LIMIT, KIND)
    assert json.loads(json.dumps(source.describe())) == {"kind": KIND, "num_bands": 5}


def test_a_file_of_flags_names_no_class(tmp_path):
    (tmp_path / "flags.yaml").write_text(f"source: {KIND}\nout: out\n")
    done = spkid(tmp_path, "shard", "--config", "flags.yaml")
    assert done.returncode == 2
    assert (
        f"flags.yaml: source: '{KIND}': a file may name no class, whose code would run; give it by --source"
        in done.stderr
    )
