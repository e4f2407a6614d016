"""A process sees how many CPUs other programs leave free."""

import time
from dataclasses import replace

import pytest
import torch
from training import OPTIONS

from spkid_dist.config import TrainConfig
from spkid_dist.process.freecpus import FreeCpus, go_on_with_threads, leave_cpus_to_others, whole_cpus
from spkid_dist.train import train_model


def work(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.usefixtures("shared_core")
def test_a_busy_program_is_counted_and_this_process_is_not():
    free = FreeCpus()
    work(0.5)  # half of the CPU is ours
    assert 0.2 < free.used_by_others() < 0.9


@pytest.fixture
def two_threads(monkeypatch):
    """torch computes with two threads, and nobody said so."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("shared_core", "two_threads")
def test_threads_are_no_more_than_the_free_cpus(capsys):
    leave_cpus_to_others(FreeCpus(), print)
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().out.startswith("1 of 2 threads: other programs use ")


@pytest.mark.usefixtures("shared_core", "two_threads")
def test_a_number_of_threads_that_was_given_stays(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    leave_cpus_to_others(FreeCpus(), print)
    go_on_with_threads(1, print)
    assert torch.get_num_threads() == 2
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("two_threads")
def test_a_training_goes_on_with_the_threads_that_it_had(shards, tmp_path, monkeypatch, capsys):
    config = TrainConfig(**shards, **OPTIONS | {"epoch": 1}, save_path=tmp_path / "ckpt")
    monkeypatch.setattr("spkid_dist.train.leave_cpus_to_others", lambda *_: torch.set_num_threads(1))
    train_model(config)
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("spkid_dist.train.leave_cpus_to_others", lambda *_: torch.set_num_threads(2))
    train_model(replace(config, epoch=2, resume="auto"))
    assert "continuing with 1 threads, as before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("available", "used", "free"), [(2, 0.0, 2), (2, 0.2, 2), (2, 0.3, 1), (2, 5.0, 1), (64, 10.1, 54), (1, 0.0, 1)]
)
def test_a_cpu_counts_as_free_where_others_use_a_quarter_of_it_at_most(available, used, free):
    assert whole_cpus(available, used) == free
