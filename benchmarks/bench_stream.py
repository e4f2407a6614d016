"""Streaming shuffled context windows against copying the same bytes, and against what a user would pick instead.

    python benchmarks/bench_stream.py [--frames 587000] [--repeats 5]

Batches of B x (C*D) float32, all data in the page cache, 2 torch threads. The limit is copying a batch's bytes from a large
buffer into a tensor made anew for each batch, as the stream must. Rows: ours with the dataset resident (it fits the pools)
and with pools a twentieth of it; of what a user would pick instead, the fastest that need nothing more installed (all others:
bench_peers.py): torch's DataLoader over windows of frames in memory, and webdataset with a record an utterance.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peers import torch_dataloader, webdataset_records
from peers.corpus import read_corpus
from peers.rows import open_rows, take_case, wait_for_workers

from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.stream import copy_case, stream_case
from spkid_dist.dataset import WindowDataset
from spkid_dist.measure.synthetic import SyntheticCorpus

C, B, D = 21, 1000, 20
SPEAKERS, MEAN_FRAMES = 20, 250
WORKERS = (0, 1, 2)
FAST_PEERS = [peer for peer in (*torch_dataloader.PEERS, *webdataset_records.PEERS) if not peer.window_records]


def main() -> None:
    """Make a corpus, time the ways to stream it, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way")
    parser.add_argument("--peer_batches", type=int, default=60, help="batches of a run of the slow ways")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.frames // (SPEAKERS * MEAN_FRAMES), options.repeats, options.peer_batches)


def run(folder: Path, utterances_of_speaker: int, repeats: int, peer_batches: int) -> None:
    """Time all ways on a corpus made in `folder`."""
    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS, train_utterances=utterances_of_speaker, test_utterances=0, mean_frames=MEAN_FRAMES
    )
    synthetic_files(corpus, folder).shard(folder / "shards")
    windows = len(WindowDataset(folder / "shards", in_frames=C)) * B
    batches = {"limit: copying the bytes": windows // B} | dict.fromkeys(("resident", "pools"), windows // B)
    cases: dict[str, Callable[[], object]] = {
        "limit: copying the bytes": copy_case(windows // B, B, C * D, fresh=True),
        "resident": stream_case(stream(folder / "shards", windows)),
        "pools": stream_case(stream(folder / "shards", windows // 20)),
    }
    own = len(cases)
    peer_corpus = read_corpus(folder, C)
    for peer in FAST_PEERS:
        if peer.format is not None:
            peer.format.write(peer_corpus, folder / peer.format.name)
        for name, loader in open_rows(peer, peer_corpus, folder, B, WORKERS):
            cases[name], batches[name] = take_case(loader, peer_batches), peer_batches
    seconds = seconds_in_turn(cases, repeats, before=wait_for_workers)
    rows = [(name, values, batches[name] * B / 1e3) for name, values in seconds.items()]
    per_batch = {name: [second / batches[name] for second in values] for name, values in seconds.items()}
    best_peer = min(list(cases)[own:], key=lambda name: sum(per_batch[name]))
    ratios = {}
    for ours in ("resident", "pools"):
        ratios[f"{ours}, of the limit"] = ratio_by_rounds(per_batch["limit: copying the bytes"], per_batch[ours])
        ratios[f"{ours}, times {best_peer}"] = ratio_by_rounds(per_batch[best_peer], per_batch[ours])
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print_result(rows, {"benchmark": "stream", "windows": windows, "seconds": seconds, "ratios": ratios}, "thousand/s")


def stream(shards: Path, shuffle_windows: int) -> WindowDataset:
    """Ours."""
    return WindowDataset(shards, in_frames=C, batch_size=B, shuffle_windows=shuffle_windows)


if __name__ == "__main__":
    main()
