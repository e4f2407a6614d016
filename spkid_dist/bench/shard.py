"""Measure sharding of feature files against `tar cf` of the same files, which only reads and writes.

Everything is in the page cache and goes to the same file system. The start of the workers and the first call's compiling are
left out, tar's start is in. Several ranks shard their shares of the files at once.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path

from shards.conversion.workers import process_pool
from shards.errors import InputError
from spkid_dist.bench.corpus import Files
from spkid_dist.bench.rows import SHARD, Findings, make_row, middle
from spkid_dist.bench.workbench import Workbench

TAR, ALONE = "tar cf", "spkid shard, 1 process"
SHARDS = 8  # so that several workers have several shards each


def measure_shard(bench: Workbench) -> Findings:
    """Measure sharding by one process, and by as many as there are CPUs for."""
    files, out = bench.corpus.files, bench.corpus.work / f"out-{bench.rank}"
    assert files is not None, "sharding needs files"
    share = files.share(bench.rank, bench.world_size)
    with ExitStack() as stack:
        executor = stack.enter_context(process_pool(bench.workers)) if bench.workers > 1 else None
        cases = shard_cases(share, out, executor, bench.workers)
        rates = bench.rates(cases, before=lambda: clean(out))
    shutil.rmtree(out)
    ours = [name for name in rates if name != TAR]
    fastest = max(ours, key=lambda name: middle(rates[name]))
    windows = files.windows_per_byte(bench.config.in_frames)
    rows = [
        make_row(
            SHARD, name, "B/s", rates[name], limit=(TAR, rates[TAR]), windows_per_unit=windows, on_path=name == fastest
        )
        for name in ours
    ]
    return Findings(rows=rows, figures={"rates": rates, "bytes": files.num_bytes()})


def shard_cases(files: Files, out: Path, executor: Executor | None, workers: int) -> dict[str, Callable[[], float]]:
    """tar, this process, and `workers` of the executor where there is one; each returns the bytes of the files.

    Raises:
        InputError: a file is missing, or there is no tar.
    """
    num_bytes = files.num_bytes()
    shard_bytes = max(1, num_bytes // SHARDS)
    tar, list_path = shutil.which("tar"), out.with_name(f"{out.name}.list")
    if tar is None:
        raise InputError("tar: not found, and it is what sharding is compared with; install it")
    folder = files.source.db_path
    list_path.write_text("".join(f"{path.relative_to(folder)}\n" for path in files.paths()))

    def with_tar() -> float:
        out.mkdir()
        options = ("--verbatim-files-from", "--files-from", list_path)
        done = subprocess.run([tar, "cf", out / "corpus.tar", "-C", folder, *options], capture_output=True, check=False)
        if done.returncode:
            raise InputError(f"{folder}: tar can't archive it: {done.stderr.decode(errors='replace').strip()[:300]}")
        return num_bytes

    def alone() -> float:
        files.shard(out, shard_bytes=shard_bytes)
        return num_bytes

    def side_by_side() -> float:
        files.shard(out, executor=executor, workers=workers, shard_bytes=shard_bytes)
        return num_bytes

    cases = {TAR: with_tar, ALONE: alone}
    return cases if executor is None else cases | {f"spkid shard, {workers} workers": side_by_side}


def clean(out: Path) -> None:
    """Remove what a case has made, and leave nothing to flush: ours flushes what it writes, tar does not."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
