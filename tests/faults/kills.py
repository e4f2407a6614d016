"""Kill each writing command at a random moment, then run it again: the result is right, and nothing else is left."""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judging import Snapshot, common_faults
from reference import Reference, reference_of, row_of, words_in
from running import ENDS_WITHIN, Outcome, Process, group_lives, run, start, wait
from world import copy_world
from writing import WRITING

LATEST = 1.1  # of the time that the command takes


@dataclass(frozen=True, kw_only=True)
class KillCase:
    """A command, when it is killed (as a share of the time that it takes), and whether its children are killed with it."""

    name: str
    command: str
    at: float
    alone: bool
    again: float | None  # when the second run is killed, too


def make_cases(count: int, seed: int) -> list[KillCase]:
    """`count` kills; each command is killed equally often."""
    draw = random.Random(f"kills {seed}")
    names = list(WRITING)
    return [
        KillCase(
            name=f"kills-{number:04d}",
            command=names[number % len(names)],
            at=draw.random() * LATEST,
            alone=draw.random() < 0.5,
            again=draw.random() * LATEST if draw.random() < 0.2 else None,
        )
        for number in range(count)
    ]


def prepare(cases: Sequence[Any], world: Path, scratch: Path) -> dict[str, Reference]:
    """What the commands make of the world, undisturbed."""
    names = sorted({case.command for case in cases})
    return {
        name: reference_of(WRITING[name], world, scratch / f"reference-{number}") for number, name in enumerate(names)
    }


def run_case(case: KillCase, world: Path, scratch: Path, references: dict[str, Reference]) -> dict[str, Any]:
    """What a kill, or two, and another run gave."""
    own = scratch / case.name
    own.mkdir()
    folder = copy_world(world, own / "w")
    command, reference = WRITING[case.command], references[case.command]
    before = Snapshot.of(folder)
    process = Process(words=words_in(command, folder), folder=folder)
    faults, outcomes = [], []
    for share in (case.at, case.again):
        if share is not None and not (outcomes and outcomes[-1].code == 0):
            outcome, left = _run_and_kill(process, share * reference.seconds, case.alone)
            outcomes.append(outcome)
            faults += (
                [] if outcome.code in (0, -signal.SIGKILL) else [f"before it was killed: exit code {outcome.code}"]
            )
            faults += ["children of the killed process live on"] if left else []
    if outcomes[-1].code != 0:
        last = run(process)
        wrong = reference.differences(command, folder, last.output)
        faults += common_faults(last) + wrong
        if last.code and wrong:
            faults.append(f"the second run failed: {last.error[-300:]}")
        outcomes.append(last)
    else:
        faults += reference.differences(command, folder, outcomes[-1].output)
    faults += reference.litter(before, Snapshot.of(folder))
    faults += [f"left in TMPDIR: {path.name}" for path in (own / "tmp").iterdir()][:3]
    shutil.rmtree(own)
    what = f"{case.command}, killed at {case.at * reference.seconds:.2f} s of {reference.seconds:.2f}"
    return row_of(case.name, case.command, what, command, outcomes, faults)


def _run_and_kill(process: Process, seconds: float, alone: bool) -> tuple[Outcome, bool]:
    """Run a command and kill it after so many seconds; whether children of it went on for long."""
    child = start(process)
    began = time.monotonic()
    while time.monotonic() - began < seconds and not _has_ended(child):
        time.sleep(0.0005)
    if _has_ended(child):
        return wait(process, child, began), False
    if alone:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        left = group_lives(child, ENDS_WITHIN)
    else:
        os.killpg(child, signal.SIGKILL)
        left = False
    return wait(process, child, began), left


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
