"""Sharding against `tar cf` of the same feature files, and against webdataset's ShardWriter.

    python benchmarks/bench_shard.py [--utterances 3140] [--mean_frames 265] [--repeats 7]

The limit is `tar cf`, which only reads and writes. Everything is in the page cache and goes to the same file system; the
interpreter's start and the first call's compiling are left out, tar's start is in.
"""

import argparse
import contextlib
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import webdataset
from measure import print_result, ratio_by_rounds, seconds_in_turn, shard_corpus

from shards.sources.fmatrix import read_fmatrix
from spkid_dist.synthetic import SyntheticCorpus

SPEAKERS = 20


def main() -> None:
    """Make a corpus, time the ways to store it, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=3140, help="of the corpus, about")
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
    out = folder / "out"

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def with_tar() -> None:
        fresh()
        out.mkdir()
        subprocess.run(["tar", "cf", out / "corpus.tar", "-C", folder, "mcp"], check=True)

    def with_spkid() -> None:
        fresh()
        shard_corpus(folder, out)

    def with_webdataset() -> None:
        fresh()
        out.mkdir()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256e6, verbose=0) as writer,
        ):
            for path in files:
                writer.write({"__key__": path.stem, "npy": read_fmatrix(str(path)), "cls": path.parent.name[-4:]})

    cases = {"tar cf": with_tar, "spkid shard": with_spkid, "webdataset ShardWriter": with_webdataset}
    seconds = seconds_in_turn(cases, repeats)
    rows = [(name, values, num_bytes / 1e6) for name, values in seconds.items()]
    ratios = {
        "of tar cf": ratio_by_rounds(seconds["tar cf"], seconds["spkid shard"]),
        "times ShardWriter": ratio_by_rounds(seconds["webdataset ShardWriter"], seconds["spkid shard"]),
    }
    for name, ratio in ratios.items():
        print(f"spkid shard: {ratio:.2f} {name}")
    print_result(rows, {"benchmark": "shard", "bytes": num_bytes, "seconds": seconds, "ratios": ratios}, "MB/s")


if __name__ == "__main__":
    main()
