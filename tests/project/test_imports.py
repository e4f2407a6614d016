"""Which part of the project may import which: what lies below knows nothing of what stands on it."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
# part of spkid_dist: the parts that it may import; all may import `shards`, which imports none of them
BELOW = {
    "config": set(),
    "process": set(),
    "ranks": {"config", "process"},
    "draws": set(),
    "order": {"draws"},
    "streaming": {"config", "process", "draws", "order"},
    "dataset": {"config", "process", "order", "streaming"},
    "mixture": {"dataset", "streaming"},
    "model": {"config", "process"},
    "weights": {"process"},
    "trained": {"config", "process", "model", "weights"},
    "trainedfolder": {"config", "trained"},
    "scoring": {"config", "process", "ranks", "model", "order", "streaming", "trained", "trainedfolder", "weights"},
    "training": {
        "config",
        "process",
        "ranks",
        "draws",
        "order",
        "streaming",
        "dataset",
        "model",
        "trained",
        "trainedfolder",
        "weights",
    },
}
BELOW["score"] = BELOW["scoring"] | {"ranks", "scoring"}
BELOW["export"] = {"config", "ranks", "scoring", "trained"}
BELOW["train"] = BELOW["training"] | {"training"}
BELOW["measure"] = BELOW["train"]
BELOW["bench"] = BELOW["simulate"] = BELOW["measure"] | {"measure", "scoring"}
BELOW["commands"] = set(BELOW)
ENTRY = "spkid_dist.commands.cli"  # what `python -m spkid_dist.train` hands over to


def imported_modules(path: Path) -> list[str]:
    """The modules that a file imports when it runs: not those that only a type checker needs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [
        name
        for node in imports
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]


def test_shards_import_neither_the_rest_nor_torch():
    for path in (ROOT / "shards").rglob("*.py"):
        wrong = [name for name in imported_modules(path) if name.split(".")[0] in ("spkid_dist", "torch", "accelerate")]
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("part", sorted(BELOW))
def test_a_part_imports_only_what_lies_below_it(part):
    place = ROOT / "spkid_dist" / part
    paths = list(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert paths
    for path in paths:
        ours = [name for name in imported_modules(path) if name.startswith("spkid_dist.") and name != ENTRY]
        wrong = [name for name in ours if name.split(".")[1] not in BELOW[part] | {part}]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_part_has_its_place_in_the_order():
    modules = {path.stem for path in (ROOT / "spkid_dist").glob("*.py") if not path.name.startswith("__")}
    packages = {path.parent.name for path in (ROOT / "spkid_dist").glob("*/__init__.py")}
    assert modules | packages == set(BELOW)
    assert len(modules) <= 10
