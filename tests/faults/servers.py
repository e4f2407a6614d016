"""Give commands the URLs of servers that lie: an error in one line, or the right result; memory, disk and time are bounded."""

import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import names_in
from judging import Snapshot, common_faults, error_faults
from lying_server import LIES, lying
from reference import Reference, references_of, row_of
from running import Process, run
from table import Command, command_of
from world import copy_world

SERVED = "data/test"
MOST_SECONDS = 200.0  # a store that fails is asked for two minutes, for each of the files
CACHE_BYTES = 1_000_000
MOST_DISK = 20_000_000
READERS = {
    "score": ("score --no_pictures --log_file r.log --scores r.npz --model ckpt --te_shards {url}", "score"),
    "info": ("info --json {url}", ""),
}
CACHED = f" --shard_cache kept --shard_cache_bytes {CACHE_BYTES}"


@dataclass(frozen=True, kw_only=True)
class ServerCase:
    """A lie, and the command that is told it, with a cache or without."""

    name: str
    lie: str
    command: str
    cached: bool


def make_cases(count: int, seed: int) -> list[ServerCase]:
    """`count` cases: each lie to the command that reads all, without and with a cache, then to the others."""
    draw = random.Random(f"servers {seed}")
    all_of_them = [(lie, "score", cached) for cached in (False, True) for lie in LIES] + [
        (lie, "info", False) for lie in LIES
    ]
    chosen = all_of_them if count >= len(all_of_them) else draw.sample(all_of_them, count)
    return [
        ServerCase(name=f"servers-{number:04d}", lie=lie, command=command, cached=cached)
        for number, (lie, command, cached) in enumerate(chosen)
    ]


def prepare(_cases: Sequence[ServerCase], world: Path, scratch: Path) -> dict[str, Reference]:
    """What scoring the folder itself gives."""
    return references_of(["score"], world, scratch)


def run_case(case: ServerCase, world: Path, scratch: Path, references: dict[str, Reference]) -> dict[str, Any]:
    """What a lie gave."""
    own = scratch / case.name
    own.mkdir()
    folder = copy_world(world, own / "w")
    words, like = READERS[case.command]
    before = Snapshot.of(folder)
    with _server(world / SERVED, case.lie) as url:
        text = (words + (CACHED if case.cached else "")).replace("{url}", url)
        command = command_of(text, *(("r.log", "r.json", "r.npz") if like else ()))
        outcome = run(Process(words=command.words, folder=folder, most_seconds=MOST_SECONDS))
    faults = common_faults(outcome)
    if outcome.code:
        faults += error_faults(outcome, names_in(folder, command) | {url})
        whole = before.new(Snapshot.of(folder)) & set(command.outputs)
        faults += [f"it failed and left {sorted(whole)}"] if whole else []
    elif like:
        faults += _differences(references[like], command, folder)
    disk = sum(path.lstat().st_blocks * 512 for path in own.rglob("*")) - _size(world)
    if disk > MOST_DISK:
        faults.append(f"it filled {disk >> 20} MB of disk")
    shutil.rmtree(own)
    what = f"{case.lie}, to {case.command}{' with a cache' if case.cached else ''}"
    return row_of(case.name, case.lie, what, Command(words=tuple(text.replace(url, "URL").split())), [outcome], faults)


def _differences(reference: Reference, command: Command, folder: Path) -> list[str]:
    """What is wrong with scores; the names of places differ."""
    from table import results_of

    found = results_of(command, folder, "")
    return [] if found.get("r.log") == reference.results["r.log"] else ["exit code 0 with another result"]


def _size(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


@contextmanager
def _server(folder: Path, lie: str) -> Iterator[str]:
    """A server in a process of its own, as threads don't survive the forks of this one; its URL."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with lying(folder, LIES[lie]) as server:
                os.write(writer, server.url.encode())
                os.close(writer)
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    url = os.read(reader, 100).decode()
    os.close(reader)
    try:
        yield url
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
