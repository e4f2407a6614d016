"""Trackers of accelerate: the real ones where they are installed, and what becomes of one that fails."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from training import OPTIONS, checkpoints, command, environment, make_shards, result, statistics

from shards import UsageError
from shards.errors import EXIT_FAILED, EXIT_STOPPED
from spkid_dist.config import TrainConfig
from spkid_dist.config.choices import Tracker
from spkid_dist.training.tracking import check_tracker, plain_options, tracker_options

TRACKERS = get_args(Tracker)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return OPTIONS | make_shards(tmp_path_factory.mktemp("corpus"))


def run_in(folder, options, processes=1, **variables):
    """Run a training in `folder`, with variables that a tracker may look at."""
    return subprocess.run(
        command(options, processes),
        env=environment() | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_every_tracker_of_accelerate_is_an_option():
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize("name", TRACKERS)
def test_what_a_tracker_is_told_is_what_its_class_takes(name, tmp_path):
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = (tmp_path,) if kind.requires_logging_directory else ()
    told = tracker_options(TrainConfig(save_path=tmp_path / "ckpt", log_with=name), 7)
    kind("spkid-dist", *place, **told)  # opens nothing
    if name not in ("tensorboard", "comet_ml", "dvclive"):
        assert "ckpt" in told.values()  # the training is known by its folder


def test_options_are_values_that_every_tracker_takes():
    told = plain_options(TrainConfig(save_path=Path("x/ckpt"), tr_speakers=("a", "b"), checkpoint_steps=None))
    assert {type(value) for value in told.values()} <= {bool, int, float, str}
    assert (told["save_path"], told["lr"], told["batch_norm"]) == ("x/ckpt", 0.001, False)
    assert "a" in told["tr_speakers"]
    assert "checkpoint_steps" not in told


@pytest.mark.parametrize("name", [name for name in TRACKERS if name != "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UsageError,
        match=rf"^--log_with {name}: {name} can't be imported \(.*\): run .*/python.* -m pip install {name}$",
    ):
        check_tracker(name)


def of_mlflow(folder):
    """Loss of validation by steps, the learning rate of the options, and the run's name, as mlflow shows them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{folder}/mlruns")
    (experiment,) = client.search_experiments(filter_string="name = 'spkid-dist'")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "validation/loss")
    values = [(metric.step, metric.value) for metric in history]
    return values, float(found.data.params["lr"]), found.info.run_name


def level_db_records(data, first):
    """The records of a log in LevelDB's format, in blocks of 32 KiB, of which `first` bytes are before `data`."""
    at, parts = 0, b""
    while at + 7 <= len(data):
        left = 32768 - (first + at) % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def of_wandb(folder):
    """The same from the file of a run without a network."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("ckpt/wandb/offline-run-*/*.wandb")
    values, rate, name = [], None, ""
    for data in level_db_records(path.read_bytes()[7:], first=7):
        record = Record.FromString(data)
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "validation/loss" in row:
            values.append((int(row["_step"]), float(row["validation/loss"])))
        name = name or record.run.display_name
        updates = [*record.config.update, *record.run.config.update]
        rate = next((float(item.value_json) for item in updates if item.key == "lr"), rate)
    return values, rate, name


def of_dvclive(folder):
    """The same from dvclive's files."""
    import yaml

    place = folder / "ckpt/dvclive"
    _, *rows = (place / "plots/metrics/validation/loss.tsv").read_text().splitlines()
    values = [(int(step), float(value)) for step, value in (row.split("\t") for row in rows)]
    return values, yaml.safe_load((place / "params.yaml").read_text())["lr"], "ckpt"


# No network, and nothing outside of the training's folder.
REAL = {
    "mlflow": (of_mlflow, {"MLFLOW_TRACKING_URI": "file:mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}),
    "wandb": (of_wandb, {"WANDB_MODE": "offline"}),
    "dvclive": (of_dvclive, {"DVCLIVE_LOGLEVEL": "ERROR", "DVC_NO_ANALYTICS": "1"}),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_tracker_gets_the_curves_and_changes_nothing(name, options, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install {name}")
    read, variables = REAL[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    seen = run_in(tmp_path, options | {"save_path": "ckpt", "log_with": name})
    assert seen.returncode == 0, seen.stderr
    assert run_in(tmp_path, options | {"save_path": "plain"}).returncode == 0
    assert result(tmp_path / "ckpt") == result(tmp_path / "plain")
    values, rate, training = read(tmp_path)
    assert [value for _, value in values] == pytest.approx(statistics(tmp_path / "ckpt")["va_loss"])
    assert [step for step, _ in values] == [18, 36, 54]  # batches of the whole training
    assert (rate, training) == (0.001, "ckpt")


STAND_IN = """
import os, signal
FAILS = os.environ["FAILS_AT"]

class Run:
    def log(self, values, step):
        if FAILS == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if FAILS == "log" and step > 10:
            raise ConnectionError("the server\\nis away")

    def finish(self):
        if FAILS == "finish":
            raise RuntimeError("not all was sent")

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

config = Config()

def init(project, name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if FAILS == "init":
        raise ValueError("no key for " + project)
    return Run()
"""


@pytest.fixture
def fails_at(tmp_path):
    """A library in the place of trackio that fails on demand; returns the variables that bring it in."""
    (tmp_path / "lib/trackio-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "lib/trackio-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 1.0\n")
    (tmp_path / "lib/trackio.py").write_text(STAND_IN)
    path = f"{tmp_path / 'lib'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return lambda call: {"PYTHONPATH": path, "FAILS_AT": call}


@pytest.mark.parametrize(
    ("call", "processes", "line"),
    [
        ("init", 1, "--log_with trackio: can't start: ValueError: no key for spkid-dist"),
        pytest.param(
            "log",
            2,
            "--log_with trackio: can't write the curves: ConnectionError: the server; train on with --resume auto",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_tracker_that_fails_ends_in_one_line(call, processes, line, options, tmp_path, fails_at):
    flags = options | {"save_path": tmp_path / "ckpt", "log_with": "trackio", "checkpoint_steps": 6}
    done = run_in(tmp_path, flags, processes, **fails_at(call))
    assert done.returncode == EXIT_FAILED
    assert [text for text in done.stderr.splitlines() if text.startswith("spkid: error")] == [f"spkid: error: {line}"]
    assert "spkid_dist/train.py" not in done.stderr  # no traceback of ours
    if call == "log":  # the training can go on without it
        assert checkpoints(tmp_path / "ckpt")
        again = run_in(tmp_path, options | {"save_path": tmp_path / "ckpt", "checkpoint_steps": 6, "resume": "auto"})
        assert again.returncode == 0, again.stderr
        assert "continuing in epoch" in again.stdout


def test_a_tracker_that_fails_at_the_end_does_not_spoil_the_training(options, tmp_path, fails_at):
    done = run_in(tmp_path, options | {"save_path": "ckpt", "log_with": "trackio", "epoch": 1}, **fails_at("finish"))
    assert (done.returncode, done.stderr) == (0, "")
    said = "--log_with trackio: can't finish its curves; the training's own files are whole: RuntimeError: not all was sent"
    assert said in done.stdout
    assert said in (tmp_path / "ckpt/train.log").read_text()
    assert json.loads((tmp_path / "ckpt/summary.json").read_text())["epochs"] == 1


def test_a_tracker_that_takes_the_signals_does_not_keep_them(options, tmp_path, fails_at):
    done = run_in(tmp_path, options | {"save_path": "ckpt", "log_with": "trackio"}, **fails_at("signal"))
    assert done.returncode == EXIT_STOPPED, done.stderr
    assert "stopped by SIGTERM in epoch" in done.stdout
