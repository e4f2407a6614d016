"""The ring of windows on a device: the batches of the host, bit for bit, and nothing overwritten before its use."""

import pytest
import torch
from conftest import make_corpus
from test_dataset import LENGTHS

from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.stacking import BatchMemory

OPTIONS = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "rank": 0, "world_size": 1}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """The same utterances stored as float32 and as float16."""
    folder = tmp_path_factory.mktemp("ring")
    layout = {"block_frames": 20, "shard_bytes": 900}
    return {dtype: make_corpus(folder / dtype, LENGTHS, dtype=dtype, **layout) for dtype in ("float32", "float16")}


def open_pair(corpora, *, pool=6, stored="float32", folder=None, **options):
    """A dataset on the host, and the same one placed in a ring."""
    folder = folder or corpora[stored].folder / "shards"
    options = {**OPTIONS, "shuffle_windows": pool * options.get("num_streams", OPTIONS["num_streams"]), **options}
    return WindowDataset(folder, **options), WindowDataset(folder, **options, device="cpu", placed=True)


def placed_batches(data, most, until_epoch):
    """The batches of `data` by `next_steps`, each with the state after it, up to the start of an epoch."""
    while data.epoch < until_epoch:
        steps = data.next_steps(most)
        assert 1 <= len(steps) <= most
        for step in range(len(steps)):
            x, y = steps.batch(step, BatchMemory(data.input_dim, steps.ring.arena.dtype, None, reuse=False))
            yield (x, y), data.state_dict() if step == len(steps) - 1 else None


def assert_same(host, placed, most, epochs=2):
    """`epochs` epochs of both, and their states."""
    batches = placed_batches(placed, most, placed.epoch + epochs)
    for _ in range(epochs):
        for x, y in host:
            (placed_x, placed_y), state = next(batches)
            assert placed_x.dtype == x.dtype
            assert torch.equal(placed_x, x)
            assert torch.equal(placed_y, y)
            assert state is None or state == host.state_dict()
        assert placed.ended_ledger == host.ended_ledger
    assert next(batches, None) is None
    host.close()
    placed.close()


@pytest.mark.parametrize("most", [1, 3, 50])
@pytest.mark.parametrize("pool", [1, 4, 6, 1000])
def test_placed_steps_are_the_batches_of_the_host(corpora, pool, most):
    assert_same(*open_pair(corpora, pool=pool), most)


@pytest.mark.parametrize("edge", ["zero", "edge", "valid"])
@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float16", "stored"), ("float16", "bfloat16")])
def test_edges_and_dtypes_are_those_of_the_host(corpora, edge, stored, dtype):
    assert_same(*open_pair(corpora, stored=stored, edge=edge, dtype=dtype), 4, epochs=1)
    assert_same(*open_pair(corpora, stored="float16", edge=edge, normalize="utterance"), 4, epochs=1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 11, 64])
def test_ranks_place_their_shares(corpora, world_size, batch_size):
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": batch_size}
        assert_same(*open_pair(corpora, **options), 5)


def test_ranks_without_windows_place_empty_steps(corpora):
    options = {"num_streams": 300, "world_size": 200, "in_frames": 30, "batch_size": 1}
    for rank in (0, 150):
        assert_same(*open_pair(corpora, pool=1, rank=rank, **options), 2)


def test_steps_go_on_from_each_position(corpora):
    host, _ = open_pair(corpora)
    whole = list(host)
    _, placed = open_pair(corpora)
    for position in range(len(whole)):
        placed.load_state_dict(host.state_dict(batches=position) | {"epoch": 0})
        rest = [batch for batch, _ in placed_batches(placed, 3, 1)]
        assert len(rest) == len(whole) - position
        for (x, y), (placed_x, placed_y) in zip(whole[position:], rest, strict=True):
            assert torch.equal(x, placed_x)
            assert torch.equal(y, placed_y)
    host.close()
    placed.close()
