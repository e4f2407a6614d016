"""What is kept of a remote dataset: not downloaded again, shared, bounded, and never in the way."""

import os
import threading

import pytest
from http_store import serve
from test_store import QUICK, assert_same, batches, copy, corpus, expected, kept, options, python  # noqa: F401 - fixtures

from shards import InputError, ShardDataset

pytestmark = pytest.mark.fast


def test_cached_blocks_are_not_downloaded_again(corpus, expected, tmp_path):
    cached = options(cache_dir=tmp_path / "cache")
    with serve(corpus.folder / "shards") as store:
        assert_same(batches(store.url, cached), expected)
        store.requests.clear()
        assert_same(batches(store.url, cached), expected)
        assert {name for name, _ in store.requests} == {"manifest.json"}
    assert (tmp_path / "cache/spkid-shard-cache/CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes(len(data)), lambda _data: b""])
def test_a_damaged_file_of_the_cache_is_fetched_again(corpus, expected, tmp_path, damage):
    cached = options(cache_dir=tmp_path / "cache")
    with serve(corpus.folder / "shards") as store:
        batches(store.url, cached)
        files = kept(tmp_path / "cache")
        whole = {path: path.read_bytes() for path in files}
        for path, data in whole.items():
            path.write_bytes(damage(data))
        assert_same(batches(store.url, cached), expected)
    assert {path: path.read_bytes() for path in kept(tmp_path / "cache")} == whole


READ_ALL = """
import sys
from pathlib import Path
import numpy as np
from shards import ShardDataset, StoreOptions
url, local, cache, limit, order = sys.argv[1:]
expected = ShardDataset(local)
data = ShardDataset(url, StoreOptions(cache_dir=Path(cache), cache_bytes=int(limit), readers=2))
most = 0
for _ in range(3):
    blocks = np.random.default_rng(int(order)).permutation(len(data.blocks)).tolist()
    for block, arrays in zip(blocks, data.try_blocks(blocks), strict=True):
        assert arrays.frames.tobytes() == expected.read_block(block).frames.tobytes()
        sizes = []
        for path in Path(cache, "spkid-shard-cache").glob("*/*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                pass
        most = max(most, sum(sizes))
print(most)
"""


def test_two_processes_share_a_cache_that_is_smaller_than_the_dataset(corpus, tmp_path):
    shards = corpus.dataset.manifest.shards
    largest = int(corpus.dataset.blocks["extent_bytes"].max())
    limit = sum(shard.bytes for shard in shards) // 2
    cache = tmp_path / "cache"
    names = ("mine.tar", "spkid-shard-cache/notes.txt", "spkid-shard-cache/00/precious", "spkid-shard-cache/01/x.tmp-y")
    foreign = [cache / name for name in names]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10 * limit)
        os.utime(path, (0, 0))  # unread for longest
    with serve(corpus.folder / "shards") as store:
        both = [python(READ_ALL, store.url, corpus.folder / "shards", cache, limit, order) for order in (1, 2)]
        outcomes = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    foreign_bytes = 2 * 10 * limit  # of those that lie where the processes looked
    most = max(int(out) for out, _ in outcomes) - foreign_bytes
    assert limit // 2 < most <= limit + 4 * largest  # a file in flight for each reader
    assert all(path.read_bytes() == b"x" * 10 * limit for path in foreign)
    files = [path for path in kept(cache) if path not in foreign]
    assert sum(path.stat().st_size for path in files) <= limit


def test_the_longest_unread_goes_first(corpus, tmp_path):
    data = corpus.dataset
    with serve(corpus.folder / "shards") as store:
        sizes = [int(size) for size in data.blocks["extent_bytes"]]
        tables = sum(info.bytes for info in data.manifest.tables.values())
        limit = 4 * (tables + sum(sizes[:4]))
        remote = ShardDataset(store.url, options(cache_dir=tmp_path / "cache", cache_bytes=limit))
        for block in (0, 1, 2, 3):
            remote.read_block(block)
        for rest in range(4, len(sizes)):
            remote.read_block(rest)
            remote.read_block(1)
        store.requests.clear()
        remote.read_block(1)
        assert store.requests == []
        remote.read_block(0)
        assert len(store.requests) == 1


OPEN_AND_READ = """
import sys
from pathlib import Path
from shards import ShardDataset, StoreOptions
ShardDataset(sys.argv[1], StoreOptions(cache_dir=Path(sys.argv[2]))).read_block(0)
"""


def test_what_a_killed_process_left_blocks_nothing_and_goes(corpus, expected, tmp_path):
    cache = tmp_path / "cache"
    with serve(corpus.folder / "shards", ranges=False) as store:
        in_the_middle = threading.Event()

        def stall(name, wanted):
            if name.endswith(".tar") and wanted is None:
                in_the_middle.set()
                store.stopping.wait(20)

        store.before_body = stall
        process = python(OPEN_AND_READ, store.url, cache)
        assert in_the_middle.wait(60)
        process.kill()
        process.communicate()
        left = [path for path in kept(cache) if ".tmp-" in path.name]
        assert left
        store.before_body = None
        assert_same(batches(store.url, options(cache_dir=cache)), expected)
        assert [path for path in kept(cache) if ".tmp-" in path.name] == []


def test_a_cache_smaller_than_a_shard_is_refused_where_whole_shards_are_needed(corpus, tmp_path):
    limit = max(info.bytes for info in corpus.dataset.manifest.tables.values())
    with serve(corpus.folder / "shards", ranges=False) as store:
        data = ShardDataset(store.url, options(cache_dir=tmp_path / "cache", cache_bytes=limit))
        with pytest.raises(InputError, match=r"does not fit the limit of .* give a larger --shard_cache_bytes"):
            data.read_block(0)


def test_a_cache_that_can_not_be_made_is_one_clear_error(corpus, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/spkid-shard-cache: can't create this folder"):
        ShardDataset(f"file://{corpus.folder}/shards", options(cache_dir=tmp_path / "file"))
