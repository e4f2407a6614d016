"""Servers that lie: each ends in the right batches or in one line; memory, disk, time and traffic are bounded."""

import json
import re
import subprocess
import sys

import pytest
from conftest import make_corpus
from lying_server import LIES, lying

pytestmark = pytest.mark.fast

MEGABYTE = 1_000_000
POLICY_SECONDS = 1.5  # of one read, below
READ = """
import json, resource, sys, time
from pathlib import Path
from shards import InputError, RetryPolicy, ShardDataset, StoreOptions

policy = RetryPolicy(attempts=3, timeout_seconds=0.5, total_seconds=1.5)
expected = ShardDataset(sys.argv[1])
for line in sys.stdin:
    url, cache = json.loads(line)
    store = StoreOptions(retry=policy, readers=2, cache_dir=None if cache is None else Path(cache), cache_bytes=10_000_000)
    began = time.monotonic()
    try:
        data = ShardDataset(url, store)
        for block in range(len(expected.blocks)):
            assert data.read_block(block).frames.tobytes() == expected.read_block(block).frames.tobytes()
        outcome = "right"
    except InputError as error:
        outcome = str(error)
    took = time.monotonic() - began
    print(json.dumps([outcome, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)
"""

# What the reader says without a cache; where it says something else with one, both.
WAYS = {
    "endless manifest": r"manifest\.json: more than the 64000000 bytes expected, so it is no manifest",
    "endless table": r"\.npy: damaged: more than the \d+ bytes expected",
    "endless range": r"tar: block 0, .* not what was written",
    "endless shard, no ranges": r"sends whole files only|tar: block 0, .* not what was written",
    "endless chunks": r"tar: block 0, .* not what was written",
    "endless chunks of a manifest": r"more than the 64000000 bytes expected",
    "endless chunk size": r"the store failed .*no answer in time",
    "endless headers": r"tar: the server's answer is no valid HTTP",
    "endless header line": r"manifest\.json: the server's answer is no valid HTTP",
    "endless informational answers": r"the store failed .*no answer in time",
    "endless error page": r"the store failed .*500",
    "endless page of what is not found": r"there is no such file",
    "compressed manifest": r"manifest\.json: the server compresses its answer \(Content-Encoding: gzip\)",
    "compressed range": r"tar: the server compresses its answer",
    "compressed bomb": r"npy: the server compresses its answer",
    "longer than it says": r"tar: (the server's answer is no valid HTTP: .*Data after|block 0, .* not what was)",
    "shorter than it says": r"the store failed",
    "negative length": r"the server's answer is no valid HTTP",
    "a byte a second": r"the store failed .*too slow an answer",
    "cut in the middle": r"the store failed",
    "another range": r"tar: block 0, .* not what was written",
    "several ranges": r"tar: block 0, .* not what was written",
    "login page": r"the server sends a web page \(text/html\) in place of the file",
    "login page for a manifest": r"the server sends a web page \(text/html\) in place of the file",
    "redirect to itself": r"the server redirects in a circle, or more than 10 times",
    "redirects without end": r"the server redirects in a circle, or more than 10 times",
    "redirect to a local file": r"redirects to file:///etc/passwd, which is no HTTP",
    "redirect to another host": r"^right$",
    "redirect to nowhere": r"the server answers with status 302, expected 206",
    "redirect to a port where nobody is": r"the store failed",
    "not satisfiable": r"refuses: .*416",
    "no content": r"the server answers with status 204, expected 200",
    "not modified": r"the server answers with status 304, expected 200",
    "wrong bytes": r"tar: block 0, .* not what was written",
    "garbage in place of a status": r"tar: the server's answer is no valid HTTP",
    "silence": r"the store failed .*no answer in time",
    "hangs up": r"the store failed",
    "claims what no machine can hold": r"npy: 1125899906842624 bytes of it are to be read into memory, which has \d+ left",
}

NOTHING_KEPT = {"endless chunk size"}  # zeros, as long as the attempt lasts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("lies") / "c", [7, 12, 3, 9, 30, 2, 5, 18], block_frames=12)


@pytest.fixture(scope="module")
def reader(corpus):
    """A process that reads the URLs it is told: (URL, cache folder) -> what came of it, seconds, peak memory."""
    command = [sys.executable, "-c", READ, str(corpus.folder / "shards")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:

        def read(url, cache):
            print(json.dumps([url, None if cache is None else str(cache)]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield read
        process.stdin.close()


@pytest.fixture(scope="module")
def baseline(corpus, reader):
    """The reader's memory once it has read from a server that tells the truth."""
    with lying(corpus.folder / "shards", lambda asked: asked.honest()) as server:
        outcome, _, memory = reader(server.url, None)
    assert outcome == "right"
    return memory


def test_every_lie_has_an_expected_end():
    assert WAYS.keys() == LIES.keys()


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_in_one_line_within_bounds(corpus, reader, baseline, tmp_path, lie):
    for cache in (None, tmp_path / "cache"):
        with lying(corpus.folder / "shards", LIES[lie]) as server:
            outcome, seconds, memory = reader(server.url, cache)
        assert "\n" not in outcome
        assert re.search(WAYS[lie], outcome), outcome
        assert memory - baseline < 400 * MEGABYTE
        assert seconds < 3 * POLICY_SECONDS + 3  # manifest, tables and a block
        if lie not in NOTHING_KEPT:
            most = 64 * MEGABYTE if "manifest" in lie else 0
            assert server.most_sent < most + 8 * MEGABYTE  # and what the sockets hold
        assert not list(tmp_path.rglob("*.tmp-*"))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10 * MEGABYTE


def test_a_redirect_loop_is_asked_once(corpus, reader):
    with lying(corpus.folder / "shards", LIES["redirects without end"]) as server:
        outcome, seconds, _ = reader(server.url, None)
        assert "redirects in a circle" in outcome
        assert server.requests == 10
        assert seconds < 1
