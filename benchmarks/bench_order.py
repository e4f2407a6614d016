"""The order of an epoch at the size of the largest corpora: seconds and memory of one rank, of no data but block sizes.

    python benchmarks/bench_order.py [--windows 1000000000000] [--ranks 4096] [--repeats 3]

For several ways to cut the windows into blocks and shards, a rank makes the order of an epoch, and then goes to steps at 0 %,
50 % and 99 % of it: which windows of which blocks make up its pools there, and in which order they are used. The limit is
permuting as many shards, which is the least that planning has to do. Each run is a fresh process; memory is the largest that
the order and the table of shards took beyond the imports (of the interpreter, numpy and numba). The bound that is held: 1 s and
200 MB.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spkid_dist.bench.measure import print_json
from spkid_dist.draws import POOL_DOMAIN, generator_key, permutation
from spkid_dist.order import EpochLine, EpochOrder, RankShare

PLACES = {"0 %": 0.0, "50 %": 0.5, "99 %": 0.99}
MOST_SECONDS, MOST_MEGABYTES = 1.0, 200.0
SPREAD = 250  # a block is closed by whole utterances: its frames vary by about one
# what users choose: frames of a block, and blocks of a shard (256 MB of 20 float32 are 390 blocks of 8,192 frames)
SHAPES = {
    "blocks of 8,192, shards of 256 MB": (8192, 390),
    "blocks of 8,192, shards of 64 MB": (8192, 97),
    "blocks of 8,192, shards of 16 MB": (8192, 24),
    "blocks of 8,192, shards of 16 GB": (8192, 25_000),
    "blocks of 2^20, shards of 8 blocks": (2**20, 8),
}


class BlockSizes:
    """Window counts (`spkid_dist.order.WindowCounts`) of blocks that are nowhere stored.

    Every other shard lacks the last of the blocks that a shard has; the last shard is cut to the total.
    """

    def __init__(self, num_windows: int, block_windows: int, shard_blocks: int) -> None:
        draw = np.random.default_rng(0)
        self._template = block_windows + draw.integers(0, min(SPREAD, block_windows), shard_blocks)
        blocks = np.array([shard_blocks, max(1, shard_blocks - 1)])
        windows = np.cumsum(self._template)[blocks - 1]
        pairs = -(-num_windows // int(windows.sum()))
        ends = np.minimum(np.cumsum(np.tile(windows, pairs)), num_windows)
        self.per_shard: NDArray[np.int64] = np.diff(ends, prepend=0)
        self._first_block = np.concatenate(([0], np.cumsum(np.tile(blocks, pairs))))

    @property
    def num_blocks(self) -> int:
        """Blocks of all shards."""
        return int(self._first_block[-1])

    def blocks_of(self, shard: int) -> range:
        """The blocks of a shard."""
        return range(int(self._first_block[shard]), int(self._first_block[shard + 1]))

    def of_blocks(self, blocks: range) -> NDArray[np.int64]:
        """Windows of each of a shard's `blocks`."""
        shard = int(np.searchsorted(self._first_block, blocks.start, side="right")) - 1
        ends = np.minimum(np.cumsum(self._template[: len(blocks)]), self.per_shard[shard])
        return np.diff(ends, prepend=0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One rank's part of one order; `batch_size` windows are a global batch."""

    windows: int
    ranks: int
    streams: int
    shuffle_windows: int
    batch_size: int
    block_windows: int
    shard_blocks: int


def main() -> None:
    """Run all cases, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10**12, help="of an epoch")
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--streams", type=int, default=16_384, help="of all ranks together")
    parser.add_argument("--shuffle_windows", type=int, default=2**28, help="in the pools of all ranks together")
    parser.add_argument("--batch_size", type=int, default=2**20, help="windows of a global batch")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each case")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="of the ways to cut, so many")
    options = vars(parser.parse_args())
    repeats, shapes = options.pop("repeats"), list(SHAPES.items())[: options.pop("shapes")]
    cases = {name: Case(block_windows=b, shard_blocks=n, **options) for name, (b, n) in shapes}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process
                runs[name].append(pool.apply(measured, (case,)))
    rows = {
        name: {what: statistics.median(run[what] for run in done) for what in done[0]} for name, done in runs.items()
    }
    for name, row in rows.items():
        print(f"{name}: {row['shards']:,.0f} shards, {row['blocks']:,.0f} blocks")
        print("    " + "  ".join(f"{what} {row[what] * 1e3:,.1f} ms" for what in ("limit", "plan", *PLACES)))
        print(
            f"    {row['seconds']:.3f} s, {row['megabytes']:.0f} MB beyond {row['imports_megabytes']:.0f} of the imports"
        )
    held = {name: row["seconds"] < MOST_SECONDS and row["megabytes"] < MOST_MEGABYTES for name, row in rows.items()}
    print(f"below {MOST_SECONDS:g} s and {MOST_MEGABYTES:g} MB: {sum(held.values())} of {len(held)}")
    ratios = {f"{name}: plan, of its limit": row["plan"] / row["limit"] for name, row in rows.items()}
    print_json({"benchmark": "order", **options, "rows": rows, "held": held, "ratios": ratios, "runs": runs})


def measured(case: Case) -> dict[str, float]:
    """Called in the process: seconds of planning and of each seek, and MB."""
    permutation(0, 2)  # loads the compiled loop
    before = status_megabytes("VmRSS")
    counts = BlockSizes(case.windows, case.block_windows, case.shard_blocks)
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
    began = time.perf_counter()
    permutation(1, len(counts.per_shard))
    seconds = {"limit": time.perf_counter() - began}
    began = time.perf_counter()
    line = EpochLine(counts, seed=1, epoch=2, shuffle=True)
    order = EpochOrder(case.windows, case.streams, case.shuffle_windows // case.streams)
    share = RankShare(order, case.ranks // 2, case.ranks)
    seconds["plan"] = time.perf_counter() - began
    for name, place in PLACES.items():
        began = time.perf_counter()
        taken = sum(seek(line, share, int(place * -(-order.num_windows // case.batch_size)) * case.batch_size))
        seconds[name] = time.perf_counter() - began
        assert taken == len(share.streams) * order.pool_windows or place > 0, taken
    total = sum(seconds.values()) - seconds["limit"]
    memory = {"megabytes": status_megabytes("VmHWM") - before, "imports_megabytes": before}
    return {"shards": len(counts.per_shard), "blocks": counts.num_blocks, "seconds": total} | seconds | memory


def seek(line: EpochLine, share: RankShare, index: int) -> Iterator[int]:
    """Find the windows, in their order of use, of the pools that hold global index `index`; yield how many each has."""
    generation = index // share.order.generation_windows
    for stream in share.streams:
        first, last = share.order.pool_interval(stream, generation)
        segments = list(line.segments(first, last))
        order = permutation(generator_key(1, POOL_DOMAIN, 2, stream, generation), last - first)
        assert sum(segment.last - segment.first for segment in segments) == len(order)
        yield len(order)


def status_megabytes(name: str) -> float:
    """This process's memory: VmRSS now, VmHWM the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


if __name__ == "__main__":
    main()
