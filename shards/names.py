"""Check the names of utterances and speakers: they are printed, and written into tables of lines and tabs."""

from collections.abc import Iterable

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
