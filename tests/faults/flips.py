"""Flip one bit of one file: it is refused, or the bit means nothing and the result is that of the sound file.

Files of other programs' formats that carry no checksum are left out: lists, features, recordings, `.npy`.
"""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import make_kind, names_in
from judging import PARTLY, Snapshot, common_faults, error_faults, left_faults
from reference import Reference, references_of, row_of
from running import Process, run
from table import COMMANDS, KINDS, place_of
from world import copy_world

# Kinds without a checksum of ours, whose flips are found, too: by zip's own checksum, or by what the values must be.
ALSO = ("options", "checkpoint chain", "calibration", "scores", "scores table", "embeddings")


@dataclass(frozen=True, kw_only=True)
class FlipCase:
    """A kind of file, where in it a bit is flipped (as a share of its length), and the command that reads it."""

    name: str
    kind: str
    at: float
    bit: int
    command: str


def make_cases(count: int, seed: int) -> list[FlipCase]:
    """`count` flips; each kind of file comes equally often."""
    draw = random.Random(f"flips {seed}")
    kinds = [name for name, kind in KINDS.items() if kind.sealed or name in ALSO]
    cases = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        commands = [name for name in KINDS[kind].commands if name in COMMANDS and name not in PARTLY]
        command = draw.choice(commands)
        cases.append(
            FlipCase(name=f"flips-{number:04d}", kind=kind, at=draw.random(), bit=draw.randrange(8), command=command)
        )
    return cases


def prepare(cases: Sequence[FlipCase], world: Path, scratch: Path) -> dict[str, Reference]:
    """What the commands make of the sound world."""
    return references_of({case.command for case in cases}, world, scratch)


def run_case(case: FlipCase, world: Path, scratch: Path, references: dict[str, Reference]) -> dict[str, Any]:
    """What a flip gave; accepted ones say where they are."""
    own = scratch / case.name
    own.mkdir()
    folder = copy_world(world, own / "w")
    make_kind(case.kind, folder)
    path = place_of(KINDS[case.kind], folder)
    data = bytearray(path.read_bytes())
    at = int(case.at * len(data))
    data[at] ^= 1 << case.bit
    path.write_bytes(data)
    command = COMMANDS[case.command]
    before = Snapshot.of(folder)
    outcome = run(Process(words=command.words, folder=folder))
    faults = common_faults(outcome)
    if outcome.code:
        faults += error_faults(outcome, names_in(folder, command))
    else:
        faults += references[case.command].differences(command, folder, outcome.output)
    faults += left_faults(before, Snapshot.of(folder), command, outcome)
    shutil.rmtree(own)
    what = f"{case.kind}: bit {case.bit} of byte {at} of {len(data)}"
    return row_of(case.name, case.kind, what, command, [outcome], faults)
