"""README's tree is the tree."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    expected = {
        str(path) for path in there if not path.name.startswith("__") and path.parts[1] not in ("sources", "config")
    }
    assert len(named) == len(set(named))
    assert set(named) == expected
