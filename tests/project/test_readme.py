"""README's tree is the tree."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_tree_names_every_module_once():
    text = (ROOT / "README.md").read_text()
    named, folders = [], []
    for line in text[text.index("## The tree") :].splitlines():
        if not (match := re.match(r"    ( *)(\S.*?)(?:  +|$)", line)):
            continue
        depth, names = len(match[1]) // 2, match[2].split()
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(names[0])
        else:
            named += ["".join(folders) + name for name in names if name.endswith(".py")]
    there = [path.relative_to(ROOT) for package in ("shards", "spkid_dist") for path in (ROOT / package).rglob("*.py")]
    expected = {str(path) for path in there if not path.name.startswith("__")}
    assert len(named) == len(set(named))
    assert set(named) == expected


@pytest.mark.parametrize("heading", ["## From Python", "## In your own loop"])
def test_the_first_example_of_a_section_is_typed(heading, tmp_path):
    section = (ROOT / "README.md").read_text().partition(f"{heading}\n")[2]
    example = re.search(r"\n((?:    .*\n|\n)+)", section)[1]
    path = tmp_path / "example.py"
    path.write_text(textwrap.dedent(example))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
