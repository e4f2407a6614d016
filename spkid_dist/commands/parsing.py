"""Parse the words of a command, and say in one line what is wrong with them.

tyro parses, and draws what is wrong as a box on standard error. All other errors of this project are one line, so the text
of the box becomes one.
"""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from shards.errors import UsageError
from spkid_dist.commands.flags import Flag, flags_of

STYLE = (tyro.conf.FlagCreatePairsOff,)
MISSING = "Missing from"  # how the box begins where a value without a default is not given
EDGES = re.compile("[╭╮╰╯│]")
RULE = re.compile(
    "───|^-{10,}$"
)  # drawn with lines where the output takes them; the title stands in the first one then


def parse_flags(command: str, options: type[Any], words: Sequence[str], config_file: Path | None = None) -> Any:
    """The options of `command` that `words` give; `config_file` is where some of them are from, for messages.

    Raises:
        UsageError: a value is missing, is of another type, or is one too many; or the options can't be together.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, prog=f"spkid {command}", args=words, config=STYLE, use_underscores=True)
    except SystemExit:
        problem = _problem(said.getvalue())
        if problem.startswith(MISSING):
            problem = _missing(flags_of(options), words)
        also = "" if config_file is None else f" (flags were read from {config_file}, too)"
        raise UsageError(f"{problem}{also}; see spkid {command} --help") from None


def _problem(box: str) -> str:
    """The error in a box as one line: what stands between the rule below its title and the next one."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = EDGES.sub("", line).strip()
        if RULE.search(text):
            parts.append([])
        elif text:
            parts[-1].append(text)
    lines = parts[1] if len(parts) > 1 else parts[0]
    return " ".join(lines).removesuffix(".").removeprefix("Error parsing ")


def _missing(flags: Sequence[Flag], words: Sequence[str]) -> str:
    """What is said of required flags that are not among the words; where all are, a value without a flag is missing."""
    given = {word.partition("=")[0].replace("-", "_") for word in words}
    required = [flag for flag in flags if flag.required]
    absent = [flag for flag in required if not flag.positional and f"__{flag.name}" not in given]
    absent = absent or [flag for flag in required if flag.positional]
    if len(absent) == 1:
        text = absent[0].text.removesuffix(".")
        return f"{absent[0].usage} is missing: {text[:1].lower()}{text[1:]}"
    return f"{', '.join(flag.usage for flag in absent)} are missing"
