"""Seconds from a process's imports to its first batch: from the start of an epoch, and resumed within one.

    python benchmarks/bench_resume.py [--frames 587000] [--repeats 5]

Each figure is that of a fresh process, data in the page cache: open the dataset, go to the state, take a batch. The arithmetic
of the order says that they are equal: a resume reads the pools in hand, and nothing of what was consumed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import print_json, shard_corpus

from spkid_dist.synthetic import SyntheticCorpus

SPEAKERS, MEAN_FRAMES = 20, 250
PLACES = {"start": 0.0, "0 %": 0.0, "50 %": 0.5, "99 %": 0.99}
PROGRAM = """
import json, sys, time
from spkid_dist.dataset import WindowDataset
folder, place, resumes = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "resumes"
began = time.perf_counter()
data = WindowDataset(folder)
if resumes:
    position = int(place * data.num_windows)
    data.load_state_dict(data.state_dict() | {"position": position, "ledger": None})
next(iter(data))
print(json.dumps(time.perf_counter() - began))
"""


def main() -> None:
    """Make a corpus, time the first batch from several places in turn, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=587_000, help="of the corpus, about")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        utterances = max(1, options.frames // (SPEAKERS * MEAN_FRAMES))
        SyntheticCorpus(
            num_speakers=SPEAKERS, train_utterances=utterances, test_utterances=0, mean_frames=MEAN_FRAMES
        ).write(folder)
        shard_corpus(folder, folder / "shards")
        seconds = {name: [] for name in PLACES}
        for _ in range(options.repeats):
            for name, place in PLACES.items():
                seconds[name].append(first_batch(folder / "shards", place, resumes=name != "start"))
    for name, values in seconds.items():
        print(f"first batch, {name:8} {statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {f"{name} of start": medians[name] / medians["start"] for name in PLACES if name != "start"}
    print_json({"benchmark": "resume", "seconds": seconds, "ratios": ratios})


def first_batch(shards: Path, place: float, *, resumes: bool) -> float:
    """Seconds that a fresh process takes."""
    arguments = [str(shards), str(place), "resumes" if resumes else "starts"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


if __name__ == "__main__":
    main()
