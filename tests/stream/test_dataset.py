"""The stream: each window once an epoch, the same global batches on any number of ranks, bad bytes found."""

import shutil

import numpy as np
import pytest
import torch
from conftest import make_corpus, random_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from twins import twin_windows

from shards import InputError, ShardDataset, UsageError
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.dataset import WindowDataset, find_rank
from spkid_dist.mixture import MixedDataset
from spkid_dist.streaming.ledger import Ledger
from spkid_dist.streaming.windows import DatasetWindows

LENGTHS = [7, 1, 12, 3, 9, 30, 2, 5, 18, 4, 11, 6, 1, 25]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Fourteen utterances in two shards of several blocks."""
    corpus = make_corpus(tmp_path_factory.mktemp("unique") / "c", LENGTHS, block_frames=20, shard_bytes=900)
    assert len(corpus.dataset.manifest.shards) == 2
    assert len(corpus.dataset.blocks) > 4
    return corpus


def expected_windows(corpus, context, edge):
    """(window, class) of the whole corpus, sorted."""
    return sorted(
        (tuple(window.tolist()), int(key.split("/")[1][-1]))
        for key, frames in corpus.frames.items()
        for window in twin_windows(frames, context, EDGE_CODES[edge])
    )


def as_pairs(x, y):
    return list(zip(map(tuple, x.tolist()), y.tolist(), strict=True))


def stream(corpus, *, pool_windows=None, **options):
    if pool_windows is not None:
        options["shuffle_windows"] = pool_windows * options["num_streams"]
    return WindowDataset(corpus.folder / "shards", **({"rank": 0, "world_size": 1} | options))


@settings(max_examples=60)
@given(
    st.integers(1, 8),
    st.sampled_from(list(EDGE_CODES)),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 4),
    st.booleans(),
)
def test_every_window_comes_once_an_epoch(corpus, context, edge, batch_size, num_streams, pool, world_size, shuffle):
    num_streams = max(num_streams, world_size)
    expected = expected_windows(corpus, context, edge)
    ranks = [
        stream(
            corpus,
            in_frames=context,
            edge=edge,
            batch_size=batch_size,
            num_streams=num_streams,
            pool_windows=pool,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for _ in range(2):
        seen = []
        steps = list(zip(*ranks, strict=True))
        for number, shares in enumerate(steps):
            pairs = [pair for x, y in shares for pair in as_pairs(x, y)]
            assert len(pairs) == min(batch_size, len(expected) - number * batch_size)
            seen += pairs
        assert len(steps) == len(ranks[0])
        assert sorted(seen) == expected


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_global_batches_are_the_same_sets_for_any_number_of_ranks(corpus, world_size):
    options = {"in_frames": 5, "edge": "zero", "batch_size": 13, "num_streams": 7, "pool_windows": 4}
    single = [sorted(as_pairs(x, y)) for x, y in stream(corpus, **options)]
    ranks = [stream(corpus, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [sorted(p for x, y in shares for p in as_pairs(x, y)) for shares in zip(*ranks, strict=True)]
    assert joined == single


def test_the_order_is_kept_for_good(corpus):
    data = stream(corpus, in_frames=1, edge="zero", batch_size=12, num_streams=3, pool_windows=8)
    first = [int(x[0]) for x in next(iter(data))[0]]
    assert first == [325, 328, 190, 271, 343, 256, 100, 334, 247, 265, 337, 193]


@pytest.mark.parametrize("pool", [7, 1000])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_threads_change_no_batch(corpus, monkeypatch, pool, device):
    options = {"in_frames": 4, "batch_size": 11, "num_streams": 20, "pool_windows": pool, "edge": "zero"}
    expected = [as_pairs(*batch) for batch in stream(corpus, **options)]
    monkeypatch.setattr("spkid_dist.dataset.filling_threads", lambda: 3)
    for module in ("arena", "pool"):
        monkeypatch.setattr(f"spkid_dist.streaming.{module}.WINDOWS_A_THREAD", 10)
    assert [as_pairs(*batch) for batch in stream(corpus, **options, device=device)] == expected


def test_epochs_and_seeds_have_orders_of_their_own(corpus):
    data = stream(corpus, batch_size=1000, in_frames=3)
    (first, _), (second, _) = [batch for _ in range(2) for batch in data]
    other, _ = next(iter(stream(corpus, batch_size=1000, in_frames=3, seed=1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_without_shuffle_windows_come_in_the_order_of_storage(corpus):
    data = stream(corpus, in_frames=1, edge="zero", batch_size=1000, num_streams=1, shuffle=False)
    x, _ = next(iter(data))
    stored = np.concatenate([corpus.dataset.read_block(block).frames for block in range(len(corpus.dataset.blocks))])
    np.testing.assert_array_equal(x.numpy(), stored)


@pytest.mark.parametrize("pool", [4, 1000])
@pytest.mark.parametrize("batches", [0, 1, 3, 7])
def test_a_stream_continues_where_it_was_left(corpus, pool, batches):
    options = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "pool_windows": pool, "edge": "edge"}
    whole = [as_pairs(*batch) for batch in stream(corpus, **options)]
    data = stream(corpus, **options)
    data.load_state_dict(stream(corpus, **options).state_dict(batches=batches))
    assert [as_pairs(*batch) for batch in data] == whole[batches:]
    assert (data.epoch, data.position) == (1, 0)


@pytest.mark.parametrize("workers", [0, 1, pytest.param(2, marks=pytest.mark.long)])
def test_a_dataloader_yields_the_same_batches_in_order(corpus, workers):
    options = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "pool_windows": 6}
    whole = [as_pairs(*batch) for batch in stream(corpus, **options)]
    context = "spawn" if workers else None  # what macOS does, and forking beside threads is deprecated
    loader = DataLoader(
        stream(corpus, **options), batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    assert [as_pairs(*batch) for batch in loader] == whole


def test_batches_are_float32_and_int64_and_safe_to_keep(corpus):
    batches = list(stream(corpus, in_frames=3, batch_size=7, pool_windows=2, num_streams=2))
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches)
    seen = sorted(pair for x, y in batches for pair in as_pairs(x, y))
    assert seen == expected_windows(corpus, 3, "valid")


def test_leaving_an_epoch_early_leaves_no_thread(corpus):
    import threading

    before = set(threading.enumerate())
    batches = iter(stream(corpus, in_frames=2, batch_size=3, num_streams=2, pool_windows=3))
    next(batches)
    batches.close()
    assert set(threading.enumerate()) <= before


def test_short_utterances_are_counted_under_valid(corpus):
    windows = DatasetWindows(corpus.dataset, 5, "valid")
    assert windows.num_short == sum(length < 5 for length in LENGTHS)
    assert windows.total == sum(max(0, length - 4) for length in LENGTHS)


def test_no_window_at_all_is_an_error(corpus):
    with pytest.raises(InputError, match=r"no utterance has 31 frames \(the longest has 30\).*smaller --in_frames"):
        stream(corpus, in_frames=31, edge="valid")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "--batch_size 0: expected 1 or more"),
        ({"shuffle_windows": 0}, "--shuffle_windows 0: expected 1 or more"),
        ({"on_bad_block": "ignore"}, "--on_bad_block ignore: expected one of stop, skip"),
        ({"dtype": "float64"}, "--dtype float64: expected one of float32, stored, bfloat16"),
    ],
)
def test_options_out_of_range_are_refused(corpus, option, message):
    with pytest.raises(UsageError, match=message):
        stream(corpus, **option)


@pytest.mark.parametrize("in_frames", [0, -3])
def test_a_window_has_at_least_one_frame(corpus, in_frames):
    with pytest.raises(UsageError, match=f"--in_frames {in_frames}: a window has at least 1 frame"):
        stream(corpus, in_frames=in_frames)


def test_more_ranks_than_streams_are_refused(corpus):
    with pytest.raises(UsageError, match=r"--num_streams 2: fewer than the 3 ranks.*give 3 or more"):
        stream(corpus, num_streams=2, rank=0, world_size=3)


def test_several_processes_without_a_group_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but there is no process group"):
        find_rank(None, None)


def test_a_flipped_bit_in_any_member_of_a_block_is_found(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder / "shards", folder)
    record = corpus.dataset.blocks[1]
    path = folder / corpus.dataset.manifest.shards[int(record["shard"])].name
    whole = path.read_bytes()
    start = int(record["payload_offset"]) - 512
    for offset in range(start, start + int(record["extent_bytes"]), 97):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{path.name}: block 1, bytes .*checksum"):
            ShardDataset(folder).read_block(1)


def test_a_producers_error_reaches_the_consumer(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder / "shards", folder)
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    stream = WindowDataset(folder, in_frames=1, batch_size=4, num_streams=2, shuffle_windows=16, shuffle=False)
    with pytest.raises(InputError, match=r"shard-000001\.tar: block .*checksum differs"):
        list(stream)


def damaged_copy(corpus, folder, block):
    """A copy of the dataset in which one bit of a block is another; and the windows of that block, C = 1."""
    shutil.copytree(corpus.folder / "shards", folder)
    record = corpus.dataset.blocks[block]
    path = folder / corpus.dataset.manifest.shards[int(record["shard"])].name
    data = bytearray(path.read_bytes())
    data[int(record["payload_offset"]) + 130] ^= 1
    path.write_bytes(data)
    return {tuple(row) for row in corpus.dataset.read_block(block).frames.tolist()}


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("pool", [3, 1000])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_bad_block_is_passed_over_where_that_is_asked_for(corpus, tmp_path, world_size, pool, device):
    lost = damaged_copy(corpus, tmp_path / "copy", 2)
    options = {"in_frames": 1, "batch_size": 9, "num_streams": 4, "shuffle_windows": 4 * pool}
    whole = {pair for x, y in WindowDataset(corpus.folder / "shards", **options) for pair in as_pairs(x, y)}
    ranks = [
        WindowDataset(
            tmp_path / "copy", **options, on_bad_block="skip", device=device, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))  # all ranks in step
    assert len(steps) == len(ranks[0])
    found = [pair for shares in steps for x, y in shares for pair in as_pairs(x, y)]
    assert sorted(found) == sorted(pair for pair in whole if pair[0] not in lost)
    assert sum(rank.skipped_windows for rank in ranks) == len(lost)
    reasons = [reason for rank in ranks for block, reason in rank.bad_blocks.items() if block == 2]
    assert reasons
    assert all("block 2, bytes" in reason and "checksum" in reason for reason in reasons)
    assert Ledger.join(rank.ended_ledger for rank in ranks) == Ledger.of_epoch(len(whole))
    for rank in ranks:
        rank.close()


def test_an_error_of_the_next_pool_is_raised_before_that_pool_is_reached(corpus, tmp_path):
    damaged_copy(corpus, tmp_path / "copy", len(corpus.dataset.blocks) - 1)
    options = {"in_frames": 1, "edge": "zero", "batch_size": 1, "num_streams": 1, "shuffle": False}
    data = WindowDataset(tmp_path / "copy", **options, shuffle_windows=80)
    batches = iter(data)
    next(batches)
    data._cursor._stream._next._thread.join()
    with pytest.raises(InputError, match="checksum"):
        next(batches)
    assert data.position == 1


@pytest.mark.device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("pool", [3, 1000])
def test_batches_stacked_on_a_device_equal_those_of_the_host_bit_for_bit(tmp_path, dtype, pool):
    corpus = make_corpus(tmp_path / "c", LENGTHS, block_frames=20, dtype=dtype)
    options = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "pool_windows": pool}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, theirs = stream(corpus, **options, device=device), stream(corpus, **options)
    for _ in range(2):
        for (x, y), (host_x, host_y) in zip(ours, theirs, strict=True):
            assert x.device.type == device
            assert torch.equal(x.cpu(), host_x)
            assert torch.equal(y.cpu(), host_y)
    ours.close()
    theirs.close()


def test_windows_come_as_stored_where_that_is_asked_for(tmp_path):
    corpus = make_corpus(tmp_path / "c", LENGTHS, dtype="float16")
    stored, wide = stream(corpus, in_frames=2, dtype="stored"), stream(corpus, in_frames=2)
    for (x, _), (wide_x, _) in zip(stored, wide, strict=True):
        assert x.dtype == torch.float16
        assert torch.equal(x.float(), wide_x)
    stored.close()
    wide.close()


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(("stored", "normalize"), [("float32", "none"), ("float16", "none"), ("float32", "utterance")])
def test_bfloat16_windows_are_the_float32_ones_rounded(tmp_path, stored, normalize, device):
    shards = random_dataset(tmp_path / "shards", block_frames=40, dtype=stored)
    options = {"in_frames": 3, "batch_size": 64, "normalize": normalize, "num_streams": 4, "shuffle_windows": 100}
    short = WindowDataset(shards, **options, dtype="bfloat16", device=device, rank=0, world_size=1)
    wide = WindowDataset(shards, **options, rank=0, world_size=1)
    for (x, y), (wide_x, wide_y) in zip(short, wide, strict=True):
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, wide_x.to(torch.bfloat16))
        assert torch.equal(y, wide_y)
    if device is None and wide.memory.of(1)[0].dtype == torch.float32:
        assert short.memory_bound < wide.memory_bound
    short.close()
    wide.close()


def test_a_truncated_shard_is_found(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder / "shards", folder)
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(InputError, match=r"shard-000000\.tar: \d+ bytes, but the manifest says \d+"):
        ShardDataset(folder).read_block(0)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # of Python 3.12
@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_a_loader_that_accelerate_prepared_is_refused(corpus, method):
    from accelerate import Accelerator

    options = {"num_workers": 1, "multiprocessing_context": method} if method else {}
    loader = Accelerator(cpu=True).prepare(DataLoader(stream(corpus, in_frames=2), batch_size=None, **options))
    with pytest.raises(UsageError, match=r"went through accelerator\.prepare.*iterate over the dataset itself"):
        list(loader)


def test_set_epoch_goes_to_the_start_of_an_epoch(corpus):
    options = {"in_frames": 4, "batch_size": 11, "num_streams": 5, "pool_windows": 6}
    straight = stream(corpus, **options)
    epochs = [[as_pairs(*batch) for batch in straight] for _ in range(3)]
    data = stream(corpus, **options)
    for epoch in (2, 0, 1):
        data.set_epoch(epoch)
        assert [as_pairs(*batch) for batch in DataLoader(data, batch_size=None)] == epochs[epoch]


@pytest.mark.parametrize("name", ["blocks.npy", "utterances.npy"])
def test_a_flipped_bit_in_a_table_is_found_when_the_dataset_is_opened(corpus, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(corpus.folder / "shards", folder)
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: damaged: its digest is not that of the manifest"):
        ShardDataset(folder)


def test_a_dataset_says_what_it_is(corpus):
    data = stream(corpus, in_frames=4, batch_size=11)
    assert (data.num_features, data.speakers) == (3, ["spk0", "spk1"])
    for part in (
        f"{corpus.folder / 'shards'}: {data.num_windows} windows of 4 x 3 values, 2 speakers",
        "batch_size=11",
        "epoch 0",
    ):
        assert part in repr(data)
    mixed = MixedDataset([data, stream(corpus, in_frames=4)], [2, 1])
    assert (mixed.num_features, mixed.speakers) == (3, ["spk0", "spk1"])
    assert f"2 x {data!r}; 1 x " in repr(mixed)
