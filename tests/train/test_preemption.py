"""A training that is told to stop saves, leaves with its exit code, and goes on where it was; ranks agree on everything."""

import os
import re
import signal
import subprocess

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training import OPTIONS, checkpoints, command, environment, result, run, signal_at, statistics

from shards import InputError
from shards.errors import EXIT_STOPPED, Stopped
from spkid_dist.config import TrainConfig
from spkid_dist.train import train_model
from spkid_dist.training.losses import FiniteGuard, weigh


@pytest.fixture
def options(shards, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return OPTIONS | shards | {"save_path": tmp_path / "ckpt", "epoch": 2}


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """A training without an interruption."""
    folder = tmp_path_factory.mktemp("straight") / "ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_model(TrainConfig(**(OPTIONS | shards | {"save_path": folder, "epoch": 2})))
    return folder


MOMENTS = {
    # what the process does when the signal arrives: where it stops
    "in the first step": (signal.SIGTERM, "open", "/tr/shard-000000.tar", "epoch 0 at window 100"),
    "in the validation": (signal.SIGUSR1, "open", "/va/shard-000000.tar", "epoch 0 at window 1782"),
    "while it writes a checkpoint": (signal.SIGTERM, "os.rename", "checkpoints/000001", "epoch 0 at window 1[01]00"),
    "while it writes weights": (signal.SIGUSR1, "os.rename", "bestval_e0", "epoch 1 at window 0"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_stops_it_and_it_goes_on_as_if_nothing_had_been(moment, options, straight):
    number, event, mark, place = MOMENTS[moment]
    before = signal.getsignal(number)
    with (
        signal_at(event, mark, number),
        pytest.raises(Stopped, match=rf"stopped by {number.name} in {place}; .*--resume auto"),
    ):
        train_model(TrainConfig(**options, checkpoint_steps=10))
    assert signal.getsignal(number) == before
    train_model(TrainConfig(**options, resume="auto"))
    assert result(options["save_path"]) == result(straight)


def test_a_signal_before_the_training_begins_ends_it_at_once(options):
    with (
        signal_at("open", "/tr/manifest.json"),
        pytest.raises(Stopped, match="stopped by SIGTERM before the training began"),
    ):
        train_model(TrainConfig(**options))
    assert not (options["save_path"] / "checkpoints").exists()


def test_a_signal_at_the_end_of_the_last_epoch_changes_nothing(options, straight):
    with signal_at("os.rename", "checkpoints/000002"):
        train_model(TrainConfig(**options))
    assert result(options["save_path"]) == result(straight)


def test_a_stop_file_stops_it_and_is_removed(options, straight):
    stop_file = options["save_path"] / "STOP"
    endless = options | {"epoch": 10_000, "patience": 10_000}
    job = subprocess.Popen(
        command(endless), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in job.stdout:
        if line.startswith("TRAINING"):
            stop_file.touch()
            break
    printed, errors = job.communicate(timeout=60)
    assert (job.returncode, errors) == (EXIT_STOPPED, "")
    assert "stopped by the file STOP in epoch" in printed.splitlines()[-1]
    assert not stop_file.exists()
    stop_file.touch()  # left from before
    train_model(TrainConfig(**(options | {"epoch": 2 + epochs_done(options["save_path"])}), resume="auto"))
    assert not stop_file.exists()
    found, expected = statistics(options["save_path"]), statistics(straight)
    assert found["tr_loss"][: len(expected["tr_loss"])] == expected["tr_loss"]


def epochs_done(folder):
    return len(list(folder.glob("*_weights.ckpt")))


def test_a_signal_to_one_rank_stops_all_and_another_number_of_ranks_goes_on(options, straight):
    endless = options | {"epoch": 10_000, "patience": 10_000, "checkpoint_steps": 5}
    job = subprocess.Popen(
        command(endless, 2), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in job.stdout:
        if line.startswith("TRAINING"):
            ranks = subprocess.run(["pgrep", "-P", f"{job.pid}"], capture_output=True, text=True, check=True)
            os.kill(int(ranks.stdout.split()[-1]), signal.SIGUSR1)
            break
    printed, errors = job.communicate(timeout=60)
    assert job.returncode == 1  # the launcher's
    assert re.search(r"exitcode +: 75", errors), errors[-3000:]
    assert "stopped by SIGUSR1 in epoch" in printed.splitlines()[-1]
    train_model(TrainConfig(**(options | {"epoch": 2 + epochs_done(options["save_path"])}), resume="auto"))
    found, expected = statistics(options["save_path"]), statistics(straight)
    for name in found:
        np.testing.assert_allclose(found[name][: len(expected[name])], expected[name], rtol=1e-4)


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 4))])
def test_any_number_of_ranks_has_the_same_loss_curve(processes, options, straight):
    done = run(options | {"accumulation": processes - 1}, processes)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = statistics(options["save_path"]), statistics(straight)
    for name in ("tr_loss", "va_loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)


@pytest.mark.long  # ragged shares: test_any_number_of_ranks_has_the_same_loss_curve
def test_batches_smaller_than_the_ranks_work(options, tmp_path):
    small = options | {"batch_size": 1, "in_frames": 60, "edge": "valid", "epoch": 1, "log_freq": 30}
    train_model(TrainConfig(**(small | {"save_path": tmp_path / "1"})))
    done = run(small | {"save_path": tmp_path / "2"}, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(statistics(tmp_path / "2")["tr_loss"], statistics(tmp_path / "1")["tr_loss"], rtol=1e-3)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(options, straight):
    train_model(TrainConfig(**options, accumulation=7))
    np.testing.assert_allclose(statistics(options["save_path"])["tr_loss"], statistics(straight)["tr_loss"], rtol=1e-4)


RANKS_DIFFER = """
import os, sys
sys.argv += ["--log_freq", "3"] if os.environ["RANK"] == "1" else []
from spkid_dist.train import main
main()
"""


@pytest.mark.long  # a rank's error for all: test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it
def test_ranks_with_other_options_are_refused_by_name(options, tmp_path):
    script = tmp_path / "differ.py"
    script.write_text(RANKS_DIFFER)
    done = run(options, 2, module=(script,))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("spkid: error")]
    assert lines == [
        "spkid: error: rank 1: --log_freq is 3, of rank 0 4; start all processes with the same options and the same data"
    ]


BAD_RANK = """
import os
import torch
from spkid_dist.dataset import WindowCursor
take, calls = WindowCursor.take, []
def bad(self, until):
    calls.append(until)
    x, y = take(self, until)
    return (x * float("inf"), y) if os.environ["RANK"] == "1" and len(calls) == 6 else (x, y)
WindowCursor.take = bad
from spkid_dist.train import main
main()
"""


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it(options, tmp_path):
    script = tmp_path / "bad.py"
    script.write_text(BAD_RANK)
    done = run(options | {"checkpoint_steps": 5}, 2, module=(script,))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("spkid: error")]
    assert len(lines) == 1
    assert "epoch 0, batch 6: the training loss is nan on rank 1; the training diverged" in lines[0]
    assert [path.name for path in checkpoints(options["save_path"])] == ["000001-epoch0"]


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_on_a_device_the_optimiser_is_told_not_to_move_without_waiting(optimizer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator, model = Accelerator(), nn.Linear(3, 2)
    model, optimiser = accelerator.prepare(model, optimizer(model.parameters(), lr=0.1, fused=True))
    guard = FiniteGuard(accelerator, model, optimiser)
    guard.waits = False
    moved = []
    for step, scale in enumerate((1.0, torch.inf, 1.0)):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimiser.zero_grad()
        loss_sum = model(torch.ones(4, 3)).square().sum() * scale
        accelerator.backward(weigh(loss_sum, 0.25))
        guard.note(loss_sum)
        guard.check(0, step)
        optimiser.step()
        moved.append(not all(map(torch.equal, before, model.parameters())))
    assert moved == [True, False, True]
    assert guard.seen() == 1
    with pytest.raises(InputError, match=r"epoch 0, batch 2: the training loss is inf on rank 0"):
        guard.fail(0, 2)
