"""Seconds from a process's imports to its first batch: from the start of an epoch, and resumed within one.

    python benchmarks/bench_resume.py [--frames 587000] [--repeats 5]

Each figure is that of a fresh process, data in the page cache: open the dataset, go to the state, take a batch. The arithmetic
of the order says that they are equal: a resume reads the pools in hand, and nothing of what was consumed.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from spkid_dist.bench.corpus import synthetic_files
from spkid_dist.bench.measure import print_json
from spkid_dist.bench.resume import START, seconds_by_place
from spkid_dist.measure.synthetic import SyntheticCorpus

SPEAKERS, MEAN_FRAMES = 20, 250


def main() -> None:
    """Make a corpus, time the first batch from several places in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = SyntheticCorpus(
            num_speakers=SPEAKERS,
            train_utterances=max(1, options.frames // (SPEAKERS * MEAN_FRAMES)),
            test_utterances=0,
            mean_frames=MEAN_FRAMES,
        )
        synthetic_files(corpus, folder).shard(folder / "shards")
        seconds = seconds_by_place(str(folder / "shards"), 21, 1000, options.repeats, work=folder)
    for name, values in seconds.items():
        print(f"first batch, {name:16} {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"{name}, of the start": medians[name] / medians[START] for name in seconds if name != START}
    print_json({"benchmark": "resume", "seconds": seconds, "ratios": ratios})


if __name__ == "__main__":
    main()
