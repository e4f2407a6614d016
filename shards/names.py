"""Check the names of utterances and speakers, and compare those of speakers.

Names are printed, and written into tables of lines and tabs. A letter such as é may be one character or two, an e and an
accent: file systems and programs differ in that. Names of speakers are compared in one form, the composed one (NFC of
Unicode's annex 15). Keys of utterances are paths on a disk, which tells the forms apart: their bytes stay as they are.
"""

import unicodedata
from collections.abc import Iterable, Sequence

from shards.errors import InputError
from shards.plaintext import unsafe_character


def check_name(name: str, what: str, where: str) -> None:
    """Raise InputError where a name has a character that would end a line or a column, or that a terminal acts on.

    `what` it names, and `where` it stands, are for the message.
    """
    found = unsafe_character(name)
    if found is not None:
        raise InputError(f"{where}: {what} {name!r} has the character {found}, which no name may have: rename it")


def check_speakers_names(speakers: Iterable[str], where: str) -> None:
    """`check_name` of all speakers."""
    for name in speakers:
        check_name(name, "speaker", where)


def one_form(name: str) -> str:
    """A speaker's name in the form in which names are compared, NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def classes_of(speakers: Sequence[str]) -> dict[str, int]:
    """The class of each speaker, by the name and by its one form: a dataset may have been made with another form."""
    classes = {one_form(name): index for index, name in enumerate(speakers)}
    return classes | {name: index for index, name in enumerate(speakers)}


def are_alike(speakers: Sequence[str], others: Sequence[str]) -> bool:
    """Whether these are the same speakers in the same order."""
    return list(map(one_form, speakers)) == list(map(one_form, others))


def in_another_form(name: str, names: Iterable[str]) -> str | None:
    """That of `names` which looks like `name`, but is another string; None where there is none."""
    if name.isascii():
        return None
    composed = one_form(name)
    return next((other for other in names if other != name and one_form(other) == composed), None)
