"""DESIGN.md and the explanations name modules and files that exist."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "DESIGN.md", *sorted((ROOT / "docs/explanation").glob("*.md"))]
MODULE = re.compile(r"`((?:spkid_dist|shards)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:spkid_dist|shards|benchmarks|docs|tests|launch)/[\w/.-]*)`")


def exists(name: str) -> bool:
    """Whether a dotted name is a module or a package, or a name that one of them defines."""
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    module = module if module.is_file() else path.parent / "__init__.py"
    return module.is_file() and re.search(rf"\b{path.name}\b", module.read_text(encoding="utf-8")) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_and_files_named_in_a_document_exist(document):
    text = document.read_text(encoding="utf-8")
    assert [name for name in MODULE.findall(text) if not exists(name)] == []
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []
