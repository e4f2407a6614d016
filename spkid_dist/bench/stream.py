"""Measure the stream: filling pools, stacking windows, and both together, against copying the bytes.

Filling a pool is against reading as many bytes of the shards. Stacking, which a single thread does into the memory of the batch
before, as trainings have it, is against one thread that copies as many bytes over one batch; the whole stream, which fills
pools beside, against all threads. Streams that make each batch anew are against copies into fresh tensors. With a GPU, windows
are stacked and copied there.
"""

import itertools
from collections.abc import Iterator

import torch

from spkid_dist.bench.limits import local_tars, read_files
from spkid_dist.bench.rows import POOLS, STACK, Findings, Row, make_row
from spkid_dist.bench.workbench import Case, Workbench
from spkid_dist.config.choices import DEFAULT_SHUFFLE_WINDOWS
from spkid_dist.dataset import StreamDtype, WindowDataset
from spkid_dist.process.threads import torch_threads
from spkid_dist.streaming.stacking import Batch, HostStack

SOURCE_BATCHES = 96  # of the copied buffer: more than the processor's cache
POOL_PARTS = 20
READ, COPY_ONE, COPY_OVER, COPY_NEW = (
    "reading the shards",
    "copying over one batch, 1 thread",
    "copying over one batch",
    "copying into fresh tensors",
)
FILL, TAKE = "filling a pool", "stacking out of a pool"
REUSED, RESIDENT, PARTS = (
    "streaming, as in training",
    "streaming into fresh tensors",
    "streaming, pools of a twentieth",
)


def measure_stream(bench: Workbench) -> Findings:
    """Measure filling, stacking, and the stream with pools that hold all windows of a run, and a twentieth of them."""
    config = bench.config
    data = open_stream(bench, DEFAULT_SHUFFLE_WINDOWS)
    windows = run_windows(bench, data)
    batches = max(1, windows // config.batch_size)
    copies = {
        fresh: copy_case(batches, share_of_batch(bench), data.in_features, fresh, bench) for fresh in (True, False)
    }
    cases: dict[str, Case] = {
        COPY_OVER: on_threads(bench.threads, copies[False]),
        COPY_NEW: on_threads(bench.threads, copies[True]),
        FILL: fill_case(bench, windows),
        TAKE: take_case(bench, windows),
        REUSED: stream_case(data, batches, bench),
        PARTS: stream_case(open_stream(bench, max(1, windows // POOL_PARTS), reuse=False), batches, bench),
    }
    if bench.device.type == "cpu":
        cases[COPY_ONE] = on_threads(1, copies[False])
    if windows >= data.num_windows:
        cases[RESIDENT] = stream_case(open_stream(bench, data.num_windows, reuse=False), batches, bench)
    if tars := local_tars(bench):
        per_byte = data.num_windows / sum(shard.bytes for shard in data.data.manifest.shards)
        cases[READ] = lambda: read_files(tars) * per_byte
    rates = bench.rates(cases)
    taken_against = COPY_ONE if COPY_ONE in rates else COPY_OVER
    rows = [_row(POOLS, FILL, rates, READ), _row(STACK, TAKE, rates, taken_against)]
    rows.append(_row(STACK, REUSED, rates, COPY_OVER))
    rows += [_row(STACK, name, rates, COPY_NEW) for name in (RESIDENT, PARTS) if name in rates]
    return Findings(rows=rows, figures={"rates": rates, "windows_of_a_run": windows})


def _row(stage: str, name: str, rates: dict[str, list[float]], limit: str) -> Row:
    against = (limit, rates[limit]) if limit in rates else None
    on_path = name in (FILL, TAKE)
    return make_row(stage, name, "windows/s", rates[name], limit=against, windows_per_unit=1.0, on_path=on_path)


def open_stream(
    bench: Workbench, shuffle_windows: int, *, reuse: bool = True, dtype: StreamDtype = "float32"
) -> WindowDataset:
    """The rank's share of the stream, stacked where a training has it."""
    return WindowDataset(
        bench.shards,
        in_frames=bench.config.in_frames,
        batch_size=bench.config.batch_size,
        shuffle_windows=shuffle_windows,
        device=None if bench.device.type == "cpu" else bench.device,
        placed=bench.device.type == "cuda",
        reuse=reuse,
        dtype=dtype,
        rank=bench.rank,
        world_size=bench.world_size,
    )


def run_windows(bench: Workbench, data: WindowDataset) -> int:
    """Windows of a run, of all ranks together: an epoch, or --frames where that is less."""
    return min(data.num_windows, bench.config.frames)


def share_of_batch(bench: Workbench) -> int:
    """Windows of a batch that are this rank's, about."""
    return max(1, bench.config.batch_size // bench.world_size)


def on_threads(count: int, case: Case) -> Case:
    """The case, with so many threads of torch."""

    def run() -> float:
        with torch_threads(count):
            return case()

    return run


def copy_case(batches: int, batch_size: int, in_features: int, fresh: bool, bench: Workbench | None = None) -> Case:
    """Copy batches (batch_size, in_features) out of a large buffer, each into a `fresh` tensor or over the one before."""
    source = torch.randn(SOURCE_BATCHES * batch_size, in_features, device=None if bench is None else bench.device)
    out = torch.empty_like(source[:batch_size])

    def copy() -> float:
        for batch in range(batches):
            at = batch % SOURCE_BATCHES * batch_size
            (torch.empty_like(out) if fresh else out).copy_(source[at : at + batch_size])
        if bench is not None:
            bench.wait()
        return batches * batch_size

    return copy


def endless(data: WindowDataset) -> Iterator[Batch]:
    """Batches of epoch after epoch; taking some of them does not end an iteration, which would let go of the pools."""
    while True:
        yield from data


def stream_case(data: WindowDataset, batches: int | None = None, bench: Workbench | None = None) -> Case:
    """Stream so many batches, or as many as an epoch has, each time on from where it was."""
    stream, count = endless(data), len(data) if batches is None else batches

    def run() -> float:
        windows = sum(len(y) for _, y in itertools.islice(stream, count))
        if bench is not None:
            bench.wait()
        return windows

    return run


def fill_case(bench: Workbench, windows: int) -> Case:
    """Fill this rank's pools with a run's windows, as many at a time as a training does."""
    data = open_stream(bench, min(windows, DEFAULT_SHUFFLE_WINDOWS))
    generations = -(-windows // data.order.generation_windows)

    def fill() -> float:
        filler = data.pool_filler()  # a new one: it keeps blocks that it has read and checked
        filled = 0
        for generation in range(generations):
            pool = filler.fill(0, generation)  # while the one before is there, as in a training
            filled += len(pool.starts)
        return filled

    return fill


def take_case(bench: Workbench, windows: int) -> Case:
    """Stack all windows of one pool, batch over batch."""
    data = open_stream(bench, min(windows, DEFAULT_SHUFFLE_WINDOWS))
    if data.is_placed:
        return _take_placed(bench, data)
    pool = data.pool_filler().fill(0, 0)
    stack, size, count = HostStack(pool), share_of_batch(bench), len(pool.starts)

    def take() -> float:
        for first in range(0, count, size):
            piece = slice(first, min(first + size, count))
            stack.take(piece, *data.memory.of(piece.stop - piece.start))
        bench.wait()
        return count

    return take


def _take_placed(bench: Workbench, data: WindowDataset) -> Case:
    """Stack the windows of all steps that are on the device together."""
    steps = data.next_steps(len(data))

    def take() -> float:
        for step in range(len(steps)):
            steps.batch(step, data.memory)
        bench.wait()
        return sum(steps.count)

    return take
