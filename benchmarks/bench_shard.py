"""Sharding against `tar cf` of the same feature files, and against webdataset's ShardWriter.

    python benchmarks/bench_shard.py [--utterances 9420] [--mean_frames 265] [--repeats 7]

The limit is `tar cf`, which only reads and writes. Everything is in the page cache and goes to the same file system; the
interpreters' start (of the workers, too) and the first call's compiling are left out, tar's start is in. Ours is timed with one
process and with two workers; shards are small enough that both have several.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import webdataset
from measure import print_result, ratio_by_rounds, seconds_in_turn, shard_corpus

from shards.conversion import process_pool
from shards.sources.fmatrix import read_fmatrix
from spkid_dist.synthetic import SyntheticCorpus

SPEAKERS = 20
WORKERS = 2
SHARDS = 8


def main() -> None:
    """Make a corpus, time the ways to store it, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=9420, help="of the corpus, about")
    parser.add_argument("--mean_frames", type=int, default=265, help="frames of an utterance")
    parser.add_argument("--repeats", type=int, default=7, help="counted runs of each way")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), max(1, options.utterances // SPEAKERS), options.mean_frames, options.repeats)


def run(folder: Path, utterances_of_speaker: int, mean_frames: int, repeats: int) -> None:
    """Time all ways on a corpus made in `folder`."""
    SyntheticCorpus(
        num_speakers=SPEAKERS, train_utterances=utterances_of_speaker, test_utterances=0, mean_frames=mean_frames
    ).write(folder)
    files = sorted((folder / "mcp").rglob("*.mcp"))
    num_bytes = sum(path.stat().st_size for path in files)
    out, shard_bytes = folder / "out", max(1, num_bytes // SHARDS)

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # ours flushes what it writes: it is not to flush what others left in the page cache

    def with_tar() -> None:
        out.mkdir()
        subprocess.run(["tar", "cf", out / "corpus.tar", "-C", folder, "mcp"], check=True)

    def with_spkid() -> None:
        shard_corpus(folder, out, shard_bytes=shard_bytes)

    def with_workers() -> None:
        shard_corpus(folder, out, executor=workers, shard_bytes=shard_bytes)

    def with_webdataset() -> None:
        out.mkdir()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256e6, verbose=0) as writer,
        ):
            for path in files:
                writer.write({"__key__": path.stem, "npy": read_fmatrix(str(path)), "cls": path.parent.name[-4:]})

    cases = {
        "tar cf": with_tar,
        "spkid shard, 1 process": with_spkid,
        "spkid shard, 2 workers": with_workers,
        "webdataset ShardWriter": with_webdataset,
    }
    with process_pool(WORKERS) as workers:
        seconds = seconds_in_turn(cases, repeats, before=fresh)
    rows = [(name, values, num_bytes / 1e6) for name, values in seconds.items()]
    ratios = {}
    for ours in ("spkid shard, 1 process", "spkid shard, 2 workers"):
        ratios[f"{ours}, of tar cf"] = ratio_by_rounds(seconds["tar cf"], seconds[ours])
        ratios[f"{ours}, times ShardWriter"] = ratio_by_rounds(seconds["webdataset ShardWriter"], seconds[ours])
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print_result(rows, {"benchmark": "shard", "bytes": num_bytes, "seconds": seconds, "ratios": ratios}, "MB/s")


if __name__ == "__main__":
    main()
