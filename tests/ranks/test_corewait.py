"""A training notices that other programs use its cores."""

import json
import threading
import time

import pytest
from training import OPTIONS

from spkid_dist.config import TrainConfig
from spkid_dist.process import cpuwait
from spkid_dist.process.cpuwait import CoreWait
from spkid_dist.train import train_model

pytestmark = pytest.mark.skipif(cpuwait.core_wait_seconds() is None, reason="this system does not tell")


def work(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.usefixtures("shared_core")
def test_a_thread_beside_a_busy_program_says_so_once(monkeypatch):
    monkeypatch.setattr(cpuwait, "SHORTEST_SECONDS", 0.5)
    wait = CoreWait()
    assert wait.notice() is None
    work(0.6)
    assert "this process waited for a core" in wait.notice()
    work(0.6)
    assert wait.notice() is None
    assert 0.2 < wait.share <= 1


def test_a_thread_that_has_nothing_to_do_waits_for_no_core(monkeypatch):
    monkeypatch.setattr(cpuwait, "SHORTEST_SECONDS", 0.2)
    wait = CoreWait()
    threading.Event().wait(0.3)
    assert wait.notice() is None
    assert wait.share < 0.2


@pytest.mark.usefixtures("shared_core")
def test_a_training_beside_a_busy_program_says_so(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpuwait, "SHORTEST_SECONDS", 0.2)
    train_model(TrainConfig(**shards, **OPTIONS | {"epoch": 20, "patience": 20}, save_path=tmp_path / "ckpt"))
    assert capsys.readouterr().out.count("other programs use the cores") == 1
    assert json.loads((tmp_path / "ckpt/summary.json").read_text())["run_core_wait_share"] > 0.2
