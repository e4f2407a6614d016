"""Sharding to an object store: a real S3 API on loopback, the same bytes, the manifest last."""

import json
import os
import subprocess
import sys

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
    code = "from spkid_dist.cli import main; main()"
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


def test_tasks_meet_in_an_object_store(s3, corpus, tmp_path):
    url = "s3://corpora/tasks"
    merge = "import sys; from spkid_dist.cli import main; main()"
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
