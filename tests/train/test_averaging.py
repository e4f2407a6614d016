"""Averaged weights are the average that they say, whatever the engine, the ranks and the interruptions, and disturb nothing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import xxhash
from training import OPTIONS, checkpoints, result, run, statistics

from shards import InputError, UsageError
from shards.files import write_json
from spkid_dist.config import ScoreConfig, TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import model_from_options
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model
from spkid_dist.trained import read_options
from spkid_dist.trainedfolder import Figures, TrainStatistics, best_weights
from spkid_dist.training import averaging, enginechoice


@pytest.fixture
def config(shards, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return TrainConfig(**OPTIONS, **shards, save_path=tmp_path / "ckpt")


def weights(path):
    return torch.load(path, weights_only=True)


def weights_of_epoch(folder, epoch):
    (path,) = (path for path in folder.glob(f"*e{epoch}_weights.ckpt") if "averaged" not in path.name)
    return weights(path)


@pytest.mark.parametrize("epochs", [2, 10])
def test_the_averaged_weights_are_the_mean_of_the_last_epochs(config, epochs):
    trained = train_model(replace(config, average=f"epochs:{epochs}"))
    assert [path.name for path in config.save_path.glob("averaged*")] == ["averaged_e2_weights.ckpt"]
    states = [weights_of_epoch(config.save_path, epoch) for epoch in range(3)][-epochs:]
    for name, tensor in weights(trained.averaged_weights).items():
        mean = np.mean([state[name].double().numpy() for state in states], axis=0)
        assert np.array_equal(tensor.numpy(), mean.astype(np.float32)), name


def test_averaging_changes_no_other_weights_and_no_other_figure(config, tmp_path):
    train_model(config)
    train_model(replace(config, average="none", save_path=tmp_path / "none"))
    averaged, plain = result(config.save_path), result(tmp_path / "none")
    assert {name for name in averaged if name not in plain} == {"averaged_e2_weights.ckpt"}
    for name in (name for name in plain if name.endswith("_weights.ckpt")):
        states = [weights(folder / name) for folder in (config.save_path, tmp_path / "none")]
        assert all(torch.equal(*tensors) for tensors in zip(*(state.values() for state in states), strict=True))
    for name, values in statistics(tmp_path / "none").items():
        assert statistics(config.save_path)[name] == values or name.startswith("avg_")


def test_the_figures_of_the_averaged_weights_are_those_of_their_file(config, shards):
    trained = train_model(config)
    scored = score_utterances(
        ScoreConfig(
            te_shards=str(shards["va_shards"]),
            weights_ckpt=trained.averaged_weights,
            train_cfg=config.save_path / "train.opts",
            log_file=config.save_path / "scored.log",
        )
    )
    assert trained.averaged.wrong == int((scored.found != scored.true).sum())
    assert trained.averaged.accuracy == pytest.approx(1 - scored.rates.frames.rate)


def moving_average(config, decay):
    """The exponential moving average by a plain loop over a training of one process, whose steps are replayed in float64."""
    data = WindowDataset(
        config.tr_shards,
        in_frames=config.in_frames,
        batch_size=config.batch_size,
        num_streams=config.num_streams,
        shuffle_windows=config.shuffle_windows,
    )
    options = read_options(config.save_path / "train.opts")
    torch.manual_seed(config.seed)
    network = model_from_options(options)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.lr, momentum=config.momentum)
    average = [weight.detach().clone() for weight in network.parameters()]
    for _ in range(config.epoch):
        for x, y in data:
            optimizer.zero_grad()
            torch.nn.functional.nll_loss(network(x), y).backward()
            optimizer.step()
            for mine, theirs in zip(average, network.parameters(), strict=True):
                mine.lerp_(theirs.detach(), 1 - decay)
    return average


@pytest.mark.parametrize("engine", ["eager", "graph", "device", "fused"])
def test_the_moving_average_is_that_of_a_plain_loop_with_every_engine(config, engine, monkeypatch):
    config = replace(config, epoch=1, average="ema:0.9", optimizer="sgd", lr=0.05, engine="graph")
    if engine == "device":
        monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    elif engine == "fused":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(enginechoice, "_is_interpreted", lambda: True)
        config = replace(config, engine="fused")
    else:
        config = replace(config, engine=engine)
    trained = train_model(config)
    found = weights(trained.averaged_weights)
    for tensor, expected in zip(found.values(), moving_average(config, 0.9), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


NORMALIZED = {"batch_norm": True, "dropout": 0.2}


@pytest.mark.parametrize(
    ("average", "options"),
    [
        pytest.param("epochs:2", {}, marks=pytest.mark.long, id="plain-epochs"),
        pytest.param("ema:0.95", {}, id="plain-ema"),
        pytest.param("epochs:2", NORMALIZED, id="batch_norm-epochs"),
        pytest.param("ema:0.95", NORMALIZED, marks=pytest.mark.long, id="batch_norm-ema"),
    ],
)
def test_a_resumed_training_ends_with_the_same_averaged_weights(config, average, options, tmp_path):
    config = replace(config, average=average, checkpoint_steps=5, keep_checkpoints=99, **options)
    train_model(config)
    expected = result(config.save_path)
    for number in (1, len(checkpoints(config.save_path)) // 2, -3):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(config.save_path, copy)
        train_model(replace(config, save_path=copy, resume=str(checkpoints(copy)[number])))
        assert result(copy) == expected


def test_a_training_resumed_in_another_folder_ends_with_the_same_averaged_weights(config, tmp_path):
    train_model(config)
    first = checkpoints(config.save_path)[0]
    train_model(replace(config, save_path=tmp_path / "other", resume=str(first)))
    assert result(tmp_path / "other") == result(config.save_path)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"average": "ema:0.9", "batch_norm": True}, marks=pytest.mark.long)],
    ids=["epochs", "ema"],
)
def test_ranks_average_and_count_what_one_does(config, options, tmp_path):
    flags = OPTIONS | {"tr_shards": config.tr_shards, "va_shards": config.va_shards, "optimizer": "sgd", "lr": 0.05}
    flags |= {name: value for name, value in options.items() if value is not True}
    switches = ["--batch_norm"] if "batch_norm" in options else []
    found = {}
    for ranks in (1, 2, 3):
        folder = tmp_path / f"{ranks}"
        done = run(flags | {"save_path": folder}, processes=ranks, module=("-m", "spkid_dist.train", *switches))
        assert done.returncode == 0, done.stderr
        found[ranks] = weights(folder / "averaged_e2_weights.ckpt"), statistics(folder)
    for ranks in (2, 3):
        for name, tensor in found[1][0].items():
            torch.testing.assert_close(found[ranks][0][name], tensor, rtol=2e-3, atol=2e-4, msg=f"{ranks}: {name}")
        assert found[ranks][1]["avg_loss"] == pytest.approx(found[1][1]["avg_loss"], rel=1e-3)
        assert found[ranks][1]["va_wrong"] == found[1][1]["va_wrong"]
    assert max(found[1][1]["va_wrong"]) > 0


def test_the_statistics_of_batch_normalisation_are_those_of_the_averaged_weights(config, monkeypatch):
    windows = 1000
    monkeypatch.setattr(averaging, "STATISTICS_WINDOWS", windows)
    trained = train_model(replace(config, batch_norm=True))
    network = model_from_options(read_options(config.save_path / "train.opts"))
    network.load_state_dict(weights(trained.averaged_weights))
    data = WindowDataset(
        config.tr_shards,
        in_frames=config.in_frames,
        batch_size=config.batch_size,
        num_streams=config.num_streams,
        shuffle_windows=config.shuffle_windows,
    )
    data.set_epoch(config.epoch)  # the epoch that would come next
    batches = [batch for batch, _ in zip(data, range(windows // config.batch_size), strict=False)]
    with torch.no_grad():
        inputs = torch.stack([network[0](x) for x, _ in batches])  # of the first layer of batch normalisation
    torch.testing.assert_close(network[1].running_mean, inputs.mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network[1].running_var, inputs.var(dim=1).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_an_average_whose_epochs_are_gone_is_not_written(config, tmp_path, capsys):
    train_model(replace(config, epoch=2))
    (config.save_path / "bestval_e0_weights.ckpt").unlink()
    with pytest.raises(InputError, match=r"no epoch of this training"):
        best_weights_of_nothing(tmp_path)
    trained = train_model(replace(config, resume="auto"))
    assert trained.averaged_weights is None
    assert not list(config.save_path.glob("averaged*"))
    printed = capsys.readouterr().out
    assert "averaged weights: none after this epoch, as" in printed
    assert "bestval_e0_weights.ckpt: can't read these weights: No such file or directory" in printed
    assert statistics(config.save_path)["avg_loss"][2] is None
    assert best_weights(config.save_path) == trained.best_weights


@pytest.mark.parametrize("damage", ["bits", "another epoch"])
def test_weights_that_are_not_what_was_written_are_not_averaged(config, damage, capsys):
    train_model(replace(config, epoch=2))
    paths = [next(config.save_path.glob(f"bestval_e{epoch}_weights.ckpt")) for epoch in (0, 1)]
    if damage == "bits":
        state = torch.load(paths[0], weights_only=True)
        next(iter(state.values()))[0, 0] += 1e-3
        torch.save(dict(state), paths[0])  # without the digest of its own
    else:
        shutil.copyfile(paths[1], paths[0])
    trained = train_model(replace(config, resume="auto"))
    assert f"{paths[0]} is not what was written there" in capsys.readouterr().out
    assert trained.averaged_weights is None


def test_a_finished_older_checkpoint_gets_its_averaged_weights_back(config):
    config = replace(config, keep_checkpoints=9, batch_norm=True)
    train_model(replace(config, epoch=2))
    expected = result(config.save_path)["averaged_e1_weights.ckpt"]
    train_model(replace(config, epoch=3, resume="auto"))
    trained = train_model(replace(config, epoch=2, resume=str(checkpoints(config.save_path)[1])))
    assert trained.averaged_weights.read_bytes() == expected
    assert best_weights(config.save_path).is_file()


def test_a_checkpoint_of_before_averages_goes_on(config, tmp_path):
    train_model(config)
    expected = result(config.save_path)
    checkpoint = checkpoints(config.save_path)[0]
    states = torch.load(checkpoint / "state.pt")
    del states["average"]
    torch.save(states, checkpoint / "state.pt")
    values = json.loads((checkpoint / "training.json").read_text())
    for name in ("average", "best_by"):
        del values["options"][name]
    values["statistics"] = {name: values["statistics"][name] for name in ("tr_loss", "tr_acc", "va_loss", "va_acc")}
    write_json(checkpoint / "training.json", values)
    files = {name: (checkpoint / name).read_bytes() for name in ("state.pt", "training.json")}
    written = {name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()}
    write_json(checkpoint / "manifest.json", {"format": 1, "files": written})
    train_model(replace(config, resume=str(checkpoint), save_path=tmp_path / "on"))
    found = result(tmp_path / "on")
    weights_files = {name for name in expected if name.endswith(".ckpt")}
    assert {name: found[name] for name in weights_files} == {name: expected[name] for name in weights_files}
    assert statistics(tmp_path / "on")["va_wrong"][0] is None


def best_weights_of_nothing(folder):
    (folder / "empty").mkdir()
    (folder / "empty/train.opts").write_text('{"input_dim": 3, "in_frames": 5, "hsize": 4, "num_spks": 2}')
    best_weights(folder / "empty")


def test_one_epoch_is_its_own_average(config, capsys):
    trained = train_model(replace(config, epoch=1))
    assert result(config.save_path)["averaged_e0_weights.ckpt"] == result(config.save_path)["bestval_e0_weights.ckpt"]
    assert (trained.averaged.loss, trained.averaged.wrong) == (trained.va_loss, trained.va_wrong)
    assert "averaged: epoch 0, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "average", ["epochs", "epochs:1", "epochs:x", "epochs:-3", "ema:1", "ema:0", "ema:nan", "swa", ""]
)
def test_an_average_that_cannot_be_is_refused(average):
    with pytest.raises(UsageError, match=f"--average {average}: expected none, epochs:N"):
        TrainConfig(average=average)


def test_another_average_needs_another_training(config):
    train_model(replace(config, epoch=1))
    with pytest.raises(UsageError, match=r"--average ema:0\.9: the checkpoint .* was trained with epochs:10"):
        train_model(replace(config, average="ema:0.9", resume="auto"))


@pytest.mark.parametrize(
    ("wrong", "loss", "is_better"),
    [(2, 9.0, True), (3, 0.9, True), (3, 1.0, False), (4, 0.1, False), (None, 0.1, False)],
)
def test_fewer_wrong_utterances_are_better_and_then_the_lower_loss(wrong, loss, is_better):
    found = TrainStatistics()
    epoch = Figures(loss=1.0, accuracy=0.5, wrong=3, utterances=9)
    found.add(epoch, replace(epoch, wrong=wrong, loss=loss))
    assert found.is_average_better == is_better


def test_the_best_weights_of_a_folder_are_those_with_fewer_wrong_utterances(config, capsys):
    trained = train_model(config)
    found = statistics(config.save_path)
    averaged = found["avg_wrong"][-1], found["avg_loss"][-1]
    best = found["va_wrong"][trained.best_epoch], found["va_loss"][trained.best_epoch]
    expected = trained.averaged_weights if averaged < best else trained.best_weights
    assert best_weights(config.save_path) == expected
    taken = "the averaged weights" if averaged < best else "the weights of the best epoch"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"better on the validation set: {taken}; spkid score --model {config.save_path} takes them"
    trained.averaged_weights.unlink()
    assert best_weights(config.save_path) == trained.best_weights
    trained.best_weights.unlink()
    with pytest.raises(InputError, match=r"the weights of the best epoch are missing"):
        best_weights(config.save_path)
    with pytest.raises(InputError, match=r"holds no train\.opts, so it is no training"):
        best_weights(config.save_path.parent)
