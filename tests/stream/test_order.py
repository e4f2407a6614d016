"""The epoch order: each index once, shares that follow from arithmetic, orders that never change."""

import numpy as np
from benchmark_runs import run_benchmark
from hypothesis import given
from hypothesis import strategies as st

from spkid_dist.draws import generator_key, generator_keys, permutation
from spkid_dist.order import EpochLine, EpochOrder, RankShare

orders = st.builds(EpochOrder, st.integers(0, 400), st.integers(1, 9), st.integers(1, 20))


class Counts:
    """Window counts of made-up shards."""

    def __init__(self, shards):
        self.shards = [np.array(blocks, np.int64) for blocks in shards]
        self.per_shard = np.array([blocks.sum() for blocks in self.shards], np.int64)
        self.first = np.cumsum([0] + [len(blocks) for blocks in self.shards])

    def blocks_of(self, shard):
        return range(self.first[shard], self.first[shard + 1])

    def of_blocks(self, blocks):
        return np.concatenate(self.shards)[blocks.start : blocks.stop]


@given(orders)
def test_streams_cut_the_line_without_gap_or_overlap(order):
    borders = [order.stream_start(s) for s in range(order.num_streams + 1)]
    assert borders[0] == 0
    assert borders[-1] == order.num_windows
    lengths = np.diff(borders)
    assert lengths.max() - lengths.min() <= 1
    assert (np.diff(lengths) <= 0).all()


@given(orders)
def test_pools_of_a_stream_cut_its_interval(order):
    for s in range(order.num_streams):
        pools = [order.pool_interval(s, g) for g in range(order.num_generations)]
        positions = [p for first, last in pools for p in range(first, last)]
        assert positions == list(range(order.stream_start(s), order.stream_start(s + 1)))


@given(orders, st.integers(1, 9), st.data())
def test_shares_of_the_ranks_are_disjoint_and_complete(order, world_size, data):
    first = data.draw(st.integers(0, order.num_windows))
    last = data.draw(st.integers(first, order.num_windows))
    expected = [
        sum(1 for i in range(first, last) if i % order.num_streams % world_size == r) for r in range(world_size)
    ]
    shares = [RankShare(order, rank, world_size) for rank in range(world_size)]
    assert [share.consumed_before(last) - share.consumed_before(first) for share in shares] == expected
    assert sorted(s for share in shares for s in share.streams) == list(range(order.num_streams))


shard_lists = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5)


@given(shard_lists, st.integers(0, 3), st.integers(0, 3), st.booleans(), st.integers(1, 7))
def test_a_line_has_each_window_of_each_block_once_however_it_is_read(shards, seed, epoch, shuffle, step):
    counts = Counts(shards)
    total = int(counts.per_shard.sum())
    line = EpochLine(counts, seed, epoch, shuffle)
    windows = []
    for first in range(0, total, step):
        for segment in line.segments(first, min(first + step, total)):
            windows += [(segment.block, w) for w in range(segment.first, segment.last)]
    per_block = np.concatenate(counts.shards)
    assert sorted(windows) == [(b, w) for b, n in enumerate(per_block) for w in range(n)]
    first_ids = np.cumsum([0, *per_block])
    pieces = [segment for first in range(total) for segment in line.segments(first, first + 1)]
    assert all(segment.first_id == first_ids[segment.block] + segment.first for segment in pieces)
    whole = [
        (s.block, w) for s in EpochLine(counts, seed, epoch, shuffle).segments(0, total) for w in range(s.first, s.last)
    ]
    assert windows == whole
    if not shuffle:
        assert windows == sorted(windows)


def test_a_line_keeps_its_golden_order():
    line = EpochLine(Counts([[2, 1], [3], [1, 1, 1]]), seed=7, epoch=1, shuffle=True)
    blocks = [(segment.block, segment.first, segment.last) for segment in line.segments(0, 9)]
    assert blocks == [(5, 0, 1), (3, 0, 1), (4, 0, 1), (2, 0, 3), (0, 0, 2), (1, 0, 1)]


def test_keys_of_neighbouring_generators_differ():
    keys = {generator_key(seed, d, a, b) for seed in range(8) for d in range(1, 4) for a in range(8) for b in range(8)}
    assert len(keys) == 8 * 3 * 8 * 8
    assert generator_key(3, 2, 1, 0) == 14059882647929795700


def test_epochs_and_seeds_shuffle_differently():
    assert permutation(generator_key(0, 1, 0), 20).tolist() != permutation(generator_key(0, 1, 1), 20).tolist()
    assert permutation(generator_key(0, 1, 0), 20).tolist() != permutation(generator_key(1, 1, 0), 20).tolist()


def test_a_rank_of_4096_plans_and_seeks_in_10_to_the_12_windows_in_a_second_and_200_megabytes(tmp_path):
    """As users cut such a corpus: 1.2e8 blocks of 8,192 frames, in 3e5 shards of 256 MB or 1.2e6 of 64 MB."""
    result = run_benchmark("bench_order.py", ("--repeats", 1, "--shapes", 2), tmp_path)
    assert (result["windows"], result["ranks"]) == (10**12, 4096)
    assert len(result["rows"]) == 2
    for row in result["rows"].values():
        assert row["blocks"] > 10**8
        assert row["seconds"] < 1
        assert 0 < row["megabytes"] < 200


@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40), min_size=1), st.integers(0, 2**40))
def test_many_keys_are_those_made_one_by_one(seed, parts, last):
    keys = generator_keys(generator_key(seed, 3), np.array(parts), last)
    assert keys.tolist() == [generator_key(seed, 3, part, last) for part in parts]
