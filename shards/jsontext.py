"""Read JSON that somebody else may have written: within limits, and as the types that are expected.

Python's own reader takes what no file of ours has: numbers that are no JSON, names that stand twice, halves of characters. And
a short text can become much larger in memory. So the text is measured before it is read. Errors are ValueErrors of one line.
"""

import codecs
import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from shards.errors import InputError
from shards.files import read_regular
from shards.guesses import guess_encoding

MOST_BYTES = 64_000_000
MOST_ITEMS = 16_000_000  # numbers, texts, lists and objects: some 60 bytes each in memory
MOST_DEPTH = 32
SHOWN_CHARACTERS = 40

T = TypeVar("T")


def parse_json(text: bytes | str, *, most_bytes: int = MOST_BYTES, undecodable: bool = False) -> Any:
    """The value of a JSON text, UTF-8.

    Args:
        text: the JSON.
        most_bytes: longer texts are refused.
        undecodable: texts in it may stand for bytes that are no UTF-8, as Python reads such paths.

    Raises:
        ValueError: it is no JSON, or exceeds a limit: bytes, items, depth, digits of a number; a name stands twice.
    """
    if len(text) > most_bytes:
        raise ValueError(f"{len(text)} bytes of JSON, expected at most {most_bytes}")
    if isinstance(text, bytes):
        text = text.decode()  # a UnicodeDecodeError is a ValueError
    if text.count(",") + text.count("[") + text.count("{") > MOST_ITEMS:
        raise ValueError(f"more than {MOST_ITEMS} items of JSON")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"lists and objects are nested deeper than {MOST_DEPTH}") from None
    _check_depth(value)
    if "\\u" in text and not undecodable:
        _check_characters(value)
    return value


def read_json(path: Path, what: str, remedy: str, *, most_bytes: int = MOST_BYTES, undecodable: bool = False) -> Any:
    """The value in a JSON file; `what` it is and the `remedy` are for messages; limits as in `parse_json`.

    Raises:
        InputError: it is missing, unreadable, no regular file, or no JSON within the limits.
    """
    try:
        text = read_regular(path, most_bytes).removeprefix(codecs.BOM_UTF8)  # editors on Windows begin a file with it
        encoding = guess_encoding(text)
        if encoding is not None:
            raise ValueError(f"it must be UTF-8 text; {encoding}")
        return parse_json(text, most_bytes=most_bytes, undecodable=undecodable)
    except OSError as error:
        raise InputError(f"{path}: can't read {what}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path}: {what}: {error}; {remedy}") from None


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """`value`, as `parse_json` gives it, as an instance of `kind`; the inverse of `dataclasses.asdict`.

    Args:
        kind: a dataclass; or ``str``, ``bool``, ``int`` (0 or more, below 2^63), ``float`` (finite), ``None``, ``Any``; a list,
            tuple or dict of such, or a union of them.
        value: parsed JSON. An object may have other names than the dataclass; those are left alone.
        where: the place of the value, for messages.

    Raises:
        ValueError: a field is missing or of another type.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(kind, value, where)
    if origin in (list, tuple):
        return _list_of(kind, origin, value, where)
    if origin is dict and isinstance(value, dict):
        item = get_args(kind)[1]
        return {name: from_json(item, one, _below(where, name)) for name, one in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _dataclass_of(kind, value, where)
    if kind is int and type(value) is int and 0 <= value < 2**63:
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if (kind in (str, bool) and type(value) is kind) or (kind in (None, type(None)) and value is None):
        return value
    raise ValueError(f"{where or 'the value'} is {shown(value)}, expected {_name(kind)}")


def shown(value: Any) -> str:
    """A value for a message: the first characters of it."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def _one_of(kind: Any, value: Any, where: str) -> Any:
    for one in get_args(kind):
        try:
            return from_json(one, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where or 'the value'} is {shown(value)}, expected {_name(kind)}")


def _list_of(kind: Any, origin: type[Any], value: Any, where: str) -> Any:
    kinds = [one for one in get_args(kind) if one is not Ellipsis]
    is_fixed = origin is tuple and Ellipsis not in get_args(kind)
    if not isinstance(value, list) or (is_fixed and len(value) != len(kinds)):
        raise ValueError(f"{where or 'the value'} is {shown(value)}, expected {_name(kind)}")
    items = kinds if is_fixed else kinds * len(value)
    return origin(
        from_json(one, item, f"{where}[{at}]") for at, (one, item) in enumerate(zip(items, value, strict=True))
    )


def _dataclass_of(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    given = {}
    for name, (field_kind, is_needed) in _fields_of(kind).items():
        if name in value:
            given[name] = from_json(field_kind, value[name], _below(where, name))
        elif is_needed:
            raise ValueError(f"{_below(where, name)} is missing")
    return kind(**given)


@lru_cache(maxsize=256)
def _fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The types of a dataclass's fields, and whether they have no default."""
    hints = get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
    }


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(kind: Any) -> str:
    names: dict[Any, str] = {
        str: "text",
        int: "a whole number from 0",
        float: "a number",
        bool: "true or false",
        None: "null",
    }
    names |= {type(None): "null", dict: "an object", list: "a list", tuple: "a list"}
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_name(one) for one in get_args(kind))
    return names.get(get_origin(kind) or kind, "an object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands twice in one object")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:SHOWN_CHARACTERS]} is too large a number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [item for one in level for item in _items(one) if isinstance(item, list | dict)]
        if not level:
            return
    raise ValueError(f"lists and objects are nested deeper than {MOST_DEPTH}")


def _check_characters(value: Any) -> None:
    """Raise ValueError where a text has half a character, which has no UTF-8."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            one.encode()  # a UnicodeEncodeError is a ValueError
        elif isinstance(one, dict):
            waiting.extend(one)
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _items(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
