"""What people look at while a training runs, and after it: lines, curves, profile, summary."""

import json
import re
import sys

import pytest
import torch
from training import OPTIONS, checkpoints, result, statistics

from shards import UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.train import train_model
from spkid_dist.training.profiling import StepProfile
from spkid_dist.training.stopwatch import Stopwatch, clock

LINE = re.compile(
    r"TRAINING: (\d+)/(\d+) epoch (\d+) loss: [\d.]+ acc: [\d.]+ windows/s: [\d,]+ waiting for data: [\d.]+% "
    r"lr: (\S+) left: at most (\d+:\d\d:\d\d)"
)


@pytest.fixture(scope="module")
def options(shards):
    return OPTIONS | shards


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def curves(folder):
    """The scalars of all runs below `folder`, as TensorBoard shows them: name -> (step, value) each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_looking_at_a_training_does_not_change_it(options, tmp_path, capsys):
    train_model(TrainConfig(**options, save_path=tmp_path / "plain"))
    capsys.readouterr()
    train_model(TrainConfig(**options, save_path=tmp_path / "seen", log_with="tensorboard", profile=2))
    printed = capsys.readouterr().out
    assert result(tmp_path / "seen") == result(tmp_path / "plain")

    lines = LINE.findall(printed)
    assert len(lines) == printed.count("TRAINING:") == len(statistics(tmp_path / "seen")["tr_loss"])
    assert {line[3] for line in lines} == {"0.001"}
    assert lines[-1][4] == "0:00:00"  # nothing is left

    trace = json.loads((tmp_path / "seen/profile-rank0.json").read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e["name"].startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}
    assert "aten::addmm" in printed
    assert not torch.autograd._profiler_enabled()

    summary = json.loads((tmp_path / "seen/summary.json").read_text())
    found = statistics(tmp_path / "seen")
    assert summary["va_loss"] == found["va_loss"][summary["best_epoch"]] == min(found["va_loss"])
    assert (tmp_path / "seen" / summary["best_weights"]).exists()
    assert summary["epochs"] == 3
    assert summary["windows"] == summary["run_windows"]
    assert -(-summary["windows"] // 3 // 100) == int(lines[0][1])  # batches of 100 windows
    assert 0 < summary["run_waiting_share"] < 1
    assert min(summary[f"run_{what}_seconds"] for what in ("training", "validation", "checkpoint")) > 0
    assert f"summary: 3 epochs, {summary['windows']:,} windows" in printed


def test_curves_go_on_after_a_resume(options, tmp_path):
    options = options | {
        "save_path": tmp_path,
        "log_with": "tensorboard",
        "checkpoint_steps": 6,
        "keep_checkpoints": 99,
    }
    train_model(TrainConfig(**options))
    first = curves(tmp_path / "tensorboard")
    found = statistics(tmp_path)
    assert [value for _, value in first["training/loss"]] == pytest.approx(found["tr_loss"])
    assert [value for _, value in first["validation/accuracy"]] == pytest.approx(found["va_acc"])
    assert [value for _, value in first["averaged/loss"]] == pytest.approx(found["avg_loss"])
    assert [value for _, value in first["validation/wrong_utterances"]] == found["va_wrong"]
    validated = ("loss", "accuracy", "wrong_utterances")
    assert set(first) == {f"{of}/{name}" for of in ("validation", "averaged") for name in validated} | {
        f"training/{name}" for name in ("loss", "accuracy", "lr", "windows_per_second")
    }

    train_model(TrainConfig(**options, resume=str(min(checkpoints(tmp_path)))))
    again = curves(tmp_path / "tensorboard")
    assert [step for step, _ in again["training/loss"]] == [step for step, _ in first["training/loss"]]
    assert again["validation/loss"] == first["validation/loss"]


def test_a_missing_tracker_is_named(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UsageError, match=r"--log_with tensorboard needs it: run .*/python.* -m pip install 'tensorboard>=2.16'"
    ):
        train_model(TrainConfig(**options, save_path=tmp_path, log_with="tensorboard"))


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_profile_has_the_steps_there_are(tmp_path, steps):
    said = []
    with StepProfile(9, tmp_path / "profile.json", on_device=False, say=said.append) as profile:
        for _ in range(steps):
            torch.ones(2) @ torch.ones(2)
            profile.step()
    if steps < 4:
        assert said == ["profile: none, as the run ended within the 3 steps to warm up"]
    assert (tmp_path / "profile.json").exists() == (steps == 4)


def test_a_profile_of_no_steps_is_refused():
    with pytest.raises(UsageError, match="--profile 0: expected 1 or more"):
        TrainConfig(profile=0)


def test_an_inner_activity_interrupts_the_outer():
    watch = Stopwatch()
    with watch.during("training"):
        before = watch.seconds["training"]
        with watch.during("waiting"):
            assert watch.seconds["training"] > before
            trained = watch.seconds["training"]
            sum(range(10_000))
        assert watch.seconds["training"] == trained
        assert watch.seconds["waiting"] > 0
    assert watch.seconds["training"] > trained


def test_a_clock_counts_hours_beyond_a_day():
    assert [clock(seconds) for seconds in (0.4, 59.6, 3_661, 90_000)] == ["0:00:00", "0:01:00", "1:01:01", "25:00:00"]
