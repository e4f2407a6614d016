"""README's examples are typed."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("heading", ["## From Python", "## In your own loop"])
def test_the_first_example_of_a_section_is_typed(heading, tmp_path):
    section = (ROOT / "README.md").read_text().partition(f"{heading}\n")[2]
    example = re.search(r"\n((?:    .*\n|\n)+)", section)[1]
    path = tmp_path / "example.py"
    path.write_text(textwrap.dedent(example))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
