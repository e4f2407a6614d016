"""Write the pages of the reference that follow from the code: commands, Python interface, tree.

``python docs/generate.py`` writes them to ``docs/reference``; a test compares them with what is committed.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spkid_dist.commands.flags import Flag
from spkid_dist.commands.help import COMMAND_GROUPS, example_of, flags_by_section
from spkid_dist.commands.registry import COMMANDS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
MADE = "<!-- Made by docs/generate.py from the code: change it there. -->\n\n"
PACKAGES = ("shards", "spkid_dist")
FOLDERS = {
    "launch": "Files to copy: for one machine, several machines, Slurm, Kubernetes, SkyPilot, Docker",
    "benchmarks": "Measure the project against its limits, and against what people would use instead",
    "examples": "Short programs to copy from, each run by a test",
    "tests": "Claims, in folders by subject; helpers and small corpora",
    "docs": "This documentation, and the program that makes its reference",
    "requirements": "Tested versions of all dependencies",
}


def commands_page() -> str:
    """All commands, in the groups of `spkid --help`, with their flags."""
    lines = ["# Commands", "", "Each command prints this with `--help`. A dash in a flag may be an underscore.", ""]
    for group, (names, _) in COMMAND_GROUPS.items():
        lines += [f"- **{group}**: " + ", ".join(f"[`{name}`](#spkid-{name})" for name in names)]
    for names, _ in COMMAND_GROUPS.values():
        for name in names:
            lines += _command(name, COMMANDS[name][0])
    return "\n".join(lines) + "\n"


def _command(name: str, options: type[Any]) -> Iterator[str]:
    yield from ("", f"## spkid {name}", "")
    yield from (inspect.cleandoc(options.__doc__ or ""), "", "```sh", example_of(name), "```")
    for title, flags in flags_by_section(name, options).items():
        yield from ("", f"**{title}**", "", "| flag | default | meaning |", "|---|---|---|", *map(_flag_row, flags))


def _flag_row(flag: Flag) -> str:
    default = "required" if flag.required else "" if flag.default is None else flag.default
    return f"| {_code(flag.usage)} | {_cell(default)} | {_cell(flag.text)} |"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{r}", "&#123;r&#125;")


def python_page() -> str:
    """The public names of both packages: signature and docstring."""
    lines = [
        "# Python interface",
        "",
        "These names are the interface for programs. Each is imported when it is first used.",
    ]
    for package in PACKAGES:
        module = importlib.import_module(package)
        lines += ["", f"## {package}", "", (module.__doc__ or "").strip()]
        for name in sorted(module.__all__):
            lines += ["", *_public(package, name, getattr(module, name))]
    return "\n".join(lines) + "\n"


def _public(package: str, name: str, thing: Any) -> Iterator[str]:
    yield from (f"### {name}", "", "```text", f"from {package} import {name}", "")
    yield from (_signature(name, thing), "```", "", *_prose(inspect.getdoc(thing) or ""))
    if dataclasses.is_dataclass(thing) and thing.__name__.endswith("Config"):
        command = next((known for known, (options, _, _) in COMMANDS.items() if options is thing), None)
        if command is not None:
            yield from ("", f"Its fields are the flags of [`spkid {command}`](commands.md#spkid-{command}).")
    elif inspect.isclass(thing):
        for method, function in _methods(thing):
            text = inspect.getdoc(function) or ""
            if "Args:" not in text:
                yield from ("", f"`{name}.{method}`: {_first_sentence(text)}")
                continue
            signature = _signature(method, function).replace("(self, ", "(", 1).replace("    self, ", "    ", 1)
            yield from ("", f"#### {name}.{method}", "", "```text", signature, "```", "", *_prose(text))


def _signature(name: str, thing: Any) -> str:
    if dataclasses.is_dataclass(thing) and thing.__name__.endswith("Config"):
        return f"{name}(...)"
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return name
    text = re.sub(r"<[^<>]*>", "...", re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z_])", "", text))
    if len(name + text) <= 76:
        return name + text
    inside, _, result = text[1:].rpartition(")")
    arguments = textwrap.fill(inside, 72, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return f"{name}(\n{arguments}\n){result}"


def _methods(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


def _prose(text: str) -> Iterator[str]:
    """A docstring as Markdown: sections such as Args become lists."""
    for part in text.split("\n\n"):
        lines = part.splitlines()
        if len(lines) > 1 and re.fullmatch(r"[A-Z][a-z]+:", lines[0]):
            yield from (f"**{lines[0]}**", "", *_items(lines[1:]), "")
        else:
            yield from (part.replace("``", "`"), "")


def _items(lines: list[str]) -> Iterator[str]:
    text = textwrap.dedent("\n".join(lines))
    for item in re.split(r"\n(?=\S)", text):
        name, _, meaning = " ".join(item.split()).partition(": ")
        yield f"- `{name}`: {meaning}".replace("``", "`") if meaning else f"- {name}"


def tree_page() -> str:
    """All modules, each with its docstring's first sentence, and the other folders."""
    lines = ["# The tree", "", "One line per module. Each line is the first sentence of the module's docstring.", ""]
    for package in PACKAGES:
        lines += _folder(ROOT / package, 0)
    lines += [f"- **{name}/** {meaning}" for name, meaning in FOLDERS.items() if (ROOT / name).is_dir()]
    return "\n".join(lines) + "\n"


def _folder(folder: Path, depth: int) -> Iterator[str]:
    indent = "    " * depth
    yield f"{indent}- **{folder.name}/** {_sentence_of(folder / '__init__.py')}"
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("__"):
            yield f"{indent}    - `{path.name}` {_sentence_of(path)}"
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from _folder(inner, depth + 1)


def _sentence_of(path: Path) -> str:
    return _first_sentence(ast.get_docstring(ast.parse(path.read_text())) or "")


def _first_sentence(text: str) -> str:
    sentence = re.split(r"(?<=[.?])\s", " ".join(text.split()), maxsplit=1)[0]
    return sentence.rstrip(".").replace("``", "`").replace("<", "&lt;")


PAGES = {"commands.md": commands_page, "python.md": python_page, "tree.md": tree_page}

if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (REFERENCE / file_name).write_text(MADE + page())
