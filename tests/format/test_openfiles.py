"""Files are read by a few descriptors for the whole process: by threads, by forked processes, and under a low limit."""

import os
import resource
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_corpus

from shards import InputError, ShardDataset
from shards.stores import openfiles
from shards.stores.openfiles import OPEN_FILES, OpenFolder

LIMIT = 64


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Eight datasets of some ten shards each."""
    folder = tmp_path_factory.mktemp("open")
    return [
        make_corpus(
            folder / f"c{n}", [30] * 20, num_features=4, first_value=1 + 10_000 * n, block_frames=60, shard_bytes=1500
        )
        for n in range(8)
    ]


@pytest.fixture
def few_files(monkeypatch):
    """At most three descriptors stay open."""
    monkeypatch.setattr(openfiles, "MOST_OPEN", 3)


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def under_limit(code, *arguments):
    """Run Python code in a process that may have so many files open."""
    command = ["bash", "-c", f'ulimit -n {LIMIT}; exec "$0" "$@"', sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_parts_of_files_are_what_they_hold(tmp_path):
    data = os.urandom(100_000)
    (tmp_path / "x").write_bytes(data)
    files = OpenFolder(tmp_path)
    assert files.size("x") == len(data)
    assert files.read("x", 7, 7) == b""
    assert files.read("x", 17, 99_000) == data[17:99_000]
    assert files.read("x", 99_990, 100_010) == data[99_990:]
    with pytest.raises(FileNotFoundError):
        files.read("y", 0, 1)


def test_a_read_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    data = os.urandom(1000)
    (tmp_path / "x").write_bytes(data)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, start: pread(descriptor, min(size, 99), start))
    assert OpenFolder(tmp_path).read("x", 3, 1000) == data[3:]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    if kind == "pipe":
        os.mkfifo(tmp_path / "x")
    elif kind == "folder":
        (tmp_path / "x").mkdir()
    else:
        (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        OpenFolder(tmp_path).read("x", 0, 10)


@pytest.mark.usefixtures("few_files")
def test_descriptors_stay_few_and_go_with_their_dataset(corpora):
    before = descriptors() - len(OPEN_FILES)
    data = [ShardDataset(corpus.folder / "shards") for corpus in corpora]
    for dataset in data:
        for block in range(len(dataset.blocks)):
            dataset.read_block(block)
            assert descriptors() <= before + 3
    del data, dataset
    assert descriptors() - len(OPEN_FILES) == before


@pytest.mark.usefixtures("few_files")
def test_threads_that_read_many_shards_by_few_descriptors_get_the_right_bytes(corpora):
    """Descriptors are closed and their numbers used again, while others read."""
    data = [ShardDataset(corpus.folder / "shards") for corpus in corpora]
    expected = [[dataset.read_block(block).frames for block in range(len(dataset.blocks))] for dataset in data]
    places = [(n, block) for n, dataset in enumerate(data) for block in range(len(dataset.blocks))] * 5
    np.random.default_rng(0).shuffle(places)
    with ThreadPoolExecutor(8) as pool:
        for (n, block), arrays in zip(places, pool.map(lambda at: data[at[0]].read_block(at[1]), places), strict=True):
            np.testing.assert_array_equal(arrays.frames, expected[n][block])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_reads_on_though_a_thread_held_the_lock(corpora):
    data = ShardDataset(corpora[0].folder / "shards")
    expected = data.read_block(1).frames.copy()
    held, forked = threading.Event(), threading.Event()

    def hold():
        with OPEN_FILES._lock:
            held.set()
            forked.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    process = os.fork()
    if process == 0:
        os._exit(0 if np.array_equal(data.read_block(1).frames, expected) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(process, 0)[1] == 0


def test_a_replaced_shard_is_read_as_it_was_and_anew_by_who_opens_it_anew(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    old = OpenFolder(tmp_path)
    assert old.read("x", 0, 3) == b"old"
    (tmp_path / "y").write_bytes(b"new")
    (tmp_path / "y").replace(tmp_path / "x")
    assert old.read("x", 0, 3) == b"old"
    assert OpenFolder(tmp_path).read("x", 0, 3) == b"new"


MIXTURE = """
import sys
from spkid_dist import MixedDataset, WindowDataset
data = MixedDataset([WindowDataset(place, in_frames=5) for place in sys.argv[1:]], [1] * 8)
print(sum(len(y) for _, y in data))
"""


def test_a_mixture_of_eight_datasets_streams_with_64_files_open(corpora):
    done = under_limit(MIXTURE, *(corpus.folder / "shards" for corpus in corpora))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 8 * 20 * (30 - 5 + 1)


def test_training_and_scoring_work_with_64_files_open(corpora, tmp_path):
    command = "import sys; from spkid_dist.commands.cli import main; sys.argv[0] = 'spkid'; main()"
    places = [corpus.folder / "shards" for corpus in corpora[:3]]
    small = ("--in_frames", 5, "--epoch", 1, "--hsize", 8, "--batch_size", 100, "--save_path", tmp_path / "model")
    done = under_limit(command, "train", "--tr_shards", places[0], "--va_shards", places[1], *small)
    assert done.returncode == 0, done.stderr
    scored = (
        "--model",
        tmp_path / "model",
        "--te_shards",
        places[2],
        "--log_file",
        tmp_path / "r.log",
        "--no_pictures",
    )
    done = under_limit(command, "score", *scored)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "r.log").read_text().splitlines()) == 20


RUN_OUT = """
import os, sys
from shards import InputError, ShardDataset
data = ShardDataset(sys.argv[1])
for block in range(len(data.blocks)):
    data.read_block(block)
others = []
try:
    while True:
        others.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
shard = data.manifest.num_blocks - 1
data.read_block(shard), data.read_block(0)  # by descriptors that are there
os.close(others.pop())
data.read_block(data.blocks["shard"].tolist().index(3))  # one is left: others of ours are given up for it
others.append(os.open("/dev/null", os.O_RDONLY))
for call in (lambda: ShardDataset(sys.argv[1]), lambda: [data.read_block(block) for block in range(len(data.blocks))]):
    try:
        while True:
            others.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        call()
    except InputError as error:
        print(error)
"""


def test_where_no_file_can_be_opened_the_message_says_what_to_raise(corpora):
    done = under_limit(RUN_OUT, corpora[0].folder / "shards")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines, done
    for line in lines:
        assert f"Too many open files: this process may have {LIMIT} at once; raise that limit: ulimit -n 1024" in line
        assert "restore" not in line


def test_the_share_of_the_limit_is_small(monkeypatch):
    for limit, expected in ((64, 16), (1024, 64), (3, 1), (resource.RLIM_INFINITY, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert openfiles.budget() == expected


def test_a_missing_shard_is_an_error_that_names_it(corpora, tmp_path):
    copy = shutil.copytree(corpora[0].folder / "shards", tmp_path / "copy")
    data = ShardDataset(copy)
    (copy / "shard-000000.tar").unlink()
    with pytest.raises(
        InputError, match=r"shard-000000\.tar: can't read this shard: No such file or directory; restore"
    ):
        data.read_block(0)
