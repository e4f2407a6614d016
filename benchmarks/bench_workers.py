"""What workers cost where a source knows each utterance's place: checking a Kaldi folder with one process and with several.

    python benchmarks/bench_workers.py [--entries 1000000] [--workers 2 8] [--repeats 1]

All entries of the folder's feats.scp are one small matrix, so that the files cost little and what is sent to workers shows. The
limit of N workers is one process, N times as fast. Lines: one process; each number of workers, started beforehand; and what
sending the whole source with each chunk would take, from the time of one such chunk. The last line is JSON.
"""

import argparse
import math
import pickle
import tempfile
import time
from pathlib import Path

import kaldiio
import numpy as np

from shards import KaldiSource, Utterance
from shards.conversion.check import CHUNK_UTTERANCES, find_bad
from shards.conversion.workers import process_pool
from shards.sources import source_of_task
from spkid_dist.bench.measure import print_result, ratio_by_rounds


def main() -> None:
    """Make a folder, check it in all ways, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="of feats.scp")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8], help="numbers of processes to try")
    parser.add_argument("--repeats", type=int, default=1, help="counted runs of each way")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(Path(folder), options.entries, options.workers, options.repeats)


def run(folder: Path, entries: int, workers: list[int], repeats: int) -> None:
    """Check a folder of so many entries in all ways."""
    source, utterances = make_folder(folder, entries)
    seconds = {"one process": [timed(utterances, source, 1) for _ in range(repeats)]}
    for number in workers:
        seconds[f"{number} workers"] = [timed(utterances, source, number) for _ in range(repeats)]
    chunks = math.ceil(entries / CHUNK_UTTERANCES)
    part = pickle.dumps(source_of_task(source, utterances[:CHUNK_UTTERANCES]))
    began = time.perf_counter()
    whole = pickle.dumps(source)
    pickle.loads(whole)  # noqa: S301 - pickled here
    seconds["whole with each chunk (computed)"] = [(time.perf_counter() - began) * chunks]
    print(f"a chunk is sent {len(part):,} bytes of the source, which has {len(whole):,}")
    one = seconds["one process"]
    ratios = {
        f"{number} workers, of {number} times one process": ratio_by_rounds(one, seconds[f"{number} workers"]) / number
        for number in workers
    }
    result = {"benchmark": "workers", "entries": entries, "part_bytes": len(part), "whole_bytes": len(whole)}
    rows = [(name, values, entries / 1e3) for name, values in seconds.items()]
    print_result(rows, result | {"seconds": seconds, "ratios": ratios}, "thousand utterances/s")


def make_folder(folder: Path, entries: int) -> tuple[KaldiSource, list[Utterance]]:
    """A Kaldi folder whose entries are one matrix of 10 frames."""
    scp = folder / "feats.scp"
    kaldiio.save_ark(str(folder / "feats.ark"), {"a": np.ones((10, 20), np.float32)}, scp=str(scp))
    place = scp.read_text().split()[1]
    keys = [f"spk{number % 5000:04d}-utt{number:08d}" for number in range(entries)]
    scp.write_text("".join(f"{key} {place}\n" for key in keys))
    return KaldiSource.open(folder), [Utterance(key, key[:7]) for key in keys]


def timed(utterances: list[Utterance], source: KaldiSource, workers: int) -> float:
    """Seconds of a check; the start of the workers and their imports are left out."""
    if workers == 1:
        began = time.perf_counter()
        find_bad(utterances, source)
        return time.perf_counter() - began
    with process_pool(workers) as pool:
        find_bad(utterances[: 4 * workers * CHUNK_UTTERANCES], source, pool)
        began = time.perf_counter()
        find_bad(utterances, source, pool)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
