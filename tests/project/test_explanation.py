"""The explanations print what they say, and their pictures are what the code draws."""

import re
from pathlib import Path
from runpy import run_path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
EXPLANATION = ROOT / "docs/explanation"
PAGES = sorted(path.name for path in EXPLANATION.glob("*.md") if "```python" in path.read_text(encoding="utf-8"))
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:.*?\n)??```text\n(.*?)```", re.DOTALL)
PICTURES = run_path(str(ROOT / "docs/pictures/draw.py"))["PICTURES"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_an_explanation_print_what_it_shows(page, shards, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(shards["tr_shards"])
    monkeypatch.chdir(tmp_path)
    example = tmp_path / "example.py"
    text = (EXPLANATION / page).read_text(encoding="utf-8")
    examples = EXAMPLE.findall(text)
    assert len(examples) == text.count("```python")
    for code, shown in examples:
        example.write_text(code, encoding="utf-8")
        run_path(str(example))
        assert capsys.readouterr().out == shown


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_the_code_draws(name):
    assert (ROOT / "docs/pictures" / name).read_text(encoding="utf-8") == PICTURES[name]()
