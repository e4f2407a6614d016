"""Give commands bad inputs: every kind of file, damaged in every way, to every command that reads the kind."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arrays
import forged
import texts
from damage import EVERYWHERE, UNTOUCHED, Damage, Place
from flags import FLAG_CASES
from judging import Snapshot, common_faults, error_faults, left_faults, may_accept
from reference import Reference, references_of
from running import Process, run
from table import COMMANDS, KINDS, Command, place_of
from world import copy_world

FAMILIES: dict[str, tuple[Damage, ...]] = {
    "list": texts.LIST,
    "table": texts.TABLE,
    "json": texts.JSON,
    "yaml": texts.YAML,
    "fmatrix": arrays.FMATRIX,
    "npy": arrays.NPY,
    "npz": arrays.NPZ,
    "arrays": arrays.NPZ,
    "wav": arrays.WAV,
    "flac": arrays.FLAC,
    "ark": arrays.ARK,
    "parquet": arrays.PARQUET,
    "manifest": (*texts.JSON, *forged.MANIFEST),
    "blocks": (*arrays.NPY, *forged.TABLES),
    "utterances": (*arrays.NPY, *forged.TABLES),
    "tar": forged.TAR,
    "checkpoint": (*texts.JSON, *forged.CHECKPOINT),
    "weights": forged.WEIGHTS,
    "state": forged.WEIGHTS,
}
FRESH = 10  # every so many cases start from nothing


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """A damage to a kind of file, and a command that reads it. `kind` "flags": `words` are a command line."""

    name: str
    kind: str
    damage: str
    command: str
    seed: str
    fresh: bool = False
    words: tuple[str, ...] = ()


def damages_of(kind: str) -> dict[str, Damage]:
    """All damages of a kind of file, by name."""
    return {damage.name: damage for damage in (UNTOUCHED, *FAMILIES[KINDS[kind].family], *EVERYWHERE)}


def make_cases(count: int, seed: int) -> list[InputCase]:
    """`count` cases; each kind and each damage of it comes about as often as the others."""
    draw = random.Random(f"inputs {seed}")
    piles = [
        [
            (kind, damage, command)
            for damage in damages_of(kind)
            for command in KINDS[kind].commands
            if command in COMMANDS
        ]
        for kind in KINDS
    ]
    piles.append([("flags", " ".join(words), "") for words in FLAG_CASES])
    for pile in piles:
        draw.shuffle(pile)
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < count and any(piles):
        chosen += [pile.pop() for pile in piles if pile]
    words = {" ".join(words): words for words in FLAG_CASES}
    return [
        InputCase(
            name=f"inputs-{number:04d}", kind=kind, damage=damage, command=command, seed=f"{seed} {number}",
            fresh=number % FRESH == 0, words=tuple(words.get(damage, ())) if kind == "flags" else (),
        )
        for number, (kind, damage, command) in enumerate(chosen[:count])
    ]  # fmt: skip


def run_case(case: InputCase, world: Path, scratch: Path, references: dict[str, Reference]) -> dict[str, Any]:
    """What a case gave: a row of the campaign's results."""
    own = scratch / case.name
    own.mkdir()
    folder = copy_world(world, own / "w")
    make_kind(case.kind, folder)
    is_flags = case.kind == "flags"
    damage = UNTOUCHED if is_flags else damages_of(case.kind)[case.damage]
    command = Command(words=case.words) if is_flags else COMMANDS[case.command]
    said: object = ""
    passes = False
    if not is_flags:
        path = place_of(KINDS[case.kind], folder)
        place = Place(path=path, world=folder, random=random.Random(case.seed), kept=scratch)
        size = path.stat().st_size if path.exists() else None
        said = damage.apply(place) or ""
        passes = KINDS[case.kind].by_size and path.is_file() and path.stat().st_size == size
    before = Snapshot.of(folder)
    fresh = case.fresh and not damage.powerless  # a program that root starts has root's rights
    outcome = run(Process(words=command.words, folder=folder, fresh=fresh, powerless=damage.powerless))
    faults = common_faults(outcome)
    if outcome.code:
        faults += error_faults(outcome, names_in(folder, command) | _values(case.words))
    elif is_flags:
        faults.append("it was accepted")
    elif not passes and not may_accept(KINDS[case.kind], damage, case.command):
        faults += references[case.command].differences(command, folder, outcome.output)
    faults += left_faults(before, Snapshot.of(folder), command, outcome)
    faults += [f"it left {path.name} in TMPDIR" for path in (own / "tmp").iterdir()][:2]
    shutil.rmtree(own)
    return {
        "name": case.name, "group": case.kind, "faults": faults, "code": outcome.code, "seconds": outcome.seconds,
        "peak": outcome.peak_bytes, "fresh": fresh,
        "what": f"{case.kind}: {damage.name if not is_flags else 'bad flags'} {said}".strip(),
        "command": Process(words=command.words, folder=folder).shown, "error": outcome.error[-600:],
    }  # fmt: skip


def _values(words: Sequence[str]) -> set[str]:
    """What a message may quote of a bad command line: the ends of places, the values of flags."""
    return {
        part for word in words[1:] if not word.startswith("--") for part in (word, str(Path(word))) if len(part) > 1
    }


def make_kind(kind: str, folder: Path) -> None:
    """Make the file of a kind in a case's own world, where the command that reads it would not take the copy of another."""
    if kind in KINDS and KINDS[kind].made_by:
        outcome = run(Process(words=KINDS[kind].made_by.split(), folder=folder))
        if outcome.code:
            raise RuntimeError(f"spkid {KINDS[kind].made_by}: {outcome.code}: {outcome.error[-2000:]}")


def names_in(folder: Path, command: Command) -> set[str]:
    """Names of files and folders that a message may point to: what there is, and what the command would write."""
    return {path.name for path in folder.rglob("*") if len(path.name) > 2} | set(command.outputs)


def prepare(cases: Sequence[InputCase], world: Path, scratch: Path) -> dict[str, Reference]:
    """What all commands that the cases run make of the sound world."""
    return references_of({case.command for case in cases if case.command}, world, scratch)
