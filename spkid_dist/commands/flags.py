"""The flags of a command as data: what the help, the check of flags and the completion know of them.

A flag is a field of the command's dataclass: its name, its type, its default and the text below it. tyro makes the parser
of the same fields.
"""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from spkid_dist.config.checks import URLS_TOO

PLACEHOLDERS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
PLACES = set(URLS_TOO) - {"files", "resume"}  # those may be a word
DEFAULT_MARK = "Default: "  # what a field's text says of a default that is not one value
LARGE = 1_000_000  # from here on digits are grouped by underscores, which the parser takes too


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag, or one value without a flag.

    `name` has no dashes, as in `features.kind`; `placeholder` is empty for a switch; `default` is the text that the help
    shows, None where there is nothing to show. A `repeated` flag may be given several times, with a value each.
    """

    name: str
    placeholder: str
    text: str
    default: str | None
    required: bool
    positional: bool
    repeated: bool = False

    @property
    def usage(self) -> str:
        """The flag and what follows it, such as `--lr NUMBER`."""
        return self.placeholder if self.positional else f"--{self.name} {self.placeholder}".rstrip()


CONFIG_COMMANDS = ("train", "shard", "score")


def config_flag(command: str) -> Flag:
    """The flag --config of a command, one of `CONFIG_COMMANDS`."""
    kinds = "YAML, or the train.opts of a former training" if command == "train" else "YAML"
    return Flag(
        name="config",
        placeholder="PATH",
        text=f"Read flags from this file: {kinds}. Flags on the command line win.",
        default=None,
        required=False,
        positional=False,
    )


def flags_of(options: type[Any]) -> list[Flag]:
    """The flags of a command with the dataclass `options`, in the order of its fields; nested ones as `slurm.NAME`."""
    return list(_flags_below(options, ""))


def _flags_below(options: type[Any], prefix: str) -> Iterator[Flag]:
    hints, texts = get_type_hints(options, include_extras=True), field_texts(options)
    for field in dataclasses.fields(options):
        hint, marks = _split(hints[field.name])
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _flags_below(hint, f"{prefix}{field.name}.")
        else:
            yield _flag(field, hint, marks, texts[field.name], prefix)


def _flag(field: dataclasses.Field[Any], hint: Any, marks: tuple[Any, ...], text: str, prefix: str) -> Flag:
    positional = tyro.conf.Positional in marks
    given = next((mark for mark in marks if hasattr(mark, "metavar")), None)  # tyro.conf.arg
    name = prefix + (getattr(given, "name", None) or field.name)
    text = getattr(given, "help", None) or text
    default = None if _is_required(field) else _default(field)
    if default is True:  # its flag is the opposite
        name = f"{prefix}no_{name.removeprefix(prefix)}"
    text, _, worded = text.partition(DEFAULT_MARK)
    placeholder = getattr(given, "metavar", None) or _placeholder(Path if field.name in PLACES else hint)
    return Flag(
        name=name,
        placeholder=field.name.upper() if positional else placeholder,
        text=text[:1].upper() + text[1:].strip(),
        default=worded.removesuffix(".") if worded else _readable(default),
        required=_is_required(field),
        positional=positional,
        repeated=tyro.conf.UseAppendAction in marks,
    )


def field_texts(options: type[Any]) -> dict[str, str]:
    """The text below each field, of the class and of those that it inherits from, in one line."""
    texts: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of a field without "or None" or "or several", and what tyro is told of it."""
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    return hint, marks


def _placeholder(hint: Any) -> str:
    if hint is bool:
        return ""
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        return f"{PLACEHOLDERS[get_args(hint)[0]]} ..."
    return PLACEHOLDERS[hint]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _readable(default: Any) -> str | None:
    """A default as one would type it; None where no value, or a switch that is off, needs no words."""
    if default is None or isinstance(default, bool) or default == ():
        return None
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, int) and default >= LARGE:
        return f"{default:_}"
    return str(default)
