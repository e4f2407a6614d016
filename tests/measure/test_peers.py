"""What is compared is the same work: other systems yield the windows that ours yields, and those that are missing are named."""

import importlib
from collections import Counter
from functools import partial

import pytest
from benchmark_runs import run_benchmark
from conftest import make_corpus
from peers.corpus import Corpus
from peers.peer import INSTALL, Peer
from peers.registry import PEERS
from peers.rows import open_rows

from spkid_dist.dataset import WindowDataset

LENGTHS, IN_FRAMES, BATCH_SIZE = [30, 7, 60, 21, 45, 50, 33, 64], 8, 50  # one is shorter than a window


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("ours"), LENGTHS, num_features=4)


@pytest.fixture(scope="module")
def corpus(ours):
    """The same corpus, for the others."""
    keys = list(ours.frames)
    labels = [ours.speakers.index(key.split("/")[1]) for key in keys]
    return Corpus(keys=keys, utterances=list(ours.frames.values()), labels=labels, in_frames=IN_FRAMES)


def write_and_load(peer, corpus, folder, workers):
    if peer.unavailable:
        pytest.skip(peer.unavailable)
    if peer.format is not None:
        peer.format.write(corpus, folder / peer.format.name)
    ((_, loader),) = open_rows(peer, corpus, folder, BATCH_SIZE, (workers,))
    return loader


def counted(batches):
    """How often each window came with each class; the frames' values are all different."""
    windows = Counter()
    for x, y in batches:
        assert (str(x.dtype), str(y.dtype), x.shape) == ("torch.float32", "torch.int64", (len(y), IN_FRAMES * 4))
        windows.update((row.tobytes(), int(label)) for row, label in zip(x.numpy(), y, strict=True))
    return windows


@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_yields_each_window_of_ours_once_an_epoch(peer, ours, corpus, tmp_path):
    windows = counted(WindowDataset(ours.folder / "shards", in_frames=IN_FRAMES, batch_size=BATCH_SIZE))
    assert sum(windows.values()) == corpus.num_windows == len(windows)
    assert counted(write_and_load(peer, corpus, tmp_path, workers=2)) == windows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_shuffles_each_epoch_anew(peer, corpus, tmp_path):
    loader = write_and_load(peer, corpus, tmp_path, workers=0)
    stored = [window.tobytes() for window, _ in corpus.windows()]
    first, second = ([row.tobytes() for x, _ in loader for row in x.numpy()] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(stored)
    assert first != stored != second != first


def test_a_peer_that_is_not_installed_is_named_with_the_command_that_installs_it():
    missing = partial(importlib.import_module, "no_such_package")
    peer = Peer(name="missing", imports=missing, format=None, loader=lambda *_: ())
    assert peer.unavailable == f"not installed (No module named 'no_such_package'): {INSTALL}"


def test_a_peer_that_does_not_fit_to_this_torch_is_named_with_the_reason():
    def imports():
        raise RuntimeError("operator torchvision::nms does not exist")

    peer = Peer(name="unfit", imports=imports, format=None, loader=lambda *_: ())
    assert peer.unavailable == "not installable here (operator torchvision::nms does not exist)"


@pytest.mark.long  # of the peers that tests have: bench_stream.py in test_benchmarks
def test_every_peer_has_rows_or_a_reason(tmp_path):
    sizes = ("--frames", 15_000, "--record_frames", 1000, "--peer_batches", 2, "--workers", 0, "--repeats", 1)
    result = run_benchmark("bench_peers.py", sizes, tmp_path)
    rows = {f"spkid-dist, times {peer.row(0)}" for peer in PEERS if peer.name not in result["unavailable"]}
    assert result["ratios"].keys() == rows
    assert set(result["unavailable"]) == {peer.name for peer in PEERS if peer.unavailable}
    assert all(row["bytes"] > 0 for row in result["written"].values())
