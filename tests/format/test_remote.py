"""Sharding to an object store and streaming from it: a real S3 API on loopback, the same bytes, the manifest last."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

pytest.importorskip("s3fs", reason="the S3 tests need s3fs")
pytest.importorskip("moto", reason="the S3 tests need moto's server")

from conftest import make_corpus
from moto.server import ThreadedMotoServer

from shards import UsageError, open_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
LENGTHS = [5, 9, 2, 14, 7, 30, 1, 8]


@pytest.fixture(scope="module")
def s3():
    """Environment of a process that reaches the server, with a bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "FSSPEC_S3": json.dumps({"endpoint_url": f"http://{host}:{port}", "key": "testing", "secret": "testing"}),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    run(environment, "import s3fs; s3fs.S3FileSystem().mkdir('corpora')")
    yield environment
    server.stop()


def run(environment, code, *arguments, check=True):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=check,
    )


def shard(environment, corpus, out, *arguments, check=True):
    paths = ("--db_path", corpus.folder / "mcp", "--list", corpus.folder / "cfg/all.train")
    layout = ("--spk2idx", corpus.folder / "cfg/spk2idx.json", "--block_frames", 16, "--shard_bytes", 500)
    code = "from spkid_dist.commands.cli import main; main()"
    return run(environment, code, "shard", *paths, *layout, "--out", out, *arguments, check=check)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("remote") / "c", LENGTHS, block_frames=16, shard_bytes=500)


def fetch(environment, url, folder):
    """Copy what is at `url` to a local folder; return its bytes by name."""
    run(
        environment,
        "import sys, fsspec; fsspec.filesystem('s3').get(sys.argv[1], sys.argv[2], recursive=True)",
        url,
        folder,
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_object_store_gets_the_same_bytes(s3, corpus, tmp_path, workers):
    url = f"s3://corpora/w{workers}"
    shard(s3, corpus, url, "--workers", workers)
    expected = {path.name: path.read_bytes() for path in corpus.dataset.folder.iterdir()}
    assert fetch(s3, url, tmp_path / "copy") == expected


@pytest.mark.long  # locally: test_tasks_of_several_machines_are_merged
def test_tasks_meet_in_an_object_store(s3, corpus, tmp_path):
    url = "s3://corpora/tasks"
    merge = "import sys; from spkid_dist.commands.cli import main; main()"
    shard(s3, corpus, url, "--task", "1/2")
    early = run(s3, merge, "merge", url, check=False)
    assert early.returncode == 1
    assert "shards are not done" in early.stderr
    shard(s3, corpus, url, "--task", "0/2")
    run(s3, merge, "merge", url)
    expected = {path.name: path.read_bytes() for path in corpus.dataset.folder.iterdir()}
    assert fetch(s3, url, tmp_path / "copy") == expected


def test_a_missing_bucket_ends_in_one_clear_line(s3, corpus):
    done = shard(s3, corpus, "s3://no-such-bucket/x", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("spkid: error: s3://no-such-bucket/x")
    assert done.stderr.count("\n") == 1


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(UsageError, match=r"nosuch://x: can't be opened: Protocol not known"):
        open_folder("nosuch://x").sizes()


STREAM = """
import sys
from pathlib import Path
import fsspec, torch
from shards import StoreOptions
from spkid_dist.dataset import WindowDataset
fsspec.filesystem("s3").put(f"{sys.argv[2]}/", sys.argv[1], recursive=True)
batches = [
    list(WindowDataset(place, in_frames=3, batch_size=7, num_streams=2, shuffle_windows=16, store=store))
    for place, store in ((sys.argv[1], StoreOptions(cache_dir=Path(sys.argv[3]))), (sys.argv[2], None))
]
assert len(batches[0]) == len(batches[1]) > 5
for (x, y), (other_x, other_y) in zip(*batches):
    assert torch.equal(x, other_x) and torch.equal(y, other_y)
"""


def test_an_object_store_streams_the_same_batches(s3, corpus, tmp_path):
    run(s3, STREAM, "s3://corpora/stream", corpus.dataset.folder, tmp_path / "cache")


OPEN = """
import sys, time
from shards import InputError, RetryPolicy, ShardDataset, StoreOptions
policy = RetryPolicy(attempts=3, total_seconds=60)
for url in sys.argv[1:]:
    try:
        ShardDataset(url, StoreOptions(retry=policy))
    except InputError as error:
        print(error)
"""


def test_an_object_store_that_is_gone_is_tried_as_often_as_we_say(s3):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        counted = []

        def count():
            while True:
                connection, _ = listening.accept()
                counted.append(connection)
                if connection.recv(65536) == b"":
                    return
                connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=count)
        thread.start()
        options = json.dumps({"endpoint_url": f"http://127.0.0.1:{port}", "key": "testing", "secret": "testing"})
        printed = run(s3 | {"FSSPEC_S3": options}, OPEN, "s3://corpora/gone").stdout
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()
    assert printed.startswith("s3://corpora/gone/manifest.json: the store failed (attempts: 3, in ")
    assert len(counted) - 1 == 3  # the libraries' own attempts do not multiply


def test_a_dataset_that_is_not_in_the_object_store_is_one_clear_line(s3):
    urls = "s3://corpora/nothing", "s3://no-such-bucket/x"
    for url, line in zip(urls, run(s3, OPEN, *urls).stdout.splitlines(), strict=True):
        assert line.startswith(f"{url}/manifest.json: there is no such file; give the URL of a dataset")
