"""Predict what a cluster would make of a training: arithmetic on sizes and rates, before any of it is rented.

A step takes each rank its overhead + windows / rate of compute + of stacking + the all-reduce, one after the other; filling
pools, their way over the bus as frames, and reading the store go on beside it, and limit it where they are slower.
W ranks, B windows of a global batch, S streams. The rank with the most streams, ceil(S / W), has ceil(S / W) / S of each batch.

All-reduce of n bytes over W ranks on N nodes: 2 (N - 1) / N n / bandwidth, the ring's bound (Patarasuk, Yuan, "Bandwidth
optimal all-reduce algorithms for clusters of workstations", 2009), and a latency for each of the ceil(log2 W) rounds of
recursive doubling (Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", 2005). One
gradient is less than a bucket of DDP (25 MB), so nothing of it overlaps with the backward pass.
"""

import math
from dataclasses import dataclass
from typing import Any

from spkid_dist.config.network import NetworkOptions
from spkid_dist.simulate.clusterparts import UTTERANCE_ROW_BYTES, Cluster, CorpusSize, Stream
from spkid_dist.simulate.devicerates import DeviceRates
from spkid_dist.simulate.mixing import distinct_in_permutation, distinct_in_pools
from spkid_dist.streaming.windows import PoolSize

# Opening a manifest of 310,000 shards took 7.9 s and 685 MB (2.2 GHz EPYC, Python 3.11).
MANIFEST_SHARD_SECONDS = 25e-6
MANIFEST_SHARD_BYTES = 2200
COUNTED_UTTERANCES_PER_SECOND = 3e8  # under --edge valid, the table in the page cache
TABLE_ROW_BYTES = 24  # of a window in a pool's tables


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One thing that can be too little: `headroom` is how many times what is needed there is, `remedy` what to change.

    `windows_per_second` is what it alone would carry; None where it is no rate.
    """

    name: str
    headroom: float
    windows_per_second: float | None
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected; a None has no limit or no price to follow from. `limits` begin with what breaks first.

    A rank's pools take `rank_pool_bytes` at most, and `rank_pool_bytes_remote` with the blocks that are kept for the next
    pools, which `node_memory_bytes` counts with.
    """

    windows_per_second: float
    rank_step_seconds: float
    rank_windows_per_step: int
    node_read_bytes_per_second: float
    rank_pool_bytes: int
    rank_pool_bytes_remote: int
    node_memory_bytes: float
    first_batch_seconds: float
    resume_seconds: float
    epoch_seconds: float
    epoch_price: float | None
    utterances_per_batch: float
    utterances_per_batch_uniform: float
    gradient_bytes: int
    fits_memory: bool
    limits: tuple[Limit, ...]


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """All that a prediction follows from."""

    corpus: CorpusSize
    network: NetworkOptions
    stream: Stream
    cluster: Cluster
    rates: DeviceRates

    @property
    def rank_streams(self) -> int:
        """Streams of the rank with the most."""
        return self.stream.rank_streams(self.cluster.ranks)

    @property
    def rank_windows(self) -> int:
        """Windows of a global batch that this rank takes."""
        return self.stream.rank_windows(self.cluster.ranks, self.corpus.num_windows)

    @property
    def pool(self) -> PoolSize:
        """What a rank has in memory."""
        corpus = self.corpus
        return PoolSize(
            num_windows=corpus.num_windows,
            num_frames=corpus.num_frames,
            num_utterances=corpus.num_utterances,
            num_features=corpus.num_features,
            value_bytes=corpus.value_bytes,
            block_frames=corpus.block_frames,
            in_frames=self.stream.in_frames,
            num_streams=self.stream.num_streams,
            pool_windows=self.stream.pool_windows,
            rank_streams=self.rank_streams,
            world_size=self.cluster.ranks,
        )

    @property
    def allreduce_seconds(self) -> float:
        """Of one all-reduce of the gradient."""
        cluster = self.cluster
        latency = self.rates.allreduce_hop_seconds * math.ceil(math.log2(cluster.ranks))
        if cluster.nodes == 1 or cluster.network_bytes_per_second is None:
            return latency
        sent = 2 * (cluster.nodes - 1) / cluster.nodes * self.network.gradient_bytes
        return latency + sent / cluster.network_bytes_per_second

    @property
    def step_parts(self) -> dict[str, float]:
        """Seconds of what a rank does one after the other in a step, by name."""
        windows, rates = self.rank_windows, self.rates
        return {
            "step overhead": rates.step_overhead_seconds,
            "compute": windows / rates.compute_windows_per_second,
            "stacking": windows / rates.stack_windows_per_second,
            "all-reduce": self.allreduce_seconds,
        }

    @property
    def beside(self) -> dict[str, float]:
        """Windows a second of what goes on beside the steps, by name."""
        corpus, rates, ranks = self.corpus, self.rates, self.cluster.ranks
        rank_share = self.rank_streams / self.stream.num_streams
        rates_beside = {"pool filling": rates.fill_windows_per_second / rank_share}
        if rates.bus_bytes_per_second is not None:
            window_bytes = corpus.num_features * corpus.value_bytes + TABLE_ROW_BYTES
            rates_beside["bus"] = rates.bus_bytes_per_second / window_bytes / rank_share
        store = self.cluster.total_store_bytes_per_second
        resident = ranks == 1 and corpus.num_windows <= self.stream.num_streams * self.stream.pool_windows
        if store is not None and not resident:  # else it is read once
            rates_beside["store"] = store / corpus.stored_bytes_per_window
        return rates_beside


def predict(plan: ClusterPlan) -> Prediction:
    """What `plan` comes to; every figure follows from it by arithmetic."""
    corpus, cluster, stream = plan.corpus, plan.cluster, plan.stream
    batch = min(stream.batch_size, corpus.num_windows)
    step_seconds = sum(plan.step_parts.values())
    carried = {name: batch / seconds for name, seconds in plan.step_parts.items() if seconds} | plan.beside
    achieved = min(batch / step_seconds, *plan.beside.values())
    epoch_seconds = corpus.num_windows / achieved
    rank_bytes = plan.pool.max_bytes + plan.rates.process_bytes + MANIFEST_SHARD_BYTES * corpus.num_shards
    node_bytes = cluster.devices_per_node * rank_bytes
    first_batch = _first_batch_seconds(plan)
    price = None if cluster.node_hour_price is None else cluster.nodes * cluster.node_hour_price * epoch_seconds / 3600
    limits = [
        Limit(name=name, headroom=rate / achieved, windows_per_second=rate, remedy=_REMEDIES[name])
        for name, rate in carried.items()
    ]
    counts = {"streams": stream.num_streams / cluster.ranks, "batch": batch / cluster.ranks}
    if cluster.node_memory_bytes is not None:
        counts["memory"] = cluster.node_memory_bytes / node_bytes
    limits += [
        Limit(name=name, headroom=headroom, windows_per_second=None, remedy=_REMEDIES[name])
        for name, headroom in counts.items()
    ]
    limits.sort(key=lambda limit: limit.headroom)
    return Prediction(
        windows_per_second=achieved,
        rank_step_seconds=step_seconds,
        rank_windows_per_step=plan.rank_windows,
        node_read_bytes_per_second=achieved * corpus.stored_bytes_per_window / cluster.nodes,
        rank_pool_bytes=plan.pool.own_bytes,
        rank_pool_bytes_remote=plan.pool.max_bytes,
        node_memory_bytes=node_bytes,
        first_batch_seconds=first_batch,
        resume_seconds=first_batch + _read_seconds(plan, plan.network.checkpoint_bytes),
        epoch_seconds=epoch_seconds,
        epoch_price=price,
        utterances_per_batch=distinct_in_pools(corpus.lengths, batch, stream.num_streams, stream.pool_windows),
        utterances_per_batch_uniform=distinct_in_permutation(corpus.lengths, batch),
        gradient_bytes=plan.network.gradient_bytes,
        fits_memory=cluster.node_memory_bytes is None or node_bytes <= cluster.node_memory_bytes,
        limits=tuple(limits),
    )


def _first_batch_seconds(plan: ClusterPlan) -> float:
    """From a process with its imports to its first batch: open the dataset, count its windows, fill the first pools.

    All nodes fill their pools at once; each pool takes whole blocks, and each node reads the tables.
    """
    corpus, cluster, rates = plan.corpus, plan.cluster, plan.rates
    seconds = rates.first_batch_seconds + corpus.num_shards * MANIFEST_SHARD_SECONDS
    if plan.stream.edge == "valid":
        seconds += corpus.num_utterances / COUNTED_UTTERANCES_PER_SECOND
        seconds += _read_seconds(plan, UTTERANCE_ROW_BYTES * corpus.num_utterances * cluster.nodes)
    pool = min(plan.stream.pool_windows, -(-corpus.num_windows // plan.stream.num_streams))
    filled = min(pool * plan.rank_streams, corpus.num_windows)
    generation = min((pool + corpus.block_frames) * plan.stream.num_streams, corpus.num_windows)
    reading = _read_seconds(plan, generation * corpus.stored_bytes_per_window)
    return seconds + max(filled / rates.fill_windows_per_second, reading)


def _read_seconds(plan: ClusterPlan, num_bytes: float) -> float:
    """Seconds that all nodes together take to read so much of the store; 0 where its rate is not known."""
    store = plan.cluster.total_store_bytes_per_second
    return 0.0 if store is None else num_bytes / store


_REMEDIES = {
    "step overhead": "a larger --batch_size: more windows for each step's fixed cost",
    "compute": "more or faster devices, mixed precision, or a smaller network",
    "stacking": "more processes for the same windows, or a smaller --in_frames",
    "bus": "float16 shards, or a larger --shuffle_windows: what fits one process crosses it once",
    "all-reduce": "a larger --batch_size: fewer all-reduces; or a faster network",
    "pool filling": "more processes for the same windows",
    "store": "a faster store, --shard_cache on local disks that hold the corpus, or float16 shards",
    "streams": "a larger --num_streams: each rank needs one, and the same number as the others to be balanced",
    "batch": "a larger --batch_size: each rank needs a window",
    "memory": "a smaller --shuffle_windows, float16 shards, or fewer processes a node",
}


def plan_facts(plan: ClusterPlan) -> dict[str, Any]:
    """What the plan was made of, as JSON values."""
    corpus = {name: value for name, value in vars(plan.corpus).items() if name != "lengths"}
    parts = {name: vars(getattr(plan, name)) for name in ("network", "stream", "cluster", "rates")}
    return {"corpus": corpus} | parts
