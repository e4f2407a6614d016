"""Wrong utterances are counted in validation as scoring counts them, and epochs are compared by what is asked for."""

import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from training import OPTIONS, statistics

from shards import InputError
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model
from spkid_dist.trainedfolder import TrainStatistics
from spkid_dist.training.outputs import weights_of
from spkid_dist.training.utterances import DeviceUtterances, OpenUtterances, UtteranceTable


@pytest.fixture
def config(shards, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return TrainConfig(**OPTIONS, **shards, save_path=tmp_path / "ckpt", average="none")


def wrong_by_scoring(folder, epoch, shards):
    (path,) = folder.glob(f"*e{epoch}_weights.ckpt")
    scored = score_utterances(
        ScoreConfig(
            te_shards=str(shards["va_shards"]),
            weights_ckpt=path,
            train_cfg=folder / "train.opts",
            log_file=folder / "scored.log",
        )
    )
    return int((scored.found != scored.true).sum())


@pytest.mark.parametrize("edge", ["valid", "zero"])
@pytest.mark.parametrize("placed", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("batch_size", [7, 8192])
def test_validation_counts_the_utterances_that_scoring_finds_wrong(
    config, shards, edge, placed, batch_size, monkeypatch
):
    monkeypatch.setattr("spkid_dist.training.startup.EVALUATION_BATCH", batch_size)
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: placed)
    train_model(replace(config, edge=edge, engine="graph", lr=1e-4))
    found = statistics(config.save_path)
    assert found["va_wrong"] == [wrong_by_scoring(config.save_path, epoch, shards) for epoch in range(3)]
    assert max(found["va_wrong"]) > 0
    assert found["va_utterances"] == [10, 10, 10]


def test_where_the_device_lacks_the_memory_the_host_counts_the_same(config, monkeypatch):
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    config = replace(config, engine="graph", lr=1e-4)
    train_model(config)
    monkeypatch.setattr(DeviceUtterances, "fit", lambda *_: False)
    train_model(replace(config, save_path=config.save_path.with_name("host")))
    assert statistics(config.save_path.with_name("host")) == statistics(config.save_path)


def test_memory_is_that_of_the_utterances_whose_windows_are_still_to_come():
    table = UtteranceTable(np.full(1000, 4), np.zeros(1000, np.int64), 4 * np.arange(1, 1001))
    counted = OpenUtterances(table, 3)
    log_probs = torch.log_softmax(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    for first in range(0, 4000, 6):
        ids = torch.arange(first, min(first + 6, 4000))
        counted.add(log_probs[ids], ids)
    assert len(counted._sums) <= 8
    accelerator = Accelerator(cpu=True)
    sums = log_probs.double().reshape(1000, 4, 3).sum(dim=1)
    assert counted.read(accelerator) == int((sums.argmax(dim=1) != 0).sum())


def test_windows_in_any_order_with_short_utterances_between_count_the_same():
    draw = np.random.default_rng(1)
    windows = draw.integers(0, 5, 200)
    table = UtteranceTable(windows, draw.integers(0, 4, 200), np.cumsum(windows))
    total = int(windows.sum())
    log_probs = torch.from_numpy(draw.normal(size=(total, 4)).astype(np.float32))
    owners = np.repeat(np.arange(200), windows)
    sums = np.zeros((200, 4))
    np.add.at(sums, owners, log_probs.numpy().astype(np.float64))
    expected = int(((sums.argmax(axis=1) != table.classes) & (windows > 0)).sum())
    accelerator, order = Accelerator(cpu=True), torch.from_numpy(draw.permutation(total))
    for counted in (OpenUtterances(table, 4), DeviceUtterances(table, 4, torch.device("cpu"))):
        for _ in range(2):  # each validation starts anew
            for ids in order.split(31):
                counted.add(log_probs[ids], ids)
            assert counted.read(accelerator) == expected
    assert table.count == int((windows > 0).sum())


def test_window_ids_name_the_windows_of_each_batch(shards):
    options = {"in_frames": 5, "batch_size": 50, "num_streams": 7, "shuffle_windows": 224, "with_ids": True}
    for more in ({}, {"device": "cpu"}, {"device": "cpu", "device_memory": 0}):
        data = WindowDataset(shards["va_shards"], **options, **more)
        stored = dict(zip(*_stored(shards["va_shards"]), strict=True))
        seen = []
        for x, _ in data:
            assert torch.equal(x, torch.stack([stored[number] for number in data.window_ids.tolist()]))
            seen += data.window_ids.tolist()
        assert sorted(seen) == sorted(stored)


def _stored(folder):
    """All windows in the order of storage, with their numbers."""
    data = WindowDataset(folder, in_frames=5, batch_size=10**6, num_streams=1, shuffle=False)
    ((x, _),) = data
    return range(len(x)), x


def test_the_names_of_a_long_trainings_weights_take_no_time():
    found = TrainStatistics()
    found.tr_loss = [1.0] * 1_000_000
    for epoch in range(5000):
        found.add(SimpleNamespace(loss=1 / (1 + epoch), accuracy=0.5, wrong=3, utterances=9), None)
    began = time.perf_counter()
    assert weights_of(found)[-1] == "bestval_e4999_weights.ckpt"
    assert time.perf_counter() - began < 2  # 0.02 s; a look at all earlier epochs for each of them takes minutes


def history(best_by, *epochs):
    found = TrainStatistics(best_by=best_by)
    for loss, accuracy, wrong in epochs:
        found.add(SimpleNamespace(loss=loss, accuracy=accuracy, wrong=wrong, utterances=9), None)
    return found


def test_the_best_epoch_is_the_one_asked_for():
    epochs = [(3.0, 0.1, 9), (1.0, 0.2, 7), (2.0, 0.4, 5), (2.5, 0.4, 3), (1.5, 0.3, 3)]
    assert [history(by, *epochs).best_epoch for by in ("loss", "accuracy", "utterances")] == [1, 2, 4]
    assert not history("utterances", *epochs).is_out_of_patience(1)
    assert history("loss", *epochs).is_out_of_patience(3)


@pytest.mark.parametrize("best_by", ["accuracy", "utterances"])
def test_the_best_epoch_decides_the_file_and_the_rate(config, best_by, capsys):
    trained = train_model(replace(config, best_by=best_by, schedule="plateau", step_epochs=1, epoch=4, lr=1e-4))
    found = statistics(config.save_path)
    ranks = {
        "accuracy": list(zip([-value for value in found["va_acc"]], found["va_loss"], strict=True)),
        "utterances": list(zip(found["va_wrong"], found["va_loss"], strict=True)),
    }[best_by]
    assert trained.best_epoch == ranks.index(min(ranks))
    assert trained.best_weights.is_file()
    bests = [epoch for epoch in range(4) if ranks[epoch] < min(ranks[:epoch], default=(np.inf,))]
    names = {path.name for path in config.save_path.glob("bestval_*")}
    assert names == {f"bestval_e{epoch}_weights.ckpt" for epoch in bests}
    reductions = 4 - len(bests)
    assert capsys.readouterr().out.count("learning rate: multiplied by 0.5") == reductions


def test_one_utterance_per_speaker_is_enough_to_choose_by(config, shards):
    trained = train_model(replace(config, best_by="utterances", va_shards=shards["tr_shards"]))
    assert trained.va_wrong is not None


def test_a_training_set_without_a_good_block_is_one_line(config, shards, tmp_path):
    copy = shutil.copytree(shards["tr_shards"], tmp_path / "damaged")
    for path in copy.glob("*.tar"):
        data = bytearray(path.read_bytes())
        data[512:] = bytes(len(data) - 512)
        path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"no window of the last batches could be used, as all of their blocks are damaged"
    ):
        train_model(replace(config, tr_shards=str(copy), on_bad_block="skip"))
