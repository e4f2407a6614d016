"""The command `spkid simulate`: print the prediction, its limits, and which one is reached first.

The arithmetic is in `spkid_dist.simulate.clustermodel`; here the options become its plan, and the prediction a table.
"""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from shards.dataset import ShardDataset
from shards.errors import UsageError
from shards.stores.store import StoreOptions
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.config.network import NetworkOptions
from spkid_dist.config.simulate import RateFlags, SimulateConfig
from spkid_dist.ranks.console import RunLog
from spkid_dist.simulate.clustermodel import ClusterPlan, Prediction, plan_facts, predict
from spkid_dist.simulate.clusterparts import Cluster, CorpusSize, Stream, stored_bytes
from spkid_dist.simulate.devicerates import PRESETS, DeviceRates
from spkid_dist.simulate.mixing import distinct_in_pools
from spkid_dist.streaming.kernels import windows_of
from spkid_dist.streaming.windows import DatasetWindows

DEFAULT_FEATURES = 20
DEFAULT_BLOCK_FRAMES = 8192
DEFAULT_SHARD_BYTES = 256_000_000
WELL_MIXED = 0.8  # of the utterances in a batch of a uniform permutation
GBIT, GBYTE = 1e9 / 8, 1e9
# what a flag of RateFlags is in DeviceRates, and its unit there
RATE_FIELDS = {
    "step_overhead_us": ("step_overhead_seconds", 1e-6),
    "compute_windows": ("compute_windows_per_second", 1.0),
    "stack_windows": ("stack_windows_per_second", 1.0),
    "fill_windows": ("fill_windows_per_second", 1.0),
    "bus_gbytes": ("bus_bytes_per_second", GBYTE),
    "allreduce_us": ("allreduce_hop_seconds", 1e-6),
    "first_batch_seconds": ("first_batch_seconds", 1.0),
}


def simulate(config: SimulateConfig) -> None:
    """Predict, and print a table and a JSON summary (`RunLog.summary`).

    Raises:
        InputError: no dataset at --shards, or measuring failed.
        UsageError: the corpus has no window, or fewer processes can be measured here than that takes.
    """
    plan = make_plan(config)
    prediction = predict(plan)
    _report(plan, prediction, config.json)


def make_plan(config: SimulateConfig) -> ClusterPlan:
    """The plan of the options; measures this machine where they ask for it. Raises as `simulate`."""
    corpus = _corpus_of_shards(config) if config.shards is not None else _corpus_of_size(config)
    network = NetworkOptions(
        input_dim=corpus.num_features,
        in_frames=config.in_frames,
        num_spks=corpus.num_speakers,
        hsize=config.hsize,
        num_layers=config.num_layers,
    )
    stream = Stream(**{name: getattr(config, name) for name in Stream.__annotations__})
    each, in_all = config.store_gbytes, config.store_gbytes_in_all
    cluster = Cluster(
        nodes=config.nodes,
        devices_per_node=config.gpus,
        network_bytes_per_second=None if config.network_gbits is None else config.network_gbits * GBIT,
        store_bytes_per_second=None if in_all is None else in_all * GBYTE,
        node_store_bytes_per_second=None if each is None else each * GBYTE,
        node_memory_bytes=None if config.memory_gb is None else config.memory_gb * GBYTE,
        node_hour_price=config.price,
    )
    return ClusterPlan(
        corpus=corpus,
        network=network,
        stream=stream,
        cluster=cluster,
        rates=_rates(config, corpus, network, stream, cluster),
    )


def _corpus_of_shards(config: SimulateConfig) -> CorpusSize:
    assert config.shards is not None
    dataset = ShardDataset(config.shards, StoreOptions(fingerprint=config.fingerprint))
    manifest = dataset.manifest
    total = DatasetWindows(dataset, config.in_frames, config.edge).total
    lengths, utterances = np.unique(dataset.utterance_column("frames"), return_counts=True)
    windows = np.array([windows_of(int(length), config.in_frames, EDGE_CODES[config.edge]) for length in lengths])
    return CorpusSize(
        num_frames=manifest.num_frames,
        num_utterances=manifest.num_utterances,
        num_features=manifest.num_features,
        num_speakers=len(manifest.speakers),
        num_windows=total,
        num_shards=len(manifest.shards),
        value_bytes=np.dtype(manifest.dtype).itemsize,
        stored_bytes=sum(shard.bytes for shard in manifest.shards),
        block_frames=max(job.block_frames for job in manifest.jobs),
        lengths=(windows[windows > 0], utterances[windows > 0]),
    )


def _corpus_of_size(config: SimulateConfig) -> CorpusSize:
    """The corpus of the size's flags; all its utterances are of the mean length."""
    frames, utterances = config.frames, config.utterances
    if frames is None:
        assert utterances is not None and config.mean_frames is not None
        frames = round(utterances * config.mean_frames)
    elif utterances is None:
        assert config.mean_frames is not None
        utterances = max(1, round(frames / config.mean_frames))
    length = max(1, round(frames / utterances))
    windows = int(windows_of(length, config.in_frames, EDGE_CODES[config.edge]))
    if windows == 0:
        raise UsageError(
            f"--in_frames {config.in_frames}: an utterance of {length} frames has no such window; give a smaller one"
        )
    assert config.speakers is not None
    num_features = config.num_features or DEFAULT_FEATURES
    block_frames = config.block_frames or DEFAULT_BLOCK_FRAMES
    value_bytes = np.dtype(config.dtype or "float32").itemsize
    stored = stored_bytes(frames, utterances, num_features, value_bytes, block_frames)
    return CorpusSize(
        num_frames=frames,
        num_utterances=utterances,
        num_features=num_features,
        num_speakers=config.speakers,
        num_windows=windows * utterances,
        num_shards=-(-stored // (config.shard_bytes or DEFAULT_SHARD_BYTES)),
        value_bytes=value_bytes,
        stored_bytes=stored,
        block_frames=block_frames,
        lengths=(np.array([windows]), np.array([utterances])),
    )


def _rates(
    config: SimulateConfig, corpus: CorpusSize, network: NetworkOptions, stream: Stream, cluster: Cluster
) -> DeviceRates:
    """The preset's rates, or those of this machine; those of the flags take their place."""
    given = config.given()
    if config.device != "here":
        rates = PRESETS[config.device].rates(network)
    else:
        from spkid_dist.simulate.measuring import measure_rates  # loads torch

        rates = measure_rates(corpus, network, stream, cluster)
    changed: dict[str, Any] = {RATE_FIELDS[name][0]: value * RATE_FIELDS[name][1] for name, value in given.items()}
    source = rates.source + "".join(
        f", --{name} {given[name]:g}" for name in RateFlags.__annotations__ if name in given
    )
    return replace(rates, **changed, source=source)


def _report(plan: ClusterPlan, prediction: Prediction, as_json: bool) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for name, value in _lines(plan, prediction):
        console.print(f"{name:<12} {value}")
    console.print(_limits_table(prediction))
    first = prediction.limits[0]
    console.print(f"breaks first: {first.name}; {first.remedy}")
    enough = shuffle_windows_for(plan, prediction)
    if enough is not None:
        mixed = f"{WELL_MIXED:.0%} of the utterances of a uniform permutation's batch"
        console.print(f"shuffled little: --shuffle_windows {enough} would have {mixed}")
    if not prediction.fits_memory:
        console.print("does not fit: the nodes' memory is less than the pools and processes take")
    facts = asdict(prediction) | {"breaks_first": first.name, "plan": plan_facts(plan)}
    RunLog(shown=True).summary(facts, as_json)


def shuffle_windows_for(plan: ClusterPlan, prediction: Prediction) -> int | None:
    """The least power of 2 of --shuffle_windows that mixes a batch well; None where it is mixed well as it is."""
    uniform = prediction.utterances_per_batch_uniform
    if prediction.utterances_per_batch >= WELL_MIXED * uniform:
        return None
    stream, corpus = plan.stream, plan.corpus
    shuffle_windows = 1 << stream.shuffle_windows.bit_length()
    while shuffle_windows < corpus.num_windows:
        larger = replace(stream, shuffle_windows=shuffle_windows)
        batch = min(stream.batch_size, corpus.num_windows)
        if distinct_in_pools(corpus.lengths, batch, stream.num_streams, larger.pool_windows) >= WELL_MIXED * uniform:
            break
        shuffle_windows *= 2
    return shuffle_windows


def _lines(plan: ClusterPlan, prediction: Prediction) -> list[tuple[str, str]]:
    """What is expected, a line each."""
    corpus, cluster = plan.corpus, plan.cluster
    pools, remote = prediction.rank_pool_bytes / 1e6, prediction.rank_pool_bytes_remote / 1e6
    read, node = prediction.node_read_bytes_per_second / 1e6, prediction.node_memory_bytes / 1e9
    first, resumed = prediction.first_batch_seconds, prediction.resume_seconds
    mixed, uniform = prediction.utterances_per_batch, prediction.utterances_per_batch_uniform
    parts = ", ".join(f"{name} {seconds * 1e6:,.0f}" for name, seconds in plan.step_parts.items() if seconds)
    windows, utterances, stored = corpus.num_windows, corpus.num_utterances, corpus.stored_bytes / 1e9
    price = "" if prediction.epoch_price is None else f", price {prediction.epoch_price:,.2f}"
    return [
        (
            "cluster",
            f"{cluster.nodes} x {cluster.devices_per_node} = {cluster.ranks} ranks; rates: {plan.rates.source}",
        ),
        (
            "corpus",
            f"{windows:,} windows of {utterances:,} utterances, {stored:,.3f} GB in {corpus.num_shards:,} shards",
        ),
        ("speed", f"{prediction.windows_per_second:,.0f} windows/s"),
        (
            "step",
            f"{prediction.rank_step_seconds * 1e6:,.0f} us for {prediction.rank_windows_per_step:,} windows: {parts}",
        ),
        ("reading", f"{read:,.2f} MB/s a node"),
        (
            "memory",
            f"pools {pools:,.0f} MB a rank, {remote:,.0f} with the blocks that are kept; {node:,.2f} GB a node in all",
        ),
        ("first batch", f"{first:,.2f} s after the processes have met; resumed: {resumed:,.2f} s"),
        (
            "shuffle",
            f"{mixed:,.0f} utterances a batch, {mixed / uniform:.1%} of a uniform permutation's {uniform:,.0f}",
        ),
        ("epoch", f"{prediction.epoch_seconds / 3600:,.3f} hours of training, without validation{price}"),
    ]


def _limits_table(prediction: Prediction) -> Table:
    table = Table(box=None)
    for heading in ("limit", "headroom", "alone: windows/s"):
        table.add_column(heading, justify="left" if heading == "limit" else "right")
    for limit in prediction.limits:
        alone = "" if limit.windows_per_second is None else f"{limit.windows_per_second:,.0f}"
        table.add_row(limit.name, f"{limit.headroom:,.2f} x", alone)
    return table
