"""The graph engine learns what the eager one learns, and batches that are stacked over one another are the same batches."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader
from training import OPTIONS, checkpoints, make_shards, result, run, statistics

from shards.errors import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.mixture import MixedDataset
from spkid_dist.train import train_model


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def config(shards, tmp_path):
    return TrainConfig(**shards, **OPTIONS | {"epoch": 2}, save_path=tmp_path / "eager", engine="eager")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixed_precision": "bf16"},
        {"clip_grad_norm": 0.5, "label_smoothing": 0.1, "schedule": "cosine"},
        {"optimizer": "sgd", "lr": 0.05},
        {"batch_norm": True, "normalize": "global"},
    ],
)
def test_the_graph_engine_learns_bit_for_bit_what_the_eager_one_learns(config, tmp_path, options):
    config = replace(config, **options)
    train_model(config)
    train_model(replace(config, engine="graph", save_path=tmp_path / "graph"))
    eager, graph = (torch.load(path) for path in (last_weights(tmp_path / "eager"), last_weights(tmp_path / "graph")))
    assert all(torch.equal(eager[name], graph[name]) for name in eager)
    assert statistics(tmp_path / "graph") == statistics(tmp_path / "eager")


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_pools_in_bfloat16_change_no_bit_of_what_is_learnt(config, tmp_path, monkeypatch, engine):
    config = replace(config, mixed_precision="bf16", engine=engine, normalize="utterance")
    train_model(config)
    monkeypatch.setattr("spkid_dist.training.startup.stream_dtype", lambda *_: "float32")
    train_model(replace(config, save_path=tmp_path / "wide"))
    short, wide = (torch.load(last_weights(tmp_path / name)) for name in ("eager", "wide"))
    assert all(torch.equal(short[name], wide[name]) for name in short)


def last_weights(folder):
    return max(folder.glob("*e1_weights.ckpt"))


@pytest.mark.long  # two: test_any_number_of_ranks_has_the_same_loss_curve
def test_three_ranks_by_one_all_reduce_learn_what_one_learns(config, shards, tmp_path):
    train_model(config)
    done = run({**shards, **OPTIONS, "epoch": 2, "engine": "graph", "save_path": tmp_path / "graph"}, processes=3)
    assert done.returncode == 0, done.stderr
    assert "engine graph" in (tmp_path / "graph" / "train.log").read_text()
    for name, values in statistics(tmp_path / "eager").items():
        assert statistics(tmp_path / "graph")[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.long
def test_either_engine_goes_on_from_the_others_checkpoint(config, tmp_path):
    train_model(config)
    whole = result(tmp_path / "eager")
    half = replace(config, epoch=1, save_path=tmp_path / "half", engine="graph")
    train_model(half)
    (place, *_) = checkpoints(tmp_path / "half")
    train_model(replace(config, resume=str(place), save_path=tmp_path / "half"))
    assert result(tmp_path / "half") == whole


def test_a_training_that_diverges_stops_in_the_graph_engine_too(config):
    with pytest.raises(InputError, match=r"epoch 0, batch .*loss is (inf|nan) on rank 0; the training diverged"):
        train_model(replace(config, engine="graph", optimizer="sgd", lr=1e30))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"dropout": 0.1}, "--dropout"),
        ({"accumulation": 2}, "--accumulation"),
        ({"compile": True}, "--compile"),
    ],
)
def test_what_the_graph_engine_cannot_do_is_refused(config, options, flag):
    with pytest.raises(UsageError, match=f"--engine graph: not with {flag}.*--engine auto"):
        train_model(replace(config, engine="graph", **options))
    assert train_model(replace(config, engine="auto", epoch=1, **options | {"compile": False})).epochs == 1


def test_batches_over_one_another_are_the_same_batches(shards):
    options = {"in_frames": 5, "batch_size": 64, "num_streams": 3, "shuffle_windows": 300}
    kept = list(WindowDataset(shards["tr_shards"], **options))
    addresses = set()
    for (x, y), (kept_x, kept_y) in zip(WindowDataset(shards["tr_shards"], **options, reuse=True), kept, strict=True):
        assert torch.equal(x, kept_x)
        assert torch.equal(y, kept_y)
        addresses.add((x.data_ptr(), y.data_ptr()))
    assert len(addresses) == 1


def test_batches_that_others_keep_are_not_stacked_over_one_another(shards):
    dataset = WindowDataset(shards["tr_shards"], in_frames=5, reuse=True)
    with pytest.raises(UsageError, match="reuse=True: a DataLoader's worker"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    with pytest.raises(UsageError, match="reuse=True: a batch of a mixture"):
        MixedDataset([dataset], [1])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_gpu_learns_from_graphs_what_it_learns_without(config, tmp_path, precision):
    config = replace(config, epoch=3, mixed_precision=precision)
    train_model(config)
    train_model(replace(config, engine="auto", save_path=tmp_path / "graph"))
    assert "engine graph" in (tmp_path / "graph" / "train.log").read_text()
    tolerance = 1e-4 if precision == "no" else 1e-2
    for name, values in statistics(tmp_path / "eager").items():
        assert statistics(tmp_path / "graph")[name] == pytest.approx(values, rel=tolerance), name
