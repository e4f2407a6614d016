"""What is kept of a remote dataset: not downloaded again, shared, bounded, and never in the way."""

import contextlib
import errno
import io
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from http_store import serve
from test_store import QUICK, assert_same, batches, copy, corpus, expected, kept, options, python  # noqa: F401 - fixtures

from shards import InputError, ShardDataset
from shards.stores import cachedir
from shards.stores.cachedir import CacheFolder

pytestmark = pytest.mark.fast


def test_cached_blocks_are_not_downloaded_again(corpus, expected, tmp_path):
    cached = options(cache_dir=tmp_path / "cache")
    with serve(corpus.folder / "shards") as store:
        assert_same(batches(store.url, cached), expected)
        store.requests.clear()
        assert_same(batches(store.url, cached), expected)
        assert {name for name, _ in store.requests} == {"manifest.json"}
    assert (tmp_path / "cache/spkid-shard-cache/CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_signed_url_has_the_name_of_the_file_before_its_query(corpus, expected, tmp_path, slash):
    signature = "sig=a%2Fb/&exp=1"
    with serve(corpus.folder / "shards", query=signature) as store:
        signed = f"{store.url}{slash}?{signature}"
        assert_same(batches(signed, options()), expected)
        assert_same(batches(signed, options(cache_dir=tmp_path / "cache")), expected)
        assert all(name.endswith(f"?{signature}") for name, _ in store.requests)
        with pytest.raises(InputError) as error:
            ShardDataset(f"{store.url}?sig=other", options(QUICK))
        assert f"{store.url}/manifest.json?***" in str(error.value)
        assert "other" not in str(error.value)


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


# What another user has, or the disk does not take


@contextlib.contextmanager
def as_nobody():
    """The rights of a user who owns nothing, in all threads of this process."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path():
    """A folder that everybody reaches."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def open_shards(corpus):
    """The dataset where everybody reads it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield shutil.copytree(corpus.folder / "shards", Path(folder) / "shards")


def all_but_read_times(path):
    status = path.stat()
    return status.st_mode, status.st_ino, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@as_root
def test_a_warm_cache_of_another_user_is_read_and_left_as_it_is(open_shards, expected, open_path, caplog):
    cached = options(cache_dir=open_path, policy=QUICK)
    with serve(open_shards) as store:
        batches(store.url, cached)
        before = {path: all_but_read_times(path) for path in kept(open_path)}
        store.requests.clear()
        with as_nobody():
            found = batches(store.url, cached)
        assert_same(found, expected)
        assert {name for name, _ in store.requests} == {"manifest.json"}
    assert {path: all_but_read_times(path) for path in kept(open_path)} == before
    assert not caplog.messages


@as_root
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_that_can_not_be_written_is_done_without_and_said_once(
    open_shards, expected, open_path, caplog, ranges
):
    (open_path / "cache").mkdir(mode=0o755)
    cached = options(cache_dir=open_path / "cache", policy=QUICK)
    with serve(open_shards, ranges=ranges) as store, as_nobody():
        if ranges:
            assert_same(batches(store.url, cached), expected)
            assert_same(batches(store.url, cached), expected)
        else:
            with pytest.raises(
                InputError, match=r"whole files only .* can't be kept in .*: Permission denied; set --shard"
            ):
                batches(store.url, cached)
    assert not kept(open_path)
    line = f"{open_path}/cache/spkid-shard-cache: downloads can't be kept there: Permission denied; reading goes on without"
    assert caplog.messages == [line]


@as_root
def test_files_that_another_user_owns_are_not_counted_as_removed(open_shards, expected, open_path, caplog):
    cache = CacheFolder(open_path, 10_000)
    path = cache.path(ShardDataset(open_shards).fingerprint, "shard-000000.tar")
    cache.create(path, 9_900, lambda file: file.write(bytes(9_900)))
    cache.root.chmod(0o777)
    with serve(open_shards) as store, as_nobody():
        assert_same(batches(store.url, options(cache_dir=open_path, cache_bytes=10_000, policy=QUICK)), expected)
    assert kept(open_path) == [path]
    assert [line for line in caplog.messages if "full of files that this user may not remove" in line]


def test_a_full_disk_is_said_once_and_reading_goes_on(corpus, expected, tmp_path, caplog, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cachedir, "new_file", full)
    with serve(corpus.folder / "shards") as store:
        assert_same(batches(store.url, options(cache_dir=tmp_path)), expected)
    assert len([line for line in caplog.messages if "No space left on device" in line]) == 1
    refused = pytest.raises(InputError, match=r"whole files only .*No space left on device; set --shard_cache")
    with serve(corpus.folder / "shards", ranges=False) as store, refused:
        batches(store.url, options(cache_dir=tmp_path))


class FullDisk(io.BytesIO):
    """A file on a disk that is full."""

    def write(self, _data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_download_that_fills_the_disk_is_no_fault_of_the_server(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(cachedir, "new_file", lambda _path: contextlib.nullcontext(FullDisk()))
    with serve(corpus.folder / "shards", ranges=False) as store:
        with pytest.raises(InputError, match=r"whole files only .*can't be kept in .*: No space left on device"):
            batches(store.url, options(cache_dir=tmp_path))
        assert store.count(".tar") <= 1


def test_a_cache_that_is_cleared_while_it_is_used_fills_again(corpus, tmp_path):
    with serve(corpus.folder / "shards") as store:
        data = ShardDataset(store.url, options(cache_dir=tmp_path / "cache"))
        data.read_block(0)
        shutil.rmtree(tmp_path / "cache")
        for _ in range(2):
            store.requests.clear()
            data.read_block(1)
        assert store.requests == []
        assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_the_cache_is_not_waited_for(corpus, expected, tmp_path, kind):
    cached = options(cache_dir=tmp_path / "cache")
    with serve(corpus.folder / "shards") as store:
        batches(store.url, cached)
        for path in kept(tmp_path / "cache"):
            path.unlink()
            {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda one: one.symlink_to("/dev/zero")}[kind](path)
        assert_same(batches(store.url, cached), expected)
