"""Engines that take their steps from tables on a device learn what the eager engine learns; here the device is the CPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from training import OPTIONS, checkpoints, make_shards, result, run, statistics

from shards import ShardDataset
from shards.errors import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import model_from_options
from spkid_dist.process.replay import MOST_GRAPHS, STEPS_A_GRAPH, STEPS_BEFORE, Replay
from spkid_dist.streaming.ring import PlacedSteps, WindowRing
from spkid_dist.streaming.selection import Selection
from spkid_dist.train import train_model
from spkid_dist.training import enginechoice
from spkid_dist.training.enginechoice import find_hindrance
from spkid_dist.training.fused.plan import FusedPlan
from spkid_dist.training.fusedengine import check_memory
from spkid_dist.training.steptable import StepTable

pytestmark = pytest.mark.device
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EXACT = 1e-3 if ON_GPU else 1e-6  # relative, of two ways to add the same numbers


# Of all windows: kernels are interpreted, which takes 0.1 s for 150.
FEW = {"tr_speakers": ("spk0003",), "batch_size": 90}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("device"))


@pytest.fixture
def config(shards, tmp_path):
    return TrainConfig(**shards, **OPTIONS | {"epoch": 2}, save_path=tmp_path / "device", engine="graph")


@pytest.fixture
def placed(monkeypatch):
    """Have the graph engine take its steps as it does on a GPU."""
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    known = enginechoice._hindrance
    monkeypatch.setattr(
        enginechoice, "_hindrance", lambda config, accelerator: known(replace(config, dropout=0.0), accelerator)
    )


def both(config, monkeypatch):
    """The statistics of the eager engine, and those of the graph engine on placed steps."""
    train_model(replace(config, engine="eager", save_path=config.save_path.with_name("eager")))
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    train_model(config)
    return statistics(config.save_path.with_name("eager")), statistics(config.save_path)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_grad_norm": 0.5, "label_smoothing": 0.1, "schedule": "cosine"},
        {"optimizer": "sgd", "lr": 0.05, "batch_norm": True},
        {"dropout": 0.3, "normalize": "global"},
        {"mixed_precision": "bf16", "normalize": "utterance"},
    ],
    ids=lambda options: ",".join(options),
)
def test_steps_from_tables_on_the_device_learn_what_batches_teach(config, monkeypatch, placed, options):
    del placed
    expected, found = both(replace(config, **options), monkeypatch)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=max(EXACT, 1e-3 * ("batch_norm" in options))), name


def test_a_stopped_training_on_placed_steps_goes_on_bit_for_bit(config, placed, tmp_path):
    del placed
    train_model(config)
    half = replace(config, epoch=1, checkpoint_steps=5, keep_checkpoints=4, save_path=tmp_path / "half")
    train_model(half)
    inside = checkpoints(tmp_path / "half")[1]
    train_model(replace(config, resume=str(inside), save_path=tmp_path / "rest"))
    assert result(tmp_path / "rest")["bestval_e1_weights.ckpt"] == result(config.save_path)["bestval_e1_weights.ckpt"]
    assert statistics(tmp_path / "rest") == statistics(config.save_path)
    states = torch.load(checkpoints(tmp_path / "rest")[-1] / "state.pt")
    (group,) = states["optimizer"]["param_groups"]
    assert (type(group["lr"]), group["capturable"]) == (float, False)  # an engine on another device goes on from it


def test_the_first_bad_step_of_many_on_the_device_is_named(config, placed):
    del placed
    with pytest.raises(
        InputError, match=r"epoch 0, batch 2: the training loss is nan on rank 0; the training diverged"
    ):
        train_model(replace(config, optimizer="sgd", lr=1e30, log_freq=1000))


class CountedReplay(Replay):
    """Graphs as a GPU has them, but that only count: (size, how often)."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self._side = object()
        self.done, self.replayed = [], []

    def _do_without(self, step):
        step()
        self.done.append(1)

    def _capture(self, state, step, size):  # noqa: ARG002
        if self._num_graphs >= MOST_GRAPHS:
            return None
        self._num_graphs += 1
        replayed = self.replayed

        class Graph:
            def replay(self):
                replayed.append(size)

        state.graphs[size] = Graph()
        return state.graphs[size]


def test_what_fills_no_graph_of_many_steps_is_done_by_graphs_of_one():
    replay = CountedReplay()
    replay.do("kind", lambda: None, STEPS_BEFORE + STEPS_A_GRAPH + 2)
    replay.do("kind", lambda: None, 2 * STEPS_A_GRAPH)
    assert (len(replay.done), replay.replayed) == (STEPS_BEFORE, [STEPS_A_GRAPH, 1, 1, STEPS_A_GRAPH, STEPS_A_GRAPH])


def test_steps_of_other_sizes_have_graphs_of_their_own_up_to_a_limit():
    replay, sizes = CountedReplay(), []
    for _ in range(STEPS_BEFORE + 1):
        replay.do_all(0, range(MOST_GRAPHS + 2), sizes.append)
    assert len(replay.replayed) == MOST_GRAPHS
    assert len(replay.done) == len(sizes) == (MOST_GRAPHS + 2) * STEPS_BEFORE + 2


def test_graphs_of_an_earlier_ring_are_not_used_for_the_next():
    replay = CountedReplay()
    replay.do_all(0, [5] * (STEPS_BEFORE + 1), lambda _: None)
    replay.do_all(1, [5], lambda _: None)
    assert (len(replay.done), len(replay.replayed)) == (STEPS_BEFORE + 1, 1)


def test_a_table_holds_the_rows_that_were_sent_last_and_begins_at_the_first():
    ring = WindowRing.of_batch(torch.arange(60.0, device=DEVICE).reshape(10, 6), torch.arange(10, device=DEVICE), 3)
    table = StepTable(DEVICE, torch.zeros(3, dtype=torch.float64, device=DEVICE), most_windows=10)
    table.send(PlacedSteps(ring, (0, 4), (4, 6)), [0.5, 0.25], [1.0, 2.0])
    table.cursor.add_(1)
    table.send(PlacedSteps(ring, (18,), (4,)), [0.125], [4.0])
    assert (int(table.cursor), float(table.rate[0]), float(table.weight[0])) == (0, 0.125, 4.0)
    x, y = table.gather(ring, 4)
    assert y.tolist() == [8, 9, 0, 1]
    assert torch.equal(x[2], torch.arange(6.0, device=DEVICE))


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.1},
        pytest.param({"normalize": "global", "num_layers": 1}, marks=pytest.mark.long),
    ],
    ids=lambda options: ",".join(options),
)
def test_the_fused_engine_learns_what_the_eager_one_learns(config, tmp_path, options):
    config = replace(config, epoch=1, **FEW, **options)
    train_model(replace(config, engine="eager"))
    train_model(replace(config, engine="fused", save_path=tmp_path / "fused"))
    assert "engine fused" in (tmp_path / "fused" / "train.log").read_text()
    for name, values in statistics(config.save_path).items():
        assert statistics(tmp_path / "fused")[name] == pytest.approx(values, rel=10 * EXACT), name


@pytest.mark.long
def test_a_fused_training_goes_on_bit_for_bit_and_by_another_engine(config, tmp_path):
    config = replace(config, engine="fused", **FEW)
    train_model(config)
    rest = replace(config, epoch=1, save_path=tmp_path / "rest")
    train_model(rest)
    train_model(replace(rest, epoch=2, resume="auto"))
    assert result(tmp_path / "rest") == result(config.save_path)
    train_model(replace(rest, epoch=3, resume="auto", engine="eager"))
    train_model(replace(config, epoch=3, engine="eager", save_path=tmp_path / "eager"))
    assert statistics(tmp_path / "rest")["tr_loss"] == pytest.approx(
        statistics(tmp_path / "eager")["tr_loss"], rel=1e-5
    )


@pytest.mark.long  # one: test_the_fused_engine_learns_what_the_eager_one_learns
def test_two_ranks_of_the_fused_engine_learn_what_one_learns(config, shards, tmp_path):
    train_model(replace(config, engine="fused"))
    options = {**shards, **OPTIONS, "epoch": 2, "engine": "fused", "save_path": tmp_path / "two"}
    done = run(options, processes=2)
    assert done.returncode == 0, done.stderr
    for name, values in statistics(config.save_path).items():
        assert statistics(tmp_path / "two")[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dropout": 0.1}, "--dropout 0.1"),
        ({"activation": "gelu"}, "--activation gelu"),
        ({"hsize": 513}, "--hsize 513, above 512"),
        ({"accumulation": 2}, "--accumulation"),
    ],
)
def test_what_the_fused_engine_cannot_do_is_refused_by_name(config, options, what):
    with pytest.raises(UsageError, match=f"--engine fused: not with {what}; leave that out, or give --engine auto"):
        train_model(replace(config, engine="fused", **options))


@pytest.mark.skipif(ON_GPU, reason="it is about CPUs")
def test_kernels_for_gpus_are_not_offered_without_one(config, monkeypatch):
    monkeypatch.setattr("spkid_dist.training.enginechoice._is_interpreted", lambda: False)
    with pytest.raises(UsageError, match="--engine fused: not with a CPU; leave that out, or give --engine auto"):
        train_model(replace(config, engine="fused"))
    with pytest.raises(UsageError, match="--tf32: it is a number format of GPUs, and this training runs on CPUs"):
        train_model(replace(config, tf32=True))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="--engine fused: not with this installation, which lacks triton"):
        train_model(replace(config, engine="fused"))


def float64_losses(config, steps_per_line):
    """The training losses of an epoch by torch's own loop in float64, as the lines of the log have them."""
    torch.manual_seed(config.seed)
    data = WindowDataset(
        config.tr_shards, in_frames=config.in_frames, batch_size=config.batch_size, num_streams=config.num_streams,
        shuffle_windows=config.shuffle_windows, seed=config.seed, selection=Selection(speakers=config.tr_speakers),
    )  # fmt: skip
    network = model_from_options(vars(config) | {"input_dim": data.num_features, "num_spks": len(data.speakers)})
    network = network.double()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    means, losses, windows = [], 0.0, 0
    for step, (x, y) in enumerate(data, start=1):
        loss = torch.nn.functional.nll_loss(network(x.double()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses, windows = losses + loss.item() * len(y), windows + len(y)
        if step % steps_per_line == 0 or step == len(data):
            means.append(losses / windows)
            losses, windows = 0.0, 0
    return means


LONG_CASES = (("eager", 0), ("graph", 0), ("fused", None))


@pytest.mark.parametrize(
    ("engine", "device_memory"),
    [("graph", None), ("fused", 0), *(pytest.param(*case, marks=pytest.mark.long) for case in LONG_CASES)],
)
def test_every_engine_has_the_losses_of_float64(config, monkeypatch, engine, device_memory):
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    config = replace(
        config, epoch=1, engine=engine, device_memory=device_memory, log_freq=2, shuffle_windows=150, **FEW
    )
    train_model(config)
    assert statistics(config.save_path)["tr_loss"] == pytest.approx(float64_losses(config, 2), rel=1e-4)


@pytest.mark.parametrize("engine", ["graph", pytest.param("fused", marks=pytest.mark.long)])
def test_windows_of_a_bad_block_are_left_out_of_the_steps_of_a_device(config, monkeypatch, tmp_path, engine):
    monkeypatch.setattr("spkid_dist.training.startup.steps_are_placed", lambda *_: True)
    made = make_shards(tmp_path / "damaged", block_frames=200)
    dataset = ShardDataset(made["tr_shards"])
    record = dataset.blocks[1]
    path = made["tr_shards"] / dataset.manifest.shards[int(record["shard"])].name
    data = bytearray(path.read_bytes())
    data[int(record["payload_offset"]) + 130] ^= 1
    path.write_bytes(data)
    config = replace(config, epoch=1, **made, on_bad_block="skip", shuffle_windows=600)
    train_model(replace(config, engine="eager"))
    train_model(replace(config, engine=engine, save_path=tmp_path / "other"))
    assert "windows passed over so far, of 1 bad blocks" in (tmp_path / "other" / "train.log").read_text()
    expected, found = (statistics(path)["tr_loss"] for path in (config.save_path, tmp_path / "other"))
    assert found == pytest.approx(expected, rel=10 * EXACT)


XPU = "a device of the kind xpu: the kernels are for NVIDIA's"


def test_gpus_that_lack_what_the_kernels_need_are_named(config, monkeypatch):
    gpu = SimpleNamespace(device=torch.device("cuda", 0), mixed_precision="no", num_processes=1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 0))
    assert find_hindrance(config, gpu) == "the GPU Tesla P100, which is older than compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert find_hindrance(config, gpu) is None
    assert find_hindrance(config, SimpleNamespace(device=torch.device("xpu"))) == XPU
    plan = FusedPlan(inputs=420, num_features=20, num_speakers=157, rows=65_536)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * plan.scratch_bytes, 80e9))
    check_memory(plan, gpu.device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (plan.scratch_bytes // 2, 80e9))
    with pytest.raises(
        UsageError, match=r"it takes 0.3 GB on cuda:0, which has 0.1 GB free; give a smaller --batch_size"
    ):
        check_memory(plan, gpu.device)


PLACED = """
import spkid_dist.training.startup
spkid_dist.training.startup.steps_are_placed = lambda *_: True
from spkid_dist.train import main
main()
"""


@pytest.mark.long  # one: test_steps_from_tables_on_the_device_learn_what_batches_teach; batches: test_preemption
def test_two_ranks_of_steps_from_tables_learn_what_one_learns(config, shards, tmp_path):
    program = tmp_path / "placed.py"
    program.write_text(PLACED)
    train_model(replace(config, engine="eager"))
    options = {**shards, **OPTIONS, "epoch": 2, "engine": "graph", "save_path": tmp_path / "two"}
    done = run(options, processes=2, module=(program,))
    assert done.returncode == 0, done.stderr
    for name, values in statistics(config.save_path).items():
        assert statistics(tmp_path / "two")[name] == pytest.approx(values, rel=1e-4), name
    bad = run(options | {"save_path": tmp_path / "bad", "optimizer": "sgd", "lr": 1e30}, processes=2, module=(program,))
    assert "the training loss is nan on rank 0, 1; the training diverged" in bad.stderr
