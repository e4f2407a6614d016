"""What commands make of the sound world when nothing disturbs them: results, names of the files they leave, and time."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judging import Snapshot
from running import Outcome, Process, run
from table import COMMANDS, Command, results_of, without_place
from world import copy_world


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A command's `results` by file, the names of the files that it `left` and took, its `seconds`, and how much it `wrote`."""

    results: dict[str, Any]
    left: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    seconds: float = 0.0
    wrote: int = 0
    largest: int = 0

    def differences(self, command: Command, folder: Path, output: str) -> list[str]:
        """What is wrong with results that should be these."""
        try:
            found = results_of(command, folder, output)
        except (ValueError, OSError) as error:
            return [f"exit code 0 with unreadable results: {error}"]
        names = found.keys() | self.results.keys()
        wrong = sorted(name for name in names if found.get(name) != self.results.get(name))
        return [f"exit code 0 with another result: {wrong[:4]}"] if wrong else []

    def litter(self, before: Snapshot, after: Snapshot) -> list[str]:
        """Files that an undisturbed run does not leave, or does not take away."""
        faults = []
        more = sorted(before.new(after) - self.left)
        if more:
            faults.append(f"litter: {more[:4]}")
        lost = sorted((self.left - before.new(after)) | (before.entries.keys() - after.entries.keys() - self.gone))
        if lost:
            faults.append(f"lost: {lost[:4]}")
        return faults


def references_of(names: Iterable[str], world: Path, scratch: Path) -> dict[str, Reference]:
    """The references of commands by name. Raises RuntimeError where one fails."""
    return {name: reference_of(COMMANDS[name], world, scratch / f"reference-{name}") for name in sorted(names)}


def reference_of(command: Command, world: Path, own: Path) -> Reference:
    """The reference of a command, made in the new folder `own`."""
    own.mkdir()
    folder = copy_world(world, own / "w")
    before = Snapshot.of(folder)
    outcome = run(Process(words=words_in(command, folder), folder=folder))
    if outcome.code or outcome.stopped:
        raise RuntimeError(f"spkid {' '.join(command.words)}: {outcome.code}: {outcome.error[-2000:]}")
    results = results_of(command, folder, outcome.output)
    after = Snapshot.of(folder)
    left = before.new(after)
    written = left | before.changed(after) & after.entries.keys()
    sizes = [path.stat().st_size for path in folder.rglob("*") if _name(path, folder) in written]
    shutil.rmtree(own)
    return Reference(
        results=results,
        left=left,
        gone=before.entries.keys() - after.entries.keys(),
        seconds=outcome.seconds,
        wrote=sum(sizes),
        largest=max(sizes, default=0),
    )


def _name(path: Path, folder: Path) -> str:
    return without_place(str(path.relative_to(folder)))


def words_in(command: Command, folder: Path) -> tuple[str, ...]:
    """The command's words, with the world's place where a URL needs it."""
    return tuple(word.replace("{world}", str(folder)) for word in command.words)


def row_of(
    name: str, group: str, what: str, command: Command, outcomes: Sequence[Outcome], faults: list[str]
) -> dict[str, Any]:
    """A row of the campaign's results; the code and the message are those of the last process."""
    return {
        "name": name,
        "group": group,
        "what": what,
        "command": Process(words=command.words, folder=Path()).shown,
        "faults": faults,
        "code": outcomes[-1].code,
        "seconds": max(outcome.seconds for outcome in outcomes),
        "peak": max(outcome.peak_bytes for outcome in outcomes),
        "error": outcomes[-1].error[-600:],
    }
