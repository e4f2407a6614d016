"""Who speaks an utterance: rules that find the speaker's name by the utterance's key.

A rule is a function from a key to a name. It raises InputError where it finds none; who calls it puts in front of the
message where the key was listed, or does without a speaker.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError, UsageError
from shards.files import read_text

SpeakerRule = Callable[[str], str]
"""From an utterance's key to its speaker; raises InputError where there is none."""

GROUP = "speaker"
REMEDY = "add it there, or remove the utterance from the list"


@dataclass(frozen=True)
class ComponentRule:
    """The key's component, split at ``/`` and counted from 1; a class, so that lists are scanned by compiled loops."""

    component: int

    def __call__(self, key: str) -> str:
        """The speaker. Raises InputError where the key has no such component, or an empty one."""
        parts = key.split("/")
        if len(parts) < self.component or not parts[self.component - 1]:
            raise InputError(
                f"utterance {key!r} has no component {self.component} to name its speaker; expected a line such as "
                "BLOCK00/SES000/SA000S01, or set --speaker_component"
            )
        return parts[self.component - 1]


def speaker_by_component(component: int = 2) -> SpeakerRule:
    """The key's component, split at ``/`` and counted from 1.

    Raises:
        UsageError: `component` < 1.
    """
    if component < 1:
        raise UsageError(f"--speaker_component {component}: components count from 1; give 1 or more")
    return ComponentRule(component)


def speaker_by_regex(pattern: str) -> SpeakerRule:
    """What a group of the regular expression `pattern` finds in the key: its only group, or the one named ``speaker``.

    Raises:
        UsageError: `pattern` is not a regular expression, or has no such group.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--speaker_regex {pattern!r}: not a regular expression: {error}") from None
    if GROUP not in expression.groupindex and expression.groups != 1:
        raise UsageError(
            f"--speaker_regex {pattern!r}: it has {expression.groups} groups; expected one, or one named {GROUP}, such as "
            f"'_(?P<{GROUP}>[^_]+)_'"
        )
    group = GROUP if GROUP in expression.groupindex else 1

    def rule(key: str) -> str:
        found = expression.search(key)
        if found is None or not found[group]:
            raise InputError(
                f"the regular expression {pattern!r} finds no speaker in utterance {key!r}; change --speaker_regex, "
                "or remove the utterance from the list"
            )
        return str(found[group])

    return rule


def speaker_by_tsv(path: Path) -> SpeakerRule:
    """What a table says: a line ``key<TAB>speaker`` an utterance. It may name more utterances than a list has.

    Raises:
        InputError: the table is missing, a line has not two columns, or a key occurs twice.
    """
    text = read_text(path, "the table of speakers", "give a file with a line KEY<TAB>SPEAKER an utterance")
    return _lookup(path, _read_table(path, text, "\t", "KEY<TAB>SPEAKER"))


def speaker_by_utt2spk(path: Path) -> SpeakerRule:
    """What a Kaldi ``utt2spk`` says: a line ``key speaker`` an utterance. It may name more utterances than a list has.

    Raises:
        InputError: the file is missing, a line has not two columns, or a key occurs twice.
    """
    text = read_text(path, "the speakers of a Kaldi folder", "give a file with a line KEY SPEAKER an utterance")
    return _lookup(path, _read_table(path, text, None, "KEY SPEAKER"))


def _read_table(path: Path, text: str, separator: str | None, expected: str) -> dict[str, str]:
    """The two columns of each line as a dictionary; blank lines are ignored."""
    speakers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split(separator)]
        if len(columns) != 2 or not all(columns):
            raise InputError(
                f"{path}:{number}: {len(columns)} columns in {line!r}; expected {expected}, both not empty: correct the line"
            )
        key, speaker = columns
        if key in speakers:
            raise InputError(
                f"{path}:{number}: utterance {key!r} occurs a second time (it has speaker {speakers[key]!r} already); "
                "expected one line an utterance: remove one"
            )
        speakers[key] = speaker
    return speakers


def _lookup(path: Path, speakers: dict[str, str]) -> SpeakerRule:
    def rule(key: str) -> str:
        if key not in speakers:
            raise InputError(f"utterance {key!r} is not among the {len(speakers)} of {path}; {REMEDY}")
        return speakers[key]

    return rule
