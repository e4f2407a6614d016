"""Read a corpus: an utterance list, and a map from speakers to classes.

An utterance is named by its key, a line of the list such as ``BLOCK00/SES000/SA000S01``: a path below the feature
folder without its extension. Its speaker is one of the key's components, or what another rule of `shards.speakers` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import make_folder, write_json
from shards.jsontext import read_json, shown
from shards.lines import numbered_lines
from shards.names import check_name, check_speakers_names, classes_of, one_form
from shards.speakers import SpeakerRule, speaker_by_component

SPEAKER_MAP = 'a JSON file of speaker names and class indices, such as {"SES000": 0, "SES001": 1}'
UNKNOWN_SPEAKER_REMEDY = "add it there, or remove the utterance from the list"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of a list: its key and its speaker's name."""

    key: str
    speaker: str


def read_list(
    path: Path,
    speaker_component: int = 2,
    *,
    rule: SpeakerRule | None = None,
    speakers_known: bool = True,
    are_paths: bool = True,
) -> list[Utterance]:
    """Read an utterance list into memory: one key a line; `shards.lines` says what a line is.

    Args:
        path: the list, UTF-8 text.
        speaker_component: which component of the key, split at ``/`` and counted from 1, names the speaker.
        rule: names the speakers instead.
        speakers_known: False where a line need not name a speaker; the speaker is "" then.
        are_paths: whether keys are paths below a folder, as `check_key` has them. Those of Kaldi folders and of datasets are
            any text.

    Raises:
        InputError: the list is missing or empty, a key has no speaker, is no path as it must be, or occurs twice.
        UsageError: `speaker_component` < 1.
    """
    rule = rule or speaker_by_component(speaker_component)
    first_line: dict[str, int] = {}
    utterances = []
    for number, key in numbered_lines(path):
        if key in first_line:
            raise listed_twice(path, key, first_line[key], number)
        first_line[key] = number
        check_key(key, f"{path}:{number}", is_path=are_paths)
        utterances.append(Utterance(key, speaker_of(key, rule, f"{path}:{number}", known=speakers_known)))
    if not utterances:
        raise InputError(f"{path}: the utterance list is empty; give at least one utterance, one a line")
    return utterances


def listed_twice(path: Path, key: str, first: int, second: int) -> InputError:
    """The error of a key that stands on two lines of the list."""
    return InputError(
        f"{path}:{second}: utterance {key!r} stands on line {first} already; an utterance may be listed once: "
        "remove one of the lines"
    )


def check_key(key: str, where: str, *, is_path: bool = True) -> None:
    """Raise InputError where a key is no name, or no path below the feature folder, or not the shortest one.

    With other paths, such as ``a/./x`` and ``a//x`` beside ``a/x``, a file could be several utterances. Keys of Kaldi folders
    and of datasets need not be paths. `where` it is listed is for the message.
    """
    check_name(key, "utterance", where)
    components = key.split("/")
    if is_path and (".." in components or key.startswith("/")):
        raise InputError(f"{where}: utterance {key!r} leaves the feature folder; list paths below it")
    if is_path and ("." in components or "" in components):
        shortest = "/".join(component for component in components if component not in ("", "."))
        raise InputError(
            f"{where}: utterance {key!r} has a component that is empty or '.'; a file may be listed under one name only: write "
            f"{shortest!r}"
        )


def speaker_of(key: str, rule: SpeakerRule, where: str, *, known: bool = True) -> str:
    """The speaker that `rule` names; `where` the key is listed is for messages.

    Raises:
        InputError: the rule names none, and speakers must be `known`; else the speaker is "".
    """
    try:
        return rule(key)
    except InputError as error:
        if not known:
            return ""
        raise InputError(f"{where}: {error}") from None


def read_speakers(path: Path) -> list[str]:
    """Read a speaker map (JSON: speaker name -> class index) as names in class order, each in one form (`shards.names`).

    Raises:
        InputError: it is missing, not JSON, not such an object, names a speaker twice, also in two Unicode forms, or its
            indices are not exactly 0..n-1.
    """
    classes = read_json(path, "the speaker map", f"give {SPEAKER_MAP}", undecodable=True)
    if not isinstance(classes, dict) or not all(_is_index(value) for value in classes.values()):
        raise InputError(
            f"{path}: the speaker map must be one JSON object from speaker names to whole numbers, such as "
            '{"SES000": 0, "SES001": 1}'
        )
    speakers = sorted(classes, key=lambda name: classes[name])
    if not speakers:
        raise InputError(f"{path}: the speaker map is empty; expected at least one speaker")
    check_speakers_names(speakers, str(path))
    for expected, name in enumerate(speakers):
        if classes[name] != expected:
            raise InputError(
                f"{path}: class indices must be exactly 0..{len(speakers) - 1}, each once; {name!r} has {shown(classes[name])} "
                f"where {expected} was expected: number the speakers again"
            )
    return _in_one_form(speakers, path)


def _in_one_form(speakers: Sequence[str], path: Path) -> list[str]:
    """The names in the form in which they are compared."""
    classes: dict[str, int] = {}
    for index, name in enumerate(map(one_form, speakers)):
        if name in classes:
            raise InputError(
                f"{path}: the speakers of classes {classes[name]} and {index} are one name, {name!r}, in two Unicode forms; "
                "expected each speaker once: remove one, and number the speakers again"
            )
        classes[name] = index
    return list(classes)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def find_speakers(
    list_path: Path, utterances: Sequence[Utterance], map_path: Path, remedy: str = UNKNOWN_SPEAKER_REMEDY
) -> list[str]:
    """The speakers in class order, from the map, which has all of the list's; or of the list, where there is no map.

    Args:
        list_path: where the utterances were listed, for messages.
        utterances: the list.
        map_path: the speaker map; where it does not exist, the list's speakers are numbered in the order of their names.
        remedy: what the message advises where the map lacks a speaker.

    Raises:
        InputError: the map is damaged, or lacks a speaker of the list.
    """
    if not map_path.exists():
        return sorted({one_form(utterance.speaker) for utterance in utterances})
    speakers = read_speakers(map_path)
    check_speakers(list_path, utterances, map_path, speakers, remedy)
    return speakers


def write_speakers(map_path: Path, speakers: Sequence[str]) -> bool:
    """Write the map of `speakers`, in class order, where there is none yet; whether it was written.

    Raises:
        InputError: it can't be written.
    """
    if map_path.exists():
        return False
    make_folder(map_path.parent)
    write_json(map_path, {name: index for index, name in enumerate(speakers)})
    return True


def check_speakers(
    list_path: Path,
    utterances: Sequence[Utterance],
    map_path: Path,
    speakers: Sequence[str],
    remedy: str = UNKNOWN_SPEAKER_REMEDY,
) -> None:
    """Raise InputError where an utterance's speaker is not among `speakers`; the paths and `remedy` are for the message."""
    known = classes_of(speakers)
    for utterance in utterances:
        if one_form(utterance.speaker) not in known:
            raise InputError(
                f"{list_path}: the speaker {utterance.speaker!r} of utterance {utterance.key!r} is not among the "
                f"{len(speakers)} speakers of {map_path}; {remedy}"
            )
