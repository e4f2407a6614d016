"""Peak private memory of sharding a large corpus, against that of one a tenth of its size.

    python benchmarks/bench_shard_memory.py [--bytes 5000000000] [--workers 1 2]

The memory of a worker is a block and the utterances of its shards, whatever the corpus. The large corpus is the small one ten
times over, by symbolic links: other keys, the same files, all of it read and written. Memory is what no other process
shares, summed over the processes of `spkid shard`, looked at every 20 ms; the last line is JSON.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from shards.sources.fmatrix import write_fmatrix
from spkid_dist.bench.measure import print_json

TIMES, MEAN_FRAMES, D = 10, 1000, 20


def main() -> None:
    """Make both corpora, shard them, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=5_000_000_000, help="of the large corpus, about")
    parser.add_argument("--shard_bytes", type=int, default=256_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    rows, ratios = {}, {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_corpora(folder, options.bytes // TIMES)
        for workers in options.workers:
            peaks = [peak_memory(folder, size, workers, options.shard_bytes) for size in ("small", "large")]
            rows[f"{workers} workers"] = peaks
            ratios[f"large of small, {workers} workers"] = peaks[1] / peaks[0]
            print(
                f"{workers} workers: {peaks[0] / 1e6:.0f} MB for {options.bytes // TIMES / 1e6:.0f} MB, {peaks[1] / 1e6:.0f} "
                f"MB for {options.bytes / 1e6:.0f} MB: {peaks[1] / peaks[0]:.2f} times"
            )
    print_json({"benchmark": "shard_memory", "bytes": options.bytes, "peaks": rows, "ratios": ratios})


def make_corpora(folder: Path, num_bytes: int) -> None:
    """Feature files ``mcp/rep0/spkS/uttU.mcp``, links to them as rep1 to rep9, and a list of each size."""
    generator = np.random.default_rng(0)
    utterances = max(1, num_bytes // (MEAN_FRAMES * D * 4))
    keys = [f"spk{number % 20:02d}/utt{number:06d}" for number in range(utterances)]
    for key in keys:
        path = folder / f"mcp/rep0/{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = int(generator.integers(MEAN_FRAMES // 2, 3 * MEAN_FRAMES // 2))
        write_fmatrix(path, generator.standard_normal((frames, D), np.float32))
    for copy in range(1, TIMES):
        (folder / f"mcp/rep{copy}").symlink_to("rep0")
    lines = {"small": 1, "large": TIMES}
    for size, copies in lines.items():
        (folder / f"{size}.list").write_text("".join(f"rep{copy}/{key}\n" for copy in range(copies) for key in keys))


def peak_memory(folder: Path, size: str, workers: int, shard_bytes: int) -> int:
    """Bytes of private memory at the peak of sharding one corpus."""
    out = folder / "out"
    flags = ["--db_path", folder / "mcp", "--list", folder / f"{size}.list", "--spk2idx", folder / "spk2idx.json"]
    flags += ["--ext", "mcp", "--out", out, "--workers", str(workers), "--shard_bytes", str(shard_bytes)]
    program = "import sys; from spkid_dist.commands.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", program, "shard", *map(str, flags)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(private_bytes(pid) for pid in family(process.pid)))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"sharding ended with exit code {process.returncode}")
    shutil.rmtree(out)
    return peak


def family(pid: int) -> list[int]:
    """A process and all processes below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(int(child)))]


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with none; 0 where it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    except OSError:
        return 0
    return 1024 * sum(int(fields[fields.index(f"Private_{kind}:") + 1]) for kind in ("Clean", "Dirty"))


if __name__ == "__main__":
    main()
