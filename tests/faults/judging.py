"""Judge what a command did with a bad input: it ended in time, with one line that helps, and left nothing half done."""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from damage import Damage
from running import MOST_BYTES, Outcome
from table import Command, Kind, without_place

TRACEBACK = "Traceback (most recent call last)"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
FLAG = re.compile(r"--[a-z]|\bspkid \w")
LITTER = re.compile(r"\.tmp-|\.held-by|\.staging|^\.[^.].*-\d+\.\d+-[0-9a-f]{8}")
CODES = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a folder had: path below it -> (kind of file, digest of its contents)."""

    entries: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, folder: Path) -> "Snapshot":
        """The present state of a folder; links are not followed, and large files are known by their size."""
        entries = {}
        for root, folders, files in os.walk(folder):
            for name in [*folders, *files]:
                path = Path(root) / name
                status = path.lstat()
                digest = ""
                if stat.S_ISREG(status.st_mode):
                    small = status.st_size < 1 << 26
                    digest = hashlib.md5(path.read_bytes()).hexdigest() if small else str(status.st_size)  # noqa: S324
                entries[without_place(str(path.relative_to(folder)))] = (stat.S_IFMT(status.st_mode), digest)
        return cls(entries=entries)

    def new(self, later: "Snapshot") -> set[str]:
        """What a later state has more."""
        return later.entries.keys() - self.entries.keys()

    def changed(self, later: "Snapshot") -> set[str]:
        """What is another in a later state, or gone."""
        return {name for name, entry in self.entries.items() if later.entries.get(name) != entry}


def common_faults(outcome: Outcome) -> list[str]:
    """What no command may do, whatever it was given."""
    faults = []
    if TRACEBACK in outcome.error or TRACEBACK in outcome.output:
        last = [line for line in outcome.error.splitlines() if line.strip()][-1:]
        faults.append(f"a traceback: {''.join(last)[:200]}")
    if outcome.stopped:
        faults.append(f"it was killed: {outcome.stopped} after {outcome.seconds:.0f} s, {outcome.peak_bytes >> 20} MB")
    elif outcome.code < 0:
        faults.append(f"it ended by signal {-outcome.code}")
    elif outcome.code not in CODES:
        faults.append(f"exit code {outcome.code}")
    if outcome.peak_bytes > MOST_BYTES:
        faults.append(f"memory: {outcome.peak_bytes >> 20} MB")
    if outcome.left:
        faults.append("it left processes behind")
    for name, text in (("output", outcome.output), ("error", outcome.error)):
        found = CONTROL.search(text)
        if found:
            faults.append(f"its {name} has the control character {found[0]!r}")
    return faults


def error_faults(outcome: Outcome, names: set[str]) -> list[str]:
    """What is wrong with the message of a command that failed; `names` are those of the world's files and folders."""
    lines = outcome.error.splitlines()
    if TRACEBACK in outcome.error or outcome.stopped or outcome.code < 0:
        return []
    errors = [line for line in lines if line.startswith("spkid: error: ")]
    others = [line for line in lines if not line.startswith("spkid: ")]
    if len(errors) != 1 or others:
        return [f"{len(errors)} lines of error and {len(others)} others: {outcome.error[:300]!r}"]
    if not FLAG.search(errors[0]) and not any(name in errors[0] for name in names):
        return [f"its line names no file and no flag: {errors[0][:300]!r}"]
    return []


def left_faults(before: Snapshot, after: Snapshot, command: Command, outcome: Outcome) -> list[str]:
    """What a command that failed left: half-written results, temporary files, changed inputs."""
    faults = []
    new, changed = before.new(after), before.changed(after)
    if outcome.stopped or outcome.code < 0:
        return []
    litter = sorted(name for name in new if LITTER.search(Path(name).name))
    if litter:
        faults.append(f"it left {litter[:3]}")
    if "pwned" in {Path(name).name for name in new}:
        faults.append("it ran a command that the input held")
    if outcome.code == 0:
        return faults
    whole = {name for name in new if name in command.outputs and after.entries[name][0] == stat.S_IFREG}
    whole |= {name for name in new if Path(name).name == "manifest.json" and "checkpoints" not in name}
    if whole:
        faults.append(f"it failed and left {sorted(whole)[:3]}")
    inputs = {name for name in changed if not name.startswith(command.outputs or ("/",))}
    if inputs:
        faults.append(f"it failed and changed {sorted(inputs)[:3]}")
    return faults


def may_accept(kind: Kind, damage: Damage, command_name: str) -> bool:
    """Whether a command may give another result than that of the sound file: somebody may mean the file as it is."""
    if command_name.startswith("shard_skip") or kind.optional:
        return True  # it leaves out what it can't read
    if damage.refused:
        return False
    if damage.forged:
        return True  # whoever forges may choose values; what can't be must be refused, and breaks other rules otherwise
    return not kind.sealed or command_name in PARTLY


PARTLY = ("verify_quick", "info", "simulate")  # these read sizes, or the manifest alone
