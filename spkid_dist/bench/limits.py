"""Measure what this machine can do at most: memory, page cache, disk, bus, matrix products, and the network between ranks."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import torch

from spkid_dist.bench.rows import LIMITS, Findings, make_row
from spkid_dist.bench.workbench import Case, Workbench
from spkid_dist.process.threads import torch_threads
from spkid_dist.streaming.kernels import gather

MATRIX_SIDE = {"cpu": 1024}
ACCELERATOR_SIDE = 8192
READ_BYTES = 1 << 20
GATHERED_WINDOWS = 1000  # at a time, as a batch
COPIES = 4  # of a run
REDUCED_BYTES = 16 * 1024 * 1024


def measure_limits(bench: Workbench) -> Findings:
    """Measure all limits that there are here."""
    units: dict[str, str] = {}
    cases: dict[str, Case] = {}
    for unit, found in (
        ("B/s", memory_cases(bench)),
        ("B/s", read_case(bench)),
        ("windows/s", gather_cases(bench)),
        ("B/s", device_cases(bench)),
        ("FLOP/s", {f"matrix products, {kind}": matrix_case(bench, kind) for kind in ("fp32", "bf16")}),
        ("B/s", all_reduce_case(bench)),
    ):
        cases |= found
        units |= dict.fromkeys(found, unit)
    rates = bench.rates(cases)
    rows = [make_row(LIMITS, name, units[name], values) for name, values in rates.items()]
    disk, notes = _disk_rates(bench)
    rows += [make_row(LIMITS, name, "B/s", values) for name, values in disk.items()]
    return Findings(rows=rows, notes=notes, figures={"rates": rates | disk})


def memory_cases(bench: Workbench) -> dict[str, Case]:
    """Copying memory, by one thread and by all of this process."""
    source = torch.ones(bench.config.buffer_bytes // 4)
    target = torch.empty_like(source)

    def copy(threads: int) -> float:
        with torch_threads(threads):
            for _ in range(COPIES):
                target.copy_(source)
        return COPIES * source.nbytes

    counts = dict.fromkeys((1, bench.threads))
    return {f"copying memory, {_threads(count)}": lambda count=count: copy(count) for count in counts}  # type: ignore[misc]


def local_tars(bench: Workbench) -> list[Path]:
    """Shards of the dataset on this machine, `buffer_bytes` of them or one; none where it is at a URL."""
    if "://" in bench.shards:
        return []
    paths = sorted(Path(bench.shards).glob("*.tar"))
    ends = itertools.accumulate(path.stat().st_size for path in paths)
    few = [path for path, end in zip(paths, ends, strict=True) if end <= bench.config.buffer_bytes]
    return few or paths[:1]


def read_files(paths: list[Path]) -> float:
    """Read files into a buffer, by one thread; the bytes."""
    buffer, num_bytes = bytearray(READ_BYTES), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                num_bytes += count
    return num_bytes


def read_case(bench: Workbench) -> dict[str, Case]:
    """Reading shards out of the page cache."""
    paths = local_tars(bench)
    return {"reading the page cache, 1 thread": lambda: read_files(paths)} if paths else {}


def _disk_rates(bench: Workbench) -> tuple[dict[str, list[float]], list[str]]:
    """Reading the same shards after they were dropped from the page cache."""
    paths = local_tars(bench)
    if not (paths and hasattr(os, "posix_fadvise")):
        return {}, ["the disk was not measured: the dataset is not in a local folder, or the system drops no caches"]

    def drop() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    disk, cached = "reading the disk, cache dropped", "reading the page cache again"
    rates = bench.rates({disk: lambda: read_files(paths)}, before=drop)
    again = bench.rates({cached: lambda: read_files(paths)})
    if min(again[cached]) < 1.25 * max(rates[disk]):
        return rates, ["the disk is as fast as the page cache: the file system may not have dropped its cache"]
    return rates, []


def gather_cases(bench: Workbench) -> dict[str, Case]:
    """Gathering windows at random places of a large array, as stacking does: C*D float32 values each."""
    num_features, in_frames = _num_features(bench), bench.config.in_frames
    rows = max(in_frames + 1, bench.config.buffer_bytes // (4 * num_features))
    arena = torch.zeros(rows, num_features)
    places = np.random.default_rng(0).integers(0, rows - in_frames + 1, (20, GATHERED_WINDOWS))
    out = torch.empty(GATHERED_WINDOWS, in_frames * num_features)
    windows = arena.as_strided((rows - in_frames + 1, out.shape[1]), (num_features, 1))
    bits = np.dtype("u4")

    def by_one() -> float:
        for starts in places:
            gather(arena.numpy().reshape(-1).view(bits), starts, num_features, out.numpy().reshape(-1).view(bits))
        return float(places.size)

    def by_all() -> float:
        for starts in places:
            torch.index_select(windows, 0, torch.from_numpy(starts), out=out)
        return float(places.size)

    return {
        "gathering random windows, 1 thread": by_one,
        f"gathering by index_select, {_threads(bench.threads)}": by_all,
    }


def device_cases(bench: Workbench) -> dict[str, Case]:
    """Copying pinned memory to the accelerator; nothing where there is none."""
    if bench.device.type == "cpu":
        return {}
    source = torch.ones(bench.config.buffer_bytes // 4).pin_memory()
    target = torch.empty_like(source, device=bench.device)

    def copy() -> float:
        for _ in range(COPIES):
            target.copy_(source, non_blocking=True)
        bench.wait()
        return COPIES * source.nbytes

    return {f"copying to {bench.device.type}, pinned": copy}


def matrix_case(bench: Workbench, kind: str) -> Case:
    """Products of square matrices, in floating point operations; `kind` is fp32, bf16 or fp16."""
    largest = MATRIX_SIDE.get(bench.device.type, ACCELERATOR_SIDE)
    side = min(largest, math.isqrt(bench.config.buffer_bytes // 4))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> float:
        for _ in range(COPIES):
            torch.mm(a, b, out=out)
        bench.wait()
        return COPIES * 2.0 * side**3

    return multiply


def all_reduce_case(bench: Workbench) -> dict[str, Case]:
    """Summing an array over all ranks; the bytes are what a ring sends, as nccl-tests counts. Nothing for one rank."""
    if bench.world_size == 1:
        return {}
    num_bytes = min(REDUCED_BYTES, bench.config.buffer_bytes)
    tensor = torch.zeros(num_bytes // 4, device=bench.device)
    sent = num_bytes * 2 * (bench.world_size - 1) / bench.world_size

    def reduce() -> float:
        torch.distributed.all_reduce(tensor)
        bench.wait()
        return sent / bench.world_size  # all ranks do it together: their sum is one all-reduce

    return {f"all-reduce over {bench.world_size} ranks, {num_bytes / 1e6:.3g} MB": reduce}


def _num_features(bench: Workbench) -> int:
    from shards.dataset import ShardDataset

    return ShardDataset(bench.shards).manifest.num_features


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
