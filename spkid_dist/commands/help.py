"""What `spkid --help` and `spkid COMMAND --help` print, and what is said of a command or flag that does not exist."""

import difflib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from shards.errors import UsageError
from spkid_dist.commands.flags import CONFIG_COMMANDS, Flag, config_flag, flags_of
from spkid_dist.commands.sections import COMMAND_GROUPS, EXAMPLES, SECTIONS

HELP_WORDS = ("-h", "--help")
COMMAND_WIDTH = 13  # columns of a command in the overview
USAGE_WIDTH = 25  # columns of a flag and its placeholder; a longer one has a line of its own
LONGEST_USAGE = 60  # columns; more choices than fit in there are listed in the text
LEAST_WIDTH, MOST_WIDTH = 50, 110  # columns of the whole text
OTHERS = "Other flags"  # flags that no section names
SIMILAR = 0.6  # from here on (0 to 1) two names are near enough for "did you mean"
JOINED = "\N{NO-BREAK SPACE}"  # where a line is not to be broken; printed as a space

OTHER_WORDS = {
    "spkid COMMAND --help": "Print the flags of a command.",
    "spkid version": "Print the version.",
    "spkid completion SHELL": "Print the completion script for bash, zsh or fish.",
}

Commands = Mapping[str, tuple[type[Any], str, str]]  # as `spkid_dist.commands.registry.COMMANDS`


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command's `arguments` ask for its help."""
    return any(word in HELP_WORDS for word in arguments)


def print_overview(commands: Commands) -> None:
    """Print all commands, in groups with an example each."""
    lines = [
        Text("usage: spkid COMMAND [FLAGS]"),
        Text(),
        *_paragraph("Speaker identification trained at memory speed."),
    ]
    for title, (names, example) in COMMAND_GROUPS.items():
        lines += [Text(), _heading(title)]
        for name in names:
            lines += _row(name, _purpose(commands[name][0]), COMMAND_WIDTH)
        lines += _example(example)
    lines += [Text(), _heading("More")]
    for usage, purpose in OTHER_WORDS.items():
        lines += _row(usage, purpose, USAGE_WIDTH + 1)
    _print(lines)


def print_command(command: str, options: type[Any]) -> None:
    """Print what `command` does and all its flags, in sections."""
    flags = flags_of(options)
    needed = "".join(f" {flag.usage}" for flag in flags if flag.required)
    free = "".join(f" [{flag.usage}]" for flag in flags if flag.positional and not flag.required)
    lines = [Text(line) for line in _wrap(f"usage: spkid {command}{needed}{free} [FLAGS]", "", " " * 7)]
    for paragraph in inspect.cleandoc(options.__doc__ or "").split("\n\n"):
        lines += [Text(), *_paragraph(paragraph)]
    for title, section in flags_by_section(command, options).items():
        lines += [Text(), _heading(title)]
        for flag in section:
            lines += _row(*_described(flag), USAGE_WIDTH)
    _print([*lines, Text(), _heading("Example"), *_example(example_of(command), "")])


def flags_by_section(command: str, options: type[Any]) -> dict[str, list[Flag]]:
    """The flags by the titles of their sections, each once."""
    flags = {flag.name: flag for flag in flags_of(options)}
    first = {"Configuration": [config_flag(command)]} if command in CONFIG_COMMANDS else {}
    found = first | {
        title: [flags.pop(name) for name in names if name in flags]
        for title, names in SECTIONS.get(command, {}).items()
    }
    if flags:
        found[OTHERS if found else "Flags"] = list(flags.values())
    return found


def example_of(command: str) -> str:
    """A command line that shows how `command` is used."""
    return EXAMPLES.get(command) or next(example for names, example in COMMAND_GROUPS.values() if command in names)


def check_command(name: str, commands: Commands) -> None:
    """Raise UsageError where there is no command `name`, with the nearest one."""
    if name not in commands:
        near = _nearest(name, [*commands, "completion", "help", "version"])
        raise UsageError(f"{name}: no such command{_ask(near)}; see spkid --help")


def check_flags(command: str, options: type[Any], arguments: Sequence[str]) -> None:
    """Raise UsageError where `arguments` have a flag that `command` has not, with the nearest one that it has."""
    everything = flags_of(options)
    flags = [flag for flag in everything if not flag.positional]
    known = {flag.name for flag in flags}
    for word in arguments:
        name = word.partition("=")[0].replace("-", "_")
        if word.startswith("--") and name != "__" and name[2:] not in known:
            given = word.partition("=")[0]
            if any(flag.name == name[2:] for flag in everything):
                values = " ".join(flag.placeholder for flag in everything if flag.positional)
                raise UsageError(f"{given}: give this without a flag, in its place: spkid {command} {values}")
            near = _nearest_flag(name[2:], flags)
            raise UsageError(f"{given}: no such flag of spkid {command}{_ask(near)}; see spkid {command} --help")


def near_flag(name: str, flags: Sequence[Flag]) -> str:
    """What an error asks about a flag that does not exist: which one was meant; empty where none is near."""
    return _ask(_nearest_flag(name, flags))


def _nearest_flag(name: str, flags: Sequence[Flag]) -> str | None:
    """The flag whose name is like `name`, or whose text begins so: `--lr` where the text is "Learning rate."."""
    near = _nearest(name, [flag.name for flag in flags])
    if near is None:
        texts = {re.split(r"[.:;]", flag.text)[0].lower().replace(" ", "_"): flag.name for flag in flags}
        near = texts.get(_nearest(name, list(texts)) or "")
    return f"--{near}" if near else None


def _nearest(word: str, known: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=SIMILAR)), None)


def _ask(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ""


def _described(flag: Flag) -> tuple[str, str]:
    """What stands on the left of a flag's row, and on the right."""
    usage, text = flag.usage, flag.text
    if flag.placeholder.startswith("{") and len(usage) > LONGEST_USAGE:
        choices = flag.placeholder.strip("{}").replace(",", ", ")
        usage, text = f"--{flag.name} NAME", f"{text} One of {choices}."
    if flag.required:
        return usage, f"{text} (required)"
    return usage, text if flag.default is None else f"{text} (default:{JOINED}{flag.default})"


def _purpose(options: type[Any]) -> str:
    return " ".join((options.__doc__ or "").split("\n\n")[0].split())


def _heading(title: str) -> Text:
    return Text(f"{title}:", style="bold")


def _example(example: str, label: str = "Example: ") -> Iterator[Text]:
    end = " \\"
    text = re.sub(r"(--\w+) (?!-)", rf"\1{JOINED}", f"{label}{example}")  # a flag and its value stay together
    *begun, last = _wrap(text, "  ", " " * (2 + len(label or " " * 4)), len(end))
    yield from (Text(line, style="dim") for line in (*(line + end for line in begun), last))


def _paragraph(text: str) -> Iterator[Text]:
    return (Text(line) for line in _wrap(" ".join(text.split()), "", ""))


def _row(left: str, right: str, column: int) -> Iterator[Text]:
    """A row of two columns; where `left` is too long, `right` begins on the next line."""
    indent = " " * column
    lines = _wrap(right, indent, indent)
    if len(left) + 4 > column:
        yield Text(f"  {left}")
    else:
        lines[0] = f"  {left}".ljust(column) + lines[0][column:]
    yield from map(Text, lines)


def _wrap(text: str, first: str, others: str, less: int = 0) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, LEAST_WIDTH), MOST_WIDTH) - less
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(JOINED, " ") for line in lines]


def _print(lines: Sequence[Text]) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in lines:
        console.print(line)
