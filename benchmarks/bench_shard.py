"""Sharding against `tar cf` of the same feature files, and against webdataset's ShardWriter.

    python benchmarks/bench_shard.py [--utterances 9420] [--mean_frames 265] [--repeats 7]

The limit is `tar cf`, which only reads and writes. Everything is in the page cache and goes to the same file system; the
interpreters' start (of the workers, too) and the first call's compiling are left out, tar's start is in. Ours is timed with one
process and with two workers; shards are small enough that both have several.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import webdataset

from shards.conversion.workers import process_pool
from shards.sources.fmatrix import read_fmatrix
from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_result, ratio_by_rounds, seconds_in_turn
from spkid_dist.bench.shard import TAR, clean, shard_cases
from spkid_dist.measure.synthetic import SyntheticCorpus

SPEAKERS = 20
WORKERS = 2


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
    corpus = SyntheticCorpus(
        num_speakers=SPEAKERS, train_utterances=utterances_of_speaker, test_utterances=0, mean_frames=mean_frames
    )
    files, out = synthetic_files(corpus, folder), folder / "out"
    paths, num_bytes = sorted(files.paths()), files.num_bytes()

    def with_webdataset() -> None:
        out.mkdir()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=256e6, verbose=0) as writer,
        ):
            for path in paths:
                writer.write({"__key__": path.stem, "npy": read_fmatrix(str(path)), "cls": path.parent.name[-4:]})

    with process_pool(WORKERS) as workers:
        ours = shard_cases(files, out, workers, WORKERS)
        seconds = seconds_in_turn(
            {**ours, "webdataset ShardWriter": with_webdataset}, repeats, before=lambda: clean(out)
        )
    rows = [(name, values, num_bytes / 1e6) for name, values in seconds.items()]
    ratios = {}
    for name in ours:
        if name != TAR:
            ratios[f"{name}, of {TAR}"] = ratio_by_rounds(seconds[TAR], seconds[name])
            ratios[f"{name}, times ShardWriter"] = ratio_by_rounds(seconds["webdataset ShardWriter"], seconds[name])
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print_result(rows, {"benchmark": "shard", "bytes": num_bytes, "seconds": seconds, "ratios": ratios}, "MB/s")


if __name__ == "__main__":
    main()
