"""Say text of unknown origin as plain text: without characters that a terminal acts on, and without credentials.

Names, keys and paths come from files that somebody else may have made, URLs and commands from users who put passwords and keys
into them. What is printed, logged or written beside results goes through here.
"""

import re

# Control characters (C0, DEL, C1), the line and paragraph separators, the marks that turn the direction of text, and halves of
# surrogate pairs, which stand for bytes that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
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
