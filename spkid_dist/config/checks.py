"""Check the options' values: what all commands have in common."""

import dataclasses
import math
import numbers
import os
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from shards.errors import UsageError
from shards.files import expand_home
from shards.plaintext import masked
from shards.stores.store import check_is_fingerprint
from spkid_dist.config.choices import EDGE_CODES

URLS_TOO = ("tr_shards", "va_shards", "te_shards", "shards", "out", "unknown", "folder", "files", "resume")
"""Fields that are text, as what they name may be no path: a URL, a command, a word."""

URL = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all commands' options: each value has its field's type, whoever made the object.

    A path may be given as text, and text that names a folder or URL as a Path; a list may stand for a tuple, and numbers of
    NumPy for Python's.
    """

    def __post_init__(self) -> None:
        """Bring the values to their types.

        Raises:
            UsageError: one is of another type, or none of its choices.
        """
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            hint, marks = _without_marks(hints[field.name])
            try:
                converted = _convert(value, hint)
            except TypeError as error:
                raise UsageError(f"--{field.name} {value!r}: expected {error}") from None
            if converted != field_default(field):  # a default is not what a user typed
                converted = _convert_places(converted, field.name, _flag_of(field.name, marks))
            if converted is not value:
                object.__setattr__(self, field.name, converted)


def field_default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; `dataclasses.MISSING` where it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _without_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type, and what tyro is told of it."""
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _flag_of(name: str, marks: tuple[Any, ...]) -> str:
    """What a user types before the value of a field, or what the help calls it."""
    if tyro.conf.Positional in marks:
        return name.upper()
    return "--" + next((mark.name for mark in marks if getattr(mark, "name", None)), name)


def _convert_places(value: Any, name: str, flag: str) -> Any:
    """The value with the home folder in the place of "~", if it is a path, or text that names a folder or URL."""
    if isinstance(value, tuple):
        return tuple(_convert_places(item, name, flag) for item in value)
    if isinstance(value, Path):
        _refuse_url(value, flag)
        return expand_home(value, flag) if str(value).startswith("~") else value
    if name in URLS_TOO and isinstance(value, str) and value.startswith("~"):
        return str(expand_home(Path(value), flag))
    return value


def _refuse_url(path: Path, flag: str) -> None:
    """Raise UsageError for a URL, of which a path has one slash; unless there is a folder of that name."""
    if URL.match(str(path)) and not Path(path.parts[0]).exists():
        given = masked(str(path).replace(":/", "://", 1))
        raise UsageError(
            f"{flag} {given}: this is a URL, and {flag} takes files and folders of this machine alone; copy it to one, or "
            "mount it"
        )


def _convert(value: Any, hint: Any) -> Any:
    """`value` as a value of the type `hint`. Raises TypeError, which says what was expected."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_optional(value, get_args(hint))
    if origin is Literal:
        return _expect(value if value in get_args(hint) else None, f"one of {', '.join(map(str, get_args(hint)))}")
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else None
        return tuple(_convert(item, get_args(hint)[0]) for item in _expect(items, "a list of values"))
    if hint is bool:
        return _expect(value if isinstance(value, bool) else None, "True or False")
    if hint is int:
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return _expect(int(value) if is_whole else None, "a whole number")
    if hint is float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return _expect(None if not is_number else value if isinstance(value, int) else float(value), "a number")
    if hint in (Path, str):
        return _expect(_convert_text(value, hint), "a path" if hint is Path else "text")
    return value  # options within options check themselves


def _convert_optional(value: Any, choices: tuple[Any, ...]) -> Any:
    if value is None and type(None) in choices:
        return None
    *others, hint = (choice for choice in choices if choice is not type(None))
    if others:  # one value or a tuple of several, which is what it becomes
        return _convert(value if isinstance(value, list | tuple) else (value,), hint)
    return _convert(value, hint)


def _convert_text(value: Any, kind: type[Path] | type[str]) -> Path | str | None:
    if isinstance(value, kind):
        return value
    return kind(value) if isinstance(value, str | os.PathLike) else None


def _expect(converted: Any, expected: str) -> Any:
    if converted is None:
        raise TypeError(expected)
    return converted


def at_least(minimum: float, **values: float) -> None:
    """Raise UsageError for the first of `values`, by flag, that is below `minimum`."""
    for name, value in values.items():
        if not value >= minimum:  # not `<`: NaN is refused too
            raise UsageError(f"--{name} {value}: expected {minimum} or more")


def check_fingerprints(place: object, flag: str, *fingerprints: str | None) -> None:
    """Raise UsageError where --fingerprint can't be one, or where no dataset is given by `flag`, whose value is `place`."""
    for fingerprint in fingerprints:
        if fingerprint is None:
            continue
        check_is_fingerprint(fingerprint)
        if place is None:
            raise UsageError(
                f"--fingerprint without --{flag}: it is that of a dataset; give --{flag} too, or leave it out"
            )


def from_zero_below(bound: float, **values: float) -> None:
    """Raise UsageError for the first of `values`, by flag, that is below 0, or not below `bound`."""
    for name, value in values.items():
        if not 0 <= value < bound:
            expected = "a finite number" if bound == math.inf else f"less than {bound}"
            raise UsageError(f"--{name} {value}: expected 0 or more, and {expected}")


def check_utf8(**values: str | None) -> None:
    """Raise UsageError for the first of `values`, by flag, that has bytes which are no UTF-8: files keep these values."""
    for name, value in values.items():
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise UsageError(f"--{name} {value}: is not UTF-8; give it in UTF-8") from None


def check_context(in_frames: int, edge: str) -> None:
    """Raise UsageError where `in_frames` or `edge` can't be."""
    if in_frames < 1:
        raise UsageError(f"--in_frames {in_frames}: a window has at least 1 frame; give 1 or more (21 by default)")
    if edge not in EDGE_CODES:
        raise UsageError(f"--edge {edge}: expected one of {', '.join(EDGE_CODES)}")
