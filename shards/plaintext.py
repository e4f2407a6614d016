"""Say text of unknown origin as plain text: without characters that a terminal acts on, and without credentials.

Names, keys and paths come from files that somebody else may have made, URLs and commands from users who put passwords and keys
into them. What is printed, logged or written beside results goes through here. Of a URL the user's name, the password, the
query and the fragment are left out; of a command all but the program and the words that say which file is read.
"""

import re

# Control characters (C0, DEL, C1), the line and paragraph separators, the marks that turn the direction of text, and halves of
# surrogate pairs, which stand for bytes that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MASK = "***"
PIPE_PREFIX = "pipe:"
NAME_MARK = "{name}"
# A password may hold an @, and where it was not written as URLs ask for, a slash.
_USER = re.compile(r"(?<=://)(?:[^/\s?#'\"]*|[^/:@\s'\"]+:(?!\d+/)[^@\s'\"]*)@")
_QUERY = re.compile(r"(://[^\s?#'\"]*)[?#](?!\*\*\*)[^\s'\"]*[^\s'\").,:;]")
_PROGRAM = re.compile(r"[\w./+-]+(?=\s|$)")
_NAMED_FILE = re.compile(r"[^\s'\"=]*\{name\}[^\s'\"]*")

_SAFE_NAMES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def unsafe_character(text: str) -> str | None:
    """The first character of `text` that no name may have, escaped as `printable` does; None where there is none."""
    found = _UNSAFE.search(text)
    return None if found is None else _escaped(found)


def printable(text: str) -> str:
    """`text` in one line, with escapes in the place of characters that a terminal acts on. A second call changes nothing."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character)
    return _SAFE_NAMES.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def masked(text: str) -> str:
    """`text` with a mask in the place of what may be secret in the URLs in it. A second call changes nothing."""
    return _QUERY.sub(rf"\1?{MASK}", _USER.sub(f"{MASK}@", text)) if "://" in text else text


def shown_place(place: str) -> str:
    """Where a dataset lies, for messages and records: a path as it is, a URL masked, of a command what tells it from others."""
    if not place.startswith(PIPE_PREFIX):
        return masked(place)
    command = place.removeprefix(PIPE_PREFIX)
    program = _PROGRAM.match(command.lstrip())
    files = _NAMED_FILE.findall(command)
    known = [program[0]] if program else []
    left_out = [] if command.split() == [*known, *files] else [MASK]
    return PIPE_PREFIX + " ".join([*known, *left_out, *map(masked, files)])


def is_remote(place: str) -> bool:
    """Whether the place of a dataset is a URL or a command, and no folder."""
    return "://" in place or place.startswith(PIPE_PREFIX)


def is_masked(text: str) -> bool:
    """Whether something was left out of the place of a dataset, so that it can't be read from this text."""
    return MASK in text and is_remote(text)
