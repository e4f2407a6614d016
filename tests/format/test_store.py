"""Datasets at URLs: the same batches as from the local folder, whatever the network does; or a clear error in time."""

import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import fsspec
import numpy as np
import pytest
import torch
from conftest import make_corpus
from http_store import serve
from torch.utils.data import DataLoader

from shards import InputError, RetryPolicy, ShardDataset, StoreOptions, UsageError
from shards.layout import BLOCKS_NAME, UTTERANCES_NAME, BlockArrays
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.train import train_model

LENGTHS = 2 * [7, 1, 12, 3, 9, 30, 2, 5, 18, 4, 11, 6, 1, 25, 8, 40, 3, 17, 22, 9, 31, 5, 14, 2]
QUICK = RetryPolicy(attempts=3, timeout_seconds=1.0, total_seconds=3.0)
PATIENT = RetryPolicy(attempts=30, timeout_seconds=1.0, total_seconds=60.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Some 25 blocks in four shards."""
    corpus = make_corpus(tmp_path_factory.mktemp("store") / "c", LENGTHS, block_frames=12, shard_bytes=2000)
    assert len(corpus.dataset.manifest.shards) == 4
    assert len(corpus.dataset.blocks) > 20
    return corpus


@pytest.fixture
def copy(corpus, tmp_path):
    """A copy of the dataset that a test may damage."""
    return shutil.copytree(corpus.folder / "shards", tmp_path / "copy")


def options(policy=PATIENT, **changes):
    return StoreOptions(**{"retry": policy, "readers": 4} | changes)


def batches(place, store=None):
    windows = {"in_frames": 5, "batch_size": 11, "num_streams": 3, "shuffle_windows": 48, "rank": 0, "world_size": 1}
    with closing(WindowDataset(place, store=store, **windows)) as data:
        return list(data)


def assert_same(found, expected):
    assert len(found) == len(expected) > 10
    for (x, y), (expected_x, expected_y) in zip(found, expected, strict=True):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


def kept(folder):
    """Files that the cache holds, without its mark."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]


@pytest.fixture(scope="module")
def expected(corpus):
    return batches(corpus.folder / "shards")


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("place", ["http", "memory", "file"])
def test_a_url_gives_the_same_batches_as_the_folder(corpus, expected, place):
    folder = corpus.folder / "shards"
    with serve(folder) as store:
        if place == "memory":
            fsspec.filesystem("memory").put(f"{folder}/", "/train/", recursive=True)
        url = {"http": store.url, "memory": "memory://train", "file": f"file://{folder}"}[place]
        assert_same(batches(url, options()), expected)


def test_blocks_are_read_as_ranges_of_exactly_their_bytes(corpus):
    blocks = corpus.dataset.blocks
    with serve(corpus.folder / "shards") as store:
        data = ShardDataset(store.url, options())
        assert all(isinstance(arrays, BlockArrays) for arrays in data.try_blocks([3, 1, 3]))
    starts = blocks["payload_offset"] - 512
    ranges = [f"bytes={starts[b]}-{starts[b] + blocks['extent_bytes'][b] - 1}" for b in (1, 3, 3)]
    assert sorted(r for name, r in store.requests if name.endswith(".tar")) == sorted(ranges)


def test_failing_cut_wrong_and_slow_answers_change_nothing(corpus, expected):
    shares = {"failing": 0.1, "cut": 0.1, "flipped": 0.05, "slow": 0.03, "slow_seconds": 1.5}
    with serve(corpus.folder / "shards", **shares) as store:
        assert_same(batches(store.url, options()), expected)
        assert store.faults > 5


def test_many_blocks_are_asked_for_at_once_but_not_too_many(corpus):
    both = threading.Barrier(2, timeout=20)
    with serve(corpus.folder / "shards") as store:
        data = ShardDataset(store.url, options(readers=2))
        first = data.read_block(0)
        store.requests.clear()
        met = []

        def wait_for_another(_name, _range):
            if not met:
                both.wait()  # broken, and the request fails, where nobody else asks meanwhile
                met.append(True)

        store.before_body = wait_for_another
        reads = data.try_blocks(range(len(data.blocks)))
        np.testing.assert_array_equal(next(reads).frames, first.frames)
        reads.close()
        assert met
        assert 2 <= len(store.requests) <= 2 * 2


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_server_without_ranges_needs_a_cache(corpus, expected, tmp_path, with_cache):
    with serve(corpus.folder / "shards", ranges=False) as store:
        if not with_cache:
            with pytest.raises(InputError, match=r"tar: the server sends whole files only.*give --shard_cache"):
                batches(store.url, options())
            return
        cached = options(cache_dir=tmp_path / "cache")
        assert_same(batches(store.url, cached), expected)
        assert store.count(".tar") == 4  # each shard once
        store.requests.clear()
        assert_same(batches(store.url, cached), expected)
        assert store.count(".tar") == 0


def test_whole_files_that_come_damaged_are_downloaded_again(corpus, expected, tmp_path):
    with serve(corpus.folder / "shards", ranges=False, failing=0.2, cut=0.2, flipped=0.1) as store:
        assert_same(batches(store.url, options(cache_dir=tmp_path / "cache")), expected)
        assert store.faults > 2


def test_a_store_that_is_gone_is_an_error_in_time(corpus):
    with serve(corpus.folder / "shards") as store:
        data = ShardDataset(store.url, options(QUICK))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"the store failed \(attempts: \d+, in .* s\), lastly with (Client|Server)"):
        list(data.try_blocks(range(10)))
    assert time.monotonic() - began < QUICK.total_seconds + QUICK.timeout_seconds + 1


def test_a_store_that_never_answers_is_an_error_in_time():
    policy = RetryPolicy(attempts=100, timeout_seconds=0.3, total_seconds=1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # connections are accepted, and nothing is said
        began = time.monotonic()
        with pytest.raises(InputError, match=r"manifest\.json: the store failed .*Timeout"):
            ShardDataset(f"http://127.0.0.1:{listening.getsockname()[1]}", options(policy))
        assert time.monotonic() - began < policy.total_seconds + 1


def test_what_can_not_succeed_is_not_tried_again(copy):
    (copy / "shard-000001.tar").unlink()
    with serve(copy) as store:
        with pytest.raises(InputError, match=r"nothing/manifest\.json: there is no such file; give the URL"):
            ShardDataset(f"{store.url}/nothing", options())
        assert len(store.requests) == 1
        data = ShardDataset(store.url, options())
        block = int(np.flatnonzero(data.blocks["shard"] == 1)[0])
        with pytest.raises(InputError, match=r"shard-000001\.tar: there is no such file, but the dataset has one"):
            data.read_block(block)


def test_a_flipped_bit_in_the_store_is_found(copy):
    with serve(copy) as store:
        data = ShardDataset(store.url, options())
        path = copy / "shard-000000.tar"
        damaged = bytearray(path.read_bytes())
        damaged[1000] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"shard-000000\.tar: block 0, bytes 0 to \d+: not what was written"):
            data.read_block(0)
        assert store.count("shard-000000.tar") == 3  # it might have been the transfer


@pytest.mark.parametrize("name", ["manifest.json", BLOCKS_NAME, UTTERANCES_NAME])
@pytest.mark.parametrize("with_cache", [False, True])
def test_a_flipped_bit_in_manifest_or_tables_is_found(copy, tmp_path, name, with_cache):
    damaged = bytearray((copy / name).read_bytes())
    damaged[-5] ^= 1
    (copy / name).write_bytes(damaged)
    with serve(copy) as store, pytest.raises(InputError, match=rf"{name}: damaged: "):
        ShardDataset(store.url, options(cache_dir=tmp_path / "cache" if with_cache else None))
    assert store.count(name) == 3


def test_a_truncated_shard_in_the_store_is_found(copy):
    path = copy / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with serve(copy) as store:
        data = ShardDataset(store.url, options(QUICK))
        with pytest.raises(InputError, match=r"shard-000000\.tar: block 0, .*not what was written"):
            data.read_block(0)
        with pytest.raises(InputError, match=r"shard-000000\.tar: the store refuses: .*416"):
            data.read_block(1)


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(UsageError, match="nosuch://x: can't be opened: Protocol not known"):
        ShardDataset("nosuch://x")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # beside threads, which is what is tested here
def test_workers_of_a_dataloader_read_from_the_store_themselves(corpus, expected, tmp_path):
    windows = {"in_frames": 5, "batch_size": 11, "num_streams": 3, "shuffle_windows": 48, "rank": 0, "world_size": 1}
    with serve(corpus.folder / "shards") as store:
        data = WindowDataset(store.url, store=options(cache_dir=tmp_path / "cache"), **windows)
        data.data.read_block(0)  # the parent's file system, threads and locks are in use
        loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
        assert_same(list(loader), expected)


def test_an_open_dataset_is_pickled_with_its_options(corpus):
    with serve(corpus.folder / "shards") as store:
        data = ShardDataset(store.url, options())
        again = pickle.loads(pickle.dumps(data))  # noqa: S301
        assert again.fingerprint == data.fingerprint
        np.testing.assert_array_equal(again.read_block(2).frames, data.read_block(2).frames)


# The cache


# Commands


def test_a_command_gives_the_same_batches(corpus, expected, tmp_path):
    place = f"pipe:cat {shlex.quote(str(corpus.folder / 'shards'))}/{{name}}"
    assert_same(batches(place, options(cache_dir=tmp_path / "cache")), expected)


def test_a_command_that_fails_is_an_error_with_what_it_said(tmp_path):
    place = "pipe:echo no such bucket >&2; test {name} = x"
    with pytest.raises(
        InputError, match=r"pipe:echo \*\*\* manifest\.json: the command ended with status 1: no such bucket"
    ):
        ShardDataset(place, options(cache_dir=tmp_path / "cache"))


def test_a_command_that_says_nothing_is_ended(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"the command wrote nothing for \d+ s and was ended"):
        ShardDataset("pipe:sleep 100; echo {name}", options(QUICK, cache_dir=tmp_path / "cache"))
    assert time.monotonic() - began < 10


def test_a_command_needs_a_place_for_the_name_and_a_cache(tmp_path):
    with pytest.raises(UsageError, match=r"expected \{name\} in the command"):
        ShardDataset("pipe:cat manifest.json", options(cache_dir=tmp_path))
    with pytest.raises(UsageError, match=r"need a cache folder: --shard_cache"):
        ShardDataset("pipe:cat {name}", options())


# Manifests that lie


# Local shards


def test_a_shard_that_is_truncated_while_it_is_used_is_an_error_not_a_crash(copy):
    data = ShardDataset(copy)
    arrays = data.read_block(0)
    expected = arrays.frames.copy()
    os.truncate(copy / "shard-000000.tar", 100)
    np.testing.assert_array_equal(arrays.frames, expected)
    with pytest.raises(InputError, match=r"shard-000000\.tar: truncated since it was opened: it ends before byte"):
        data.read_block(0)


# Commands of the command line


def test_training_on_urls_equals_training_on_folders(corpus, tmp_path):
    shards = str(corpus.folder / "shards")
    common = {"in_frames": 5, "epoch": 1, "hsize": 8, "batch_size": 50}
    with serve(corpus.folder / "shards") as store:
        urls = {"tr_shards": store.url, "va_shards": store.url, "shard_cache": tmp_path / "cache"}
        remote = train_model(TrainConfig(save_path=tmp_path / "remote", **urls, **common))
    local = train_model(TrainConfig(save_path=tmp_path / "local", tr_shards=shards, va_shards=shards, **common))
    assert (remote.va_loss, remote.va_acc) == (local.va_loss, local.va_acc)
    assert json.loads((tmp_path / "remote/train.opts").read_text())["tr_shards"] == store.url
    assert kept(tmp_path / "cache")


def test_info_of_a_url(corpus):
    code = "from spkid_dist.commands.cli import main; main()"
    with serve(corpus.folder / "shards") as store:
        out, error = python(code, "info", store.url, "--json").communicate(timeout=120)
    assert json.loads(out)["fingerprint"] == corpus.dataset.fingerprint, error
