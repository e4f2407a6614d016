"""Give each writing command too small a disk, then a larger one: one line, nothing that looks whole, then the right result.

The disk is a file system in memory of its own (root only), or the system's limit on the size of a file.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import names_in
from judging import Snapshot, common_faults, error_faults
from kills import prepare as prepare  # the same references
from reference import Reference, row_of, words_in
from running import Outcome, Process, run
from table import Command, results_of
from world import copy_world
from writing import WRITING

MOUNT = "small disk"
PAGE = os.sysconf("SC_PAGE_SIZE")
GROWING = (".log", "job.json", ".json", ".opts", ".png")  # written line by line, or earlier than the rest, or replaced


@dataclass(frozen=True, kw_only=True)
class DiskCase:
    """A command, the kind of limit, and its place between nothing and what the command writes."""

    name: str
    command: str
    limit: str
    share: float


def make_cases(count: int, seed: int) -> list[DiskCase]:
    """`count` full disks; each command comes equally often, two thirds of them with a disk of its own."""
    draw = random.Random(f"disks {seed}")
    names = list(WRITING)
    return [
        DiskCase(
            name=f"disks-{number:04d}",
            command=names[number % len(names)],
            limit="size of a file" if draw.random() < 1 / 3 else MOUNT,
            share=draw.random(),
        )
        for number in range(count)
    ]


def run_case(case: DiskCase, world: Path, scratch: Path, references: dict[str, Reference]) -> dict[str, Any]:
    """What a full disk, and then a larger one, gave."""
    own = scratch / case.name
    own.mkdir()
    command, reference = WRITING[case.command], references[case.command]
    what = f"{case.command}, {case.limit}, {case.share:.0%} of what it writes"
    if case.limit == MOUNT and os.geteuid() != 0:
        row = row_of(case.name, case.command, what, command, [_NOTHING], [])
        return row | {"skipped": True, "code": None}
    with _disk(own / "w", case.limit == MOUNT) as folder:
        copy_world(world, own / "w")
        before = Snapshot.of(folder)
        file_bytes = None
        if case.limit == MOUNT:
            _resize(folder, _used(folder) + round(case.share * (reference.wrote + PAGE * len(reference.left))))
        else:
            file_bytes = round(case.share * reference.largest)
        words = words_in(command, folder)
        first = run(Process(words=words, folder=folder, file_bytes=file_bytes))
        faults = common_faults(first)
        if first.code:
            faults += error_faults(first, names_in(folder, command)) + _half_written(command, reference, folder)
        else:
            faults += reference.differences(command, folder, first.output)
        if case.limit == MOUNT:
            _resize(folder, 1 << 30)
        outcomes = [first]
        if first.code:
            last = run(Process(words=words, folder=folder))
            outcomes.append(last)
            faults += common_faults(last) + reference.differences(command, folder, last.output)
            faults += [f"with room again: exit code {last.code}: {last.error[-300:]}"] if last.code else []
        faults += reference.litter(before, Snapshot.of(folder))
    shutil.rmtree(own)
    return row_of(case.name, case.command, what, command, outcomes, faults)


_NOTHING = Outcome(code=0, output="", error="", seconds=0.0, peak_bytes=0)


@contextmanager
def _disk(folder: Path, mounted: bool) -> Iterator[Path]:
    """The place of the world: a file system of its own, or a folder that is not there yet."""
    if not mounted:
        yield folder
        return
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _resize(folder: Path, num_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={-(-num_bytes // PAGE) * PAGE}", folder], check=True)


def _used(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _half_written(command: Command, reference: Reference, folder: Path) -> list[str]:
    """Files under their final names that are not what an undisturbed run leaves."""
    found: Sequence[str] = ()
    try:
        results = results_of(command, folder, "")
    except ValueError as error:
        return [f"it left a damaged file: {error}"]
    found = sorted(
        name
        for name, content in results.items()
        if name in reference.left and name in reference.results and content != reference.results[name]
        and not name.endswith(GROWING)
    )  # fmt: skip
    return [f"it failed and left half of {found[:3]}"] if found else []
