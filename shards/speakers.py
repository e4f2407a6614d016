"""Find an utterance's speaker: rules that derive the speaker's name from the utterance's key.

A rule is a function from a key to a name, which is in one form (`shards.names`). It raises InputError where it finds none;
who calls it puts in front of the message where the key was listed, or does without a speaker.

Datasets and models keep the rule that named their speakers, as a JSON object (`describe_rule`): later commands then find
the speakers of other lists alike. A table is not kept, only that there was one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError, UsageError
from shards.files import read_text
from shards.lines import LINE_END, WHITE_SPACE, split_columns
from shards.names import check_name, classes_of, in_another_form, one_form

SpeakerRule = Callable[[str], str]
"""From an utterance's key to its speaker; raises InputError where there is none."""

GROUP = "speaker"
RULE_FIELD = "speaker_rule"  # of a source's description; where it is missing, the rule is the source's usual one
DEFAULT_COMPONENT = 2
SPEAKER_FLAGS = "--speaker_component, --speaker_regex, --speaker_tsv or --utt2spk"
REMEDY = "add it there, or remove the utterance from the list"
OTHER_FORM = "one of the same name in another Unicode form is"


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
                f"BLOCK00/SES000/SA000S01, or say what names the speakers: {SPEAKER_FLAGS}"
            )
        return one_form(parts[self.component - 1])

    def describe(self) -> dict[str, Any]:
        """The rule as a JSON object."""
        return {"by": "component", "value": self.component}


@dataclass(frozen=True)
class RegexRule:
    """What a group of a regular expression finds in the key."""

    expression: re.Pattern[str]
    group: str | int

    def __call__(self, key: str) -> str:
        """The speaker. Raises InputError where the expression finds none, or an empty one."""
        found = self.expression.search(key)
        if found is None or not found[self.group]:
            raise InputError(
                f"the regular expression {self.expression.pattern!r} finds no speaker in utterance {key!r}; change "
                "--speaker_regex, or remove the utterance from the list"
            )
        return one_form(found[self.group])

    def describe(self) -> dict[str, Any]:
        """The rule as a JSON object."""
        return {"by": "regex", "value": self.expression.pattern}


@dataclass(frozen=True)
class TableRule:
    """What the table at `path` says: `speakers` by key. `flag` is the option that takes such a table."""

    path: Path
    flag: str
    speakers: dict[str, str]

    def __call__(self, key: str) -> str:
        """The speaker. Raises InputError where the table lacks the key."""
        if key not in self.speakers:
            other = in_another_form(key, self.speakers)
            remedy = REMEDY if other is None else f"{OTHER_FORM}: write both alike"
            raise InputError(f"utterance {key!r} is not among the {len(self.speakers)} of {self.path}; {remedy}")
        return self.speakers[key]

    def describe(self) -> dict[str, Any]:
        """That it was a table, as a JSON object: of other utterances another table must tell."""
        return {"by": self.flag}


@dataclass(frozen=True)
class SpelledRule:
    """What another rule says, spelled as a dataset spells it that was made when forms of names were told apart."""

    rule: SpeakerRule
    speakers: Sequence[str]
    classes: dict[str, int]

    def __call__(self, key: str) -> str:
        """The speaker. Raises InputError as the other rule."""
        speaker = self.rule(key)
        index = self.classes.get(speaker)
        return speaker if index is None else self.speakers[index]


def spelled_as(speakers: Sequence[str], rule: SpeakerRule) -> SpeakerRule:
    """The rule, which names those of `speakers` as they are spelled here."""
    if all(name == one_form(name) for name in speakers):
        return rule
    return SpelledRule(rule, speakers, classes_of(speakers))


def speaker_by_component(component: int = DEFAULT_COMPONENT) -> SpeakerRule:
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
    return RegexRule(expression, GROUP if GROUP in expression.groupindex else 1)


def speaker_by_tsv(path: Path) -> SpeakerRule:
    """What a table says: a line ``key<TAB>speaker`` an utterance. It may name more utterances than a list has.

    Raises:
        InputError: the table is missing, a line has not two columns, or a key occurs twice.
    """
    text = read_text(path, "the table of speakers", "give a file with a line KEY<TAB>SPEAKER an utterance")
    return TableRule(path, "speaker_tsv", _read_table(path, text, "\t", "KEY<TAB>SPEAKER"))


def speaker_by_utt2spk(path: Path) -> TableRule:
    """What a Kaldi ``utt2spk`` says: a line ``key speaker`` an utterance. It may name more utterances than a list has.

    Raises:
        InputError: the file is missing, a line has not two columns, or a key occurs twice.
    """
    text = read_text(path, "the speakers of a Kaldi folder", "give a file with a line KEY SPEAKER an utterance")
    return TableRule(path, "utt2spk", _read_table(path, text, None, "KEY SPEAKER"))


def _read_table(path: Path, text: str, separator: str | None, expected: str) -> dict[str, str]:
    """The two columns of each line as a dictionary; blank lines are ignored."""
    speakers: dict[str, str] = {}
    for number, line in enumerate(LINE_END.split(text), start=1):
        if not line.strip(WHITE_SPACE):
            continue
        columns = split_columns(line) if separator is None else line.split(separator)
        columns = [column.strip(WHITE_SPACE) for column in columns]
        if len(columns) != 2 or not all(columns):
            raise InputError(
                f"{path}:{number}: {len(columns)} columns in {line!r}; expected {expected}, both not empty: correct the line"
            )
        key, speaker = columns
        check_name(speaker, "speaker", f"{path}:{number}")
        if key in speakers:
            raise InputError(
                f"{path}:{number}: utterance {key!r} occurs a second time (it has speaker {speakers[key]!r} already); "
                "expected one line per utterance: remove one"
            )
        speakers[key] = one_form(speaker)
    return speakers


def describe_rule(rule: SpeakerRule | None, kind: str) -> dict[str, Any]:
    """What a dataset of the `kind` of source keeps of the rule: {"speaker_rule": JSON object}, or nothing.

    Nothing is kept of the usual rule: None, and the second component where lists name the speakers (all but Kaldi folders).
    """
    if rule is None or (kind != "kaldi" and rule == ComponentRule(DEFAULT_COMPONENT)):
        return {}
    if isinstance(rule, ComponentRule | RegexRule | TableRule):
        return {RULE_FIELD: rule.describe()}
    return {RULE_FIELD: {"by": "function"}}


def kept_rule(description: Any) -> SpeakerRule | None:
    """The rule in a source's description; None where none is kept that names speakers of other utterances.

    Raises:
        InputError: it is damaged.
    """
    kept = description.get(RULE_FIELD) if isinstance(description, dict) else None
    if not isinstance(kept, dict):
        return None
    value = kept.get("value")
    try:
        if kept.get("by") == "component" and isinstance(value, int):
            return speaker_by_component(value)
        return speaker_by_regex(value) if kept.get("by") == "regex" and isinstance(value, str) else None
    except UsageError as error:
        raise InputError(f"the speaker rule in train.opts or the manifest is damaged: {error}") from None


def kept_table(description: Any) -> str | None:
    """What named the speakers where it can't name those of other utterances, for messages; None where a rule can."""
    kept = description.get(RULE_FIELD) if isinstance(description, dict) else None
    if not isinstance(kept, dict) or kept.get("by") in ("component", "regex"):
        return None
    by = kept.get("by")
    return {"several": "several rules", "function": "a function"}.get(str(by), f"the table of --{by}")
