"""The commands of the guides have flags that exist, and their programs are typed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spkid_dist.commands.help import check_flags
from spkid_dist.commands.registry import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("docs/guides/*.md"), ROOT / "docs/troubleshooting.md"]


def blocks(page, language):
    """The code on a page, of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def spkid_commands(page):
    """The commands of this project on a page: their names, and what is given to them."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = shlex.split(line, comments=True)
        module = next((word for word in words if word.startswith("spkid_dist")), None)
        if "spkid" in words:
            _, name, *arguments = words[words.index("spkid") :]
            yield name, arguments
        elif module is not None:
            rest = words[words.index(module) + 1 :]
            yield (module.partition(".")[2], rest) if "." in module else (rest[0], rest[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_have_flags_that_exist(page):
    for name, arguments in spkid_commands(page):
        check_flags(name, COMMANDS[name][0], arguments)


def test_commands_are_found_on_the_pages():
    found = {name for page in PAGES for name, _ in spkid_commands(page)}
    assert {
        "shard",
        "merge",
        "info",
        "verify",
        "train",
        "results",
        "doctor",
        "score",
        "export",
        "bench",
        "simulate",
    } <= found


@pytest.mark.long
def test_programs_of_the_guides_are_typed(tmp_path):
    paths = []
    for page in PAGES:
        for number, code in enumerate(blocks(page, "python")):
            paths.append(tmp_path / f"{page.stem.replace('-', '_')}_{number}.py")
            paths[-1].write_text(code)
    options = [
        "--strict",
        "--allow-untyped-calls",
        "--config-file",
        ROOT / "pyproject.toml",
    ]  # dask's client has no types
    command = [sys.executable, "-m", "mypy", *options, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert paths and done.returncode == 0, done.stdout
