"""`spkid simulate`: the arithmetic against the parts that it is of, the command, and a measurement of this machine."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_corpus

from shards.errors import InputError, UsageError
from spkid_dist.config.network import NetworkOptions
from spkid_dist.config.simulate import RateFlags, SimulateConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import model_from_options
from spkid_dist.order import EpochOrder, RankShare
from spkid_dist.simulate.clustermodel import ClusterPlan, predict
from spkid_dist.simulate.command import WELL_MIXED, make_plan, shuffle_windows_for
from spkid_dist.simulate.devicerates import PRESETS, fit_step
from spkid_dist.simulate.measuring import Task, _run_processes
from spkid_dist.simulate.mixing import distinct_in_permutation, distinct_in_pools
from spkid_dist.streaming import kernels

SIZE = {"frames": 10**9, "mean_frames": 250, "speakers": 1000}
CLUSTER = {"nodes": 4, "gpus": 8, "network_gbits": 100, "store_gbytes": 2, "memory_gb": 500, "price": 10}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    lengths = np.random.default_rng(0).integers(3, 60, 60).tolist()
    return make_corpus(tmp_path_factory.mktemp("corpus"), lengths, block_frames=100, shard_bytes=4000)


def plan(**options):
    return make_plan(SimulateConfig(**({"device": "h100"} | SIZE | CLUSTER | options)))


def command(*arguments):
    program = "import sys; from spkid_dist.commands.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "simulate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def flags(options):
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def test_the_command_prints_a_table_and_json(corpus):
    done = command("--shards", corpus.dataset.folder, "--in_frames", 5, "--device", "h100", *flags(CLUSTER))
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["windows_per_second"] > 0
    assert found["epoch_price"] == pytest.approx(4 * 10 * found["epoch_seconds"] / 3600)
    assert any(line.startswith(f"breaks first: {found['breaks_first']};") for line in lines)
    assert found["plan"]["corpus"]["num_windows"] == WindowDataset(corpus.dataset.folder, in_frames=5).num_windows


def test_predicting_by_a_data_sheet_loads_no_torch():
    program = (
        "import sys; from spkid_dist.simulate.command import make_plan\n"
        "from spkid_dist.simulate.clustermodel import predict\n"
        "from spkid_dist.config.simulate import SimulateConfig\n"
        "predict(make_plan(SimulateConfig(frames=10**6, utterances=4000, speakers=9, device='h100')))\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, "--nodes 0: expected 1 or more"),
        ({"network_gbits": -1}, "--network_gbits -1.0: expected more than 0"),
        ({"store_gbytes": "nan"}, "--store_gbytes nan: expected more than 0"),
        ({"price": -1}, "--price -1.0: expected 0 or more"),
        ({"num_streams": 31}, r"--num_streams 31: fewer than the 32 ranks \(4 nodes of 8\).*give 32 or more"),
        ({"shards": "somewhere"}, "--shards and --frames, --mean_frames, --speakers: .* one or the other"),
        ({"utterances": 7}, "a corpus is needed: .* two of --frames, --utterances, --mean_frames"),
        ({"in_frames": 251}, "--in_frames 251: an utterance of 250 frames has no such window"),
        ({"bus_gbytes": 0}, "--bus_gbytes 0.0: expected more than 0"),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_code_2(changed, message):
    options = SIZE | CLUSTER | changed
    values = {
        name: float(value) if name in ("network_gbits", "store_gbytes", "price", "bus_gbytes") else value
        for name, value in options.items()
    }
    with pytest.raises(UsageError, match=message) as error:
        make_plan(SimulateConfig(**values, device="h100"))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_bad_input_ends_the_command_with_one_line():
    for arguments in ((), ("--frames", 10, "--mean_frames", 5), (*flags(SIZE), "--nodes", 2)):
        done = command(*arguments, "--device", "h100")
        assert done.returncode == 2
        assert done.stderr.startswith("spkid: error: ")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("ranks", "streams", "batch"), [(1, 64, 1000), (3, 7, 100), (8, 64, 1001), (48, 64, 30), (5, 9, 4)]
)
def test_the_largest_share_is_that_of_the_order(ranks, streams, batch):
    shares = [RankShare(EpochOrder(10**6, streams, 4), rank, ranks) for rank in range(ranks)]
    first = [k * batch for k in range(streams)]
    largest = max(share.consumed_before(i + batch) - share.consumed_before(i) for share in shares for i in first)
    found = plan(nodes=1, gpus=ranks, num_streams=streams, batch_size=batch).rank_windows
    assert largest <= found <= largest + 1


@pytest.mark.parametrize("world_size", [1, 3])
def test_pool_memory_is_that_which_the_stream_states(corpus, world_size):
    options = {"in_frames": 5, "num_streams": 7, "shuffle_windows": 300, "batch_size": 50}
    config = SimulateConfig(shards=str(corpus.dataset.folder), gpus=world_size, device="h100", **options)
    stated = [
        WindowDataset(corpus.dataset.folder, rank=rank, world_size=world_size, **options).memory_bound
        for rank in range(world_size)
    ]
    assert predict(make_plan(config)).rank_pool_bytes_remote == max(stated)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_parameters_and_operations_are_those_of_the_network(num_layers):
    network = NetworkOptions(input_dim=40, in_frames=21, num_spks=157, num_layers=num_layers)
    layers = model_from_options(vars(network))
    assert network.num_parameters == sum(parameter.numel() for parameter in layers.parameters())
    weights = [layer.weight.numel() for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert network.flops_per_window == 6 * sum(weights) - 2 * weights[0]  # the first layer's inputs need no gradient
    normalised = model_from_options(vars(network) | {"batch_norm": True})
    assert replace(network, batch_norm=True).num_parameters == sum(p.numel() for p in normalised.parameters())
    if num_layers == 3:  # 122 M windows/s at 67 TFLOP/s
        rates = PRESETS["h100"].rates(network)
        assert rates.compute_windows_per_second == pytest.approx(122e6, rel=0.01)


def test_expected_utterances_are_those_of_batches_drawn():
    draw = np.random.default_rng(0)
    windows = draw.integers(1, 80, 300)
    lengths = np.unique(windows, return_counts=True)
    owner = np.repeat(np.arange(300), windows)
    streams, batch, rounds = 5, 60, 3000
    for pool in (20, 200, len(owner) // streams):
        seen = 0
        for _ in range(rounds):
            for _ in range(streams):
                places = (draw.integers(len(owner)) + draw.permutation(pool)[: batch // streams]) % len(owner)
                seen += len(np.unique(owner[places]))
        assert distinct_in_pools(lengths, batch, streams, pool) == pytest.approx(seen / rounds, rel=0.01)
    drawn = [len(np.unique(owner[draw.permutation(len(owner))[:batch]])) for _ in range(rounds)]
    assert distinct_in_permutation(lengths, batch) == pytest.approx(np.mean(drawn), rel=0.01)


def test_expected_utterances_are_those_of_the_measured_shuffle():
    """As benchmarks/bench_shuffle.py counted them: 776 uniform, and 784, 621, 436 for pools of three sizes."""
    frames = np.random.default_rng(0).integers(21, 479, 2400)
    lengths = np.unique(frames - 20, return_counts=True)
    assert distinct_in_permutation(lengths, 1000) == pytest.approx(776, rel=0.01)
    for shuffle_windows, counted in ((2**20, 784), (2**18, 621), (2**17, 436)):
        assert distinct_in_pools(lengths, 1000, 64, shuffle_windows // 64) == pytest.approx(counted, rel=0.01)


def test_a_step_of_each_size_that_was_measured_is_met():
    overhead, rate = fit_step((100, 0.003), (800, 0.010))
    assert overhead + 100 / rate == pytest.approx(0.003)
    assert overhead + 800 / rate == pytest.approx(0.010)
    assert fit_step((1, 0.002), (1, 0.002)) == (0.0, 500)
    assert fit_step((100, 0.02), (800, 0.01)) == (0.01, math.inf)
    assert fit_step((100, 0.0001), (800, 0.01)) == (0.0, 80_000)


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"store_gbytes": 0.001}, "store"),
        ({"network_gbits": 0.001}, "all-reduce"),
        ({"memory_gb": 1}, "memory"),
        ({"batch_size": 20}, "batch"),
        ({"compute_windows": 100}, "compute"),
        ({"step_overhead_us": 1e6}, "step overhead"),
        ({"fill_windows": 100}, "pool filling"),
        ({"bus_gbytes": 1e-6}, "bus"),
        ({"stack_windows": 100}, "stacking"),
        ({"num_streams": 33, "batch_size": 10**6, "store_gbytes": 1000, "fill_windows": 1e9}, "streams"),
    ],
)
def test_what_is_too_little_breaks_first(changed, first):
    found = predict(plan(**({"batch_size": 100_000} | changed)))
    assert found.limits[0].name == first
    assert found.fits_memory == (first != "memory")


def test_every_rate_can_be_given_by_a_flag():
    names = list(RateFlags.__annotations__)
    found = plan(**dict.fromkeys(names, 2.0))
    assert all(f"--{name} 2" in found.rates.source for name in names)
    rates = found.rates
    assert (rates.step_overhead_seconds, rates.compute_windows_per_second, rates.bus_bytes_per_second) == (2e-6, 2, 2e9)


def test_without_limits_twice_the_nodes_do_twice_the_work():
    def speed(nodes):
        found = plan(nodes=nodes, batch_size=nodes * 4096, network_gbits=1e9, allreduce_us=1e-6, num_streams=64)
        return predict(found).windows_per_second

    assert speed(4) == pytest.approx(4 * speed(1), rel=0.01)


def test_pools_that_mix_too_little_are_told_what_would_do():
    small = plan(batch_size=65_536)
    enough = shuffle_windows_for(small, predict(small))
    assert enough is not None
    shares = []
    for shuffle_windows in (enough // 2, enough):
        found = predict(plan(batch_size=65_536, shuffle_windows=shuffle_windows))
        shares.append(found.utterances_per_batch / found.utterances_per_batch_uniform)
    assert shares[0] < WELL_MIXED <= shares[1]
    well = plan(batch_size=65_536, shuffle_windows=enough)
    assert shuffle_windows_for(well, predict(well)) is None


def test_a_store_limits_a_node_and_all_of_them():
    one, all_nodes = plan(store_gbytes=1e-3), plan(store_gbytes=None, store_gbytes_in_all=4e-3)
    assert predict(one) == predict(all_nodes)
    assert predict(one).node_read_bytes_per_second == pytest.approx(1e6)


@pytest.mark.long
def test_this_machine_is_measured_by_two_processes():
    config = SimulateConfig(
        frames=20_000, utterances=100, speakers=5, num_features=8, in_frames=5, batch_size=200, hsize=16, gpus=2
    )
    found = make_plan(config)
    assert isinstance(found, ClusterPlan)
    assert found.rates.source == "measured here, by 2 processes"
    assert 0 < predict(found).windows_per_second < 1e8
    assert found.rates.process_bytes > 10**7
    faster = replace(found, rates=replace(found.rates, allreduce_hop_seconds=0.0))
    assert predict(faster).windows_per_second >= predict(found).windows_per_second
    assert kernels.windows_of(200, 5, kernels.VALID) * 100 == found.corpus.num_windows


def test_a_process_that_ends_while_it_measures_is_an_error(tmp_path):
    network = NetworkOptions(input_dim=2, in_frames=3, hsize=4, num_layers=1, num_spks=2)
    task = Task(
        folder=tmp_path,  # without the dataset
        processes=1,
        windows=10,
        network=network,
        num_features=2,
        in_frames=3,
        num_streams=4,
    )
    with pytest.raises(InputError, match=r"a process has ended without a result.*give --device h100"):
        _run_processes(task)
