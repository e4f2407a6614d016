"""The command line: a user's mistake ends in one clear line and the documented exit code, and nothing half-written."""

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spkid_dist
from shards.layout import MANIFEST_NAME
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.commands.registry import COMMANDS


@pytest.fixture
def corpus(tmp_path):
    """A folder with two good feature files, a list and a speaker map."""
    (tmp_path / "cfg").mkdir()
    for index, key in enumerate(("A/anna/a", "A/bert/b")):
        path = tmp_path / "mcp" / f"{key}.mcp"
        path.parent.mkdir(parents=True)
        write_fmatrix(path, np.full((5 + index, 4), index, np.float32))
    (tmp_path / "cfg/all.train").write_text("A/anna/a\nA/bert/b\n")
    (tmp_path / "cfg/spk2idx.json").write_text('{"anna": 0, "bert": 1}')
    return tmp_path


def shard_arguments(corpus):
    return (
        "shard",
        *("--db_path", corpus / "mcp", "--list", corpus / "cfg/all.train"),
        *("--spk2idx", corpus / "cfg/spk2idx.json", "--ext", "mcp", "--out", corpus / "out"),
    )


def write(corpus, name, content):
    (corpus / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def header(frames, features):
    return struct.pack("<ii", frames, features)


A_FILE, LIST, MAP = "mcp/A/anna/a.mcp", "cfg/all.train", "cfg/spk2idx.json"
ROW = np.ones(4, "<f4").tobytes()
BAD_INPUT = {
    "missing list": (LIST, None, r"all\.train: can't read the utterance list: No such file.*give a file"),
    "missing feature file": (A_FILE, None, r"a\.mcp: can't read this feature file: No such file.*check the list"),
    "empty list": (LIST, "\n\n", r"all\.train: the utterance list is empty; give at least one"),
    "a list that is not text": (LIST, b"\xff\xfe\x00", r"all\.train: the utterance list must be UTF-8 text"),
    "no speaker component": (LIST, "alone\n", r"all\.train:1: utterance 'alone' has no component 2.*expected a line"),
    "a path that leaves the folder": (LIST, "../x/y\n", r"all\.train:1: utterance '\.\./x/y' leaves the feature folder"),
    "speaker without a class": (MAP, '{"anna": 0}', r"'bert' .*not among the 1 speakers.*add it.*--spk2idx a new file"),
    "map that is not JSON": (MAP, "{anna: 0}", r"spk2idx\.json: the speaker map: not JSON.*of speaker names"),
    "map that is a list": (MAP, '["anna"]', r"spk2idx\.json: the speaker map must be one JSON object"),
    "map with a text index": (MAP, '{"anna": "0"}', r"spk2idx\.json: the speaker map must be one JSON object"),
    "map with a gap": (MAP, '{"anna": 0, "bert": 2}', r"exactly 0\.\.1, each once; 'bert' has 2 where 1 was expected"),
    "map with a class twice": (MAP, '{"anna": 0, "bert": 0}', r"exactly 0\.\.1, each once; 'bert' has 0 where 1"),
    "empty map": (MAP, "{}", r"spk2idx\.json: the speaker map is empty; expected at least one"),
    "truncated features": (A_FILE, header(5, 4) + ROW * 4, r"a\.mcp: truncated: 72 bytes.*5 frames x 4.*make 88"),
    "too long features": (A_FILE, header(5, 4) + ROW * 6, r"a\.mcp: too long: 104 bytes.*5 frames x 4.*make 88"),
    "no header": (A_FILE, b"\x01\x02", r"a\.mcp: 2 bytes are too few for an fmatrix header of 8"),
    "empty file": (A_FILE, b"", r"a\.mcp: 0 bytes are too few"),
    "negative header": (A_FILE, header(-1, 4), r"a\.mcp: the header says -1 frames x 4 features; expected 0 or more"),
    "absurd header": (A_FILE, header(2**31 - 1, 2**31 - 1) + ROW, r"a\.mcp: truncated: 24 bytes.*2147483647 frames"),
    "other number of features": (A_FILE, header(4, 5) + ROW * 5, r"(5 features per frame, but .* has 4|4 features.*has 5)"),
    "NaN": (A_FILE, header(1, 4) + np.array([1, 2, np.nan, 4], "<f4").tobytes(), r"a\.mcp: frame 0, feature 2 is nan"),
    "infinity": (A_FILE, header(1, 4) + np.array([1, -np.inf, 3, 4], "<f4").tobytes(), r"frame 0, feature 1 is -inf"),
    "0 frames": (A_FILE, header(0, 4), r"a\.mcp: 0 frames; expected at least 1"),
    "duplicate utterance": (LIST, "A/anna/a\nA/bert/b\nA/anna/a\n", r"all\.train:3: utterance 'A/anna/a' stands on line 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_clear_line_and_no_dataset(corpus, spkid, case):
    name, content, message = BAD_INPUT[case]
    (corpus / name).unlink()
    if content is not None:
        write(corpus, name, content)
    code, _, error = spkid(*shard_arguments(corpus))
    assert code == 1
    assert error.startswith("spkid: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (corpus / "out" / MANIFEST_NAME).exists()
    assert list((corpus / "out").glob("*.tar*")) == []


def test_a_corrected_input_is_sharded_by_the_same_command(corpus, spkid):
    good = (corpus / A_FILE).read_bytes()
    write(corpus, A_FILE, good[:-1])
    assert spkid(*shard_arguments(corpus))[0] == 1
    write(corpus, A_FILE, good)
    assert spkid(*shard_arguments(corpus))[0] == 0
    assert spkid("info", corpus / "out")[0] == 0


def test_an_output_folder_with_other_things_is_refused_and_left_alone(corpus, spkid):
    (corpus / "out").mkdir()
    write(corpus, "out/thesis.tex", "years of work")
    code, _, error = spkid(*shard_arguments(corpus))
    assert (code, (corpus / "out/thesis.tex").read_text()) == (1, "years of work")
    assert "this folder holds something else; give --out a new or empty folder" in error


def test_a_folder_that_is_no_dataset_is_refused(corpus, spkid):
    code, _, error = spkid("info", corpus)
    assert code == 1
    assert "manifest.json: can't read the manifest: No such file" in error


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m | {"format_version": 1}, "format version 1, but this program reads version 2"),
        (lambda m: m | {"num_frames": 12}, "its fingerprint is"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "damaged: shards is missing"),
        (lambda _: ["spkid"], "not a manifest of this project"),
    ],
)
def test_a_changed_manifest_is_refused(corpus, spkid, damage, message):
    assert spkid(*shard_arguments(corpus))[0] == 0
    path = corpus / "out" / MANIFEST_NAME
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    code, _, error = spkid("info", corpus / "out")
    assert code == 1
    assert message in error


def test_a_missing_map_is_made_of_the_list_sorted(corpus, spkid):
    (corpus / MAP).unlink()
    assert spkid(*shard_arguments(corpus))[0] == 0
    assert json.loads((corpus / MAP).read_text()) == {"anna": 0, "bert": 1}


USAGE = {
    "unknown flag": (["train", "--batchsize", "3"], "--batchsize: no such flag of spkid train"),
    "unknown command": (["trian"], "trian"),
    "no window": (["train", "--in_frames", "0"], "--in_frames 0: a window has at least 1 frame"),
    "no batch": (["train", "--batch_size", "0"], "--batch_size 0: expected 1 or more"),
    "negative rate": (["train", "--lr", "-1"], "--lr -1.0: expected more than 0"),
    "NaN momentum": (["train", "--momentum", "nan"], "--momentum nan: expected 0 or more"),
    "half a pair": (["train", "--tr_shards", "x"], "--tr_shards and --va_shards go together"),
    "fp16 on a CPU": (["train", "--mixed_precision", "fp16"], "--mixed_precision fp16: needs a GPU"),
    "a missing flag": (["export", "--model", "x"], "--out PATH is missing: folder to create; it must be empty or"),
    "a missing value": (["identify"], "MODEL is missing: folder of the training"),
    "a flag without its value": (["train", "--epoch"], "Missing value for argument '--epoch'. Expected 1 values; see"),
    "a word for a number": (["train", "--epoch", "x"], "error: --epoch: invalid literal for int() with base 10: 'x'; see"),
    "none of the choices": (["train", "--edge", "x"], "invalid choice 'x' for argument '--edge'. Expected one of ('zero',"),
    "a word too many": (["train", "x"], "Unrecognized options: x; see spkid train --help"),
    "component 0": (["shard", "--out", "x", "--speaker_component", "0"], "--speaker_component 0: components count from 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_ends_with_code_2(spkid, case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments, message = USAGE[case]
    code, _, error = spkid(*arguments)
    assert code == 2
    assert message in error


def test_all_utterances_shorter_than_the_window_is_an_error(corpus, spkid):
    lists = ("--tr_list_file", corpus / LIST, "--va_list_file", corpus / LIST)
    code, _, error = spkid(
        *("train", "--db_path", corpus / "mcp", *lists, "--spk2idx", corpus / MAP),
        *("--edge", "valid", "--save_path", corpus / "ckpt", "--cache_dir", corpus / "cache"),
    )
    assert code == 1
    assert "no utterance has 21 frames (the longest has 6)" in error


def test_a_save_path_that_can_not_be_made_is_an_error(spkid):
    code, _, error = spkid("train", "--save_path", "/proc/ckpt")  # not even root can
    assert code == 1
    assert "/proc/ckpt: can't create this folder: No such file or directory" in error


def test_a_validation_list_with_other_speakers_is_an_error(corpus, spkid):
    write(corpus, "cfg/all.test", "A/carl/c\n")
    lists = ("--tr_list_file", corpus / LIST, "--va_list_file", corpus / "cfg/all.test")
    code, _, error = spkid("train", "--db_path", corpus / "mcp", *lists, "--spk2idx", corpus / MAP,
                        "--save_path", corpus / "ckpt", "--cache_dir", corpus / "cache")  # fmt: skip
    assert code == 1
    assert "all.test: the speaker 'carl' of utterance 'A/carl/c' is not among the 2 speakers" in error


def test_the_console_command_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "spkid_dist.train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for flag in ("--db_path", "--tr_list_file", "--in_frames", "--patience", "--momentum"):
        assert flag in done.stdout


def test_help_that_nobody_reads_to_the_end_leaves_no_traceback():
    command = [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def switches_off(options):
    """The flags of a command that turn off what is on by default, in all its groups."""
    found = []
    for field in dataclasses.fields(options):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(value):
            found += [f"{field.name}.no_{name.removeprefix('no_')}" for name in switches_off(type(value))]
        elif value is True:
            found.append(f"no_{field.name}")
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_flag_that_turns_something_off_says_so(command, spkid):
    printed = spkid(command, "--help")[1]
    flags = switches_off(COMMANDS[command][0])
    for flag in flags:
        line = re.search(rf"--{re.escape(flag)}\s+((do not|draw no|leave out|without)\b.*)", printed, re.IGNORECASE)
        assert line is not None, printed
    assert len(re.findall(r"^\W*--(?:\w+\.)?no_\w+", printed, re.M)) == len(flags)  # none is overlooked


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", marks=pytest.mark.long),
        pytest.param({"OMP_WAIT_POLICY": "ACTIVE"}, "None", marks=pytest.mark.long),
    ],
)
def test_openmp_is_told_to_spin_shortly_before_torch_is_loaded(given, spins):
    program = """
import os, sys
class Seen:
    def find_spec(self, name, *_):
        if name == "torch":
            print("spins", os.environ.get("GOMP_SPINCOUNT"), flush=True)
sys.meta_path.insert(0, Seen())
sys.argv = ["spkid", "train", "--tr_shards", "none", "--va_shards", "none", "--save_path", os.devnull]
from spkid_dist.commands.cli import main
main()
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | given, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[0] == f"spins {spins}"
    assert done.returncode == 1


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_version_is_that_of_the_package(spkid, words):
    code, printed, _ = spkid(*words)
    (declared,) = re.findall(r'^version = "(.+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text(), re.M)
    assert (code, printed) == (0, f"spkid-dist {declared}\n")
    assert spkid_dist.__version__ == declared


def test_help_on_a_command_is_that_command_s_help(spkid):
    code, printed, _ = spkid("help", "verify")
    assert (code, printed) == spkid("verify", "--help")[:2]
    assert "Compare every byte of a dataset" in printed


def test_the_package_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "spkid_dist", "version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"spkid-dist {spkid_dist.__version__}\n"
