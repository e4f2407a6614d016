"""The lists of what is installed agree: pyproject.toml, requirements/tested.txt, requirements/user.txt and the hints."""

import ast
import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shards.extras import REQUIREMENTS

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USER_EXTRAS = ("train", "audio", "kaldi")  # which user.txt has too


def pins(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if line and not line.startswith("#")}


def needed(requirements):
    """Names of all packages that `requirements` bring here, with what those require in turn."""
    found, waiting = {}, [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), {"", *one.extras}
        if extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        for text in requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(wanted)
    return set(found)


def test_what_users_install_is_a_part_of_what_is_tested_with_the_same_pins():
    assert pins("user.txt").items() < pins("tested.txt").items()


def test_what_users_install_covers_all_dependencies_and_no_test_tool():
    roots = [*PROJECT["dependencies"], *(text for extra in USER_EXTRAS for text in EXTRAS[extra])]
    of_torch_builds = {
        name for name in needed(roots) if re.match("nvidia|cuda|triton", name)
    }  # which pip finds by itself
    assert needed(roots) - of_torch_builds <= set(pins("user.txt"))
    assert not {canonicalize_name(Requirement(text).name) for text in EXTRAS["dev"]} & set(pins("user.txt"))


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *EXTRAS["dev"], *(t for e in USER_EXTRAS for t in EXTRAS[e])]
)
def test_the_tested_version_is_one_that_is_promised(text):
    wanted = Requirement(text)
    assert pins("tested.txt")[canonicalize_name(wanted.name)].partition("==")[2] in wanted.specifier


def test_the_hints_of_errors_name_what_the_extras_bring():
    for extra, requirements in REQUIREMENTS.items():
        assert list(requirements) == EXTRAS[extra]


def test_the_extra_all_has_every_extra_of_users():
    (everything,) = EXTRAS["all"]
    assert set(Requirement(everything).extras) == set(EXTRAS) - {"all", "dev", "frameworks", "triton"}


def test_the_packages_import_nothing_that_is_not_declared():
    distributions = {
        "kaldi_native_fbank": "kaldi-native-fbank",
        "llvmlite": "numba",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }  # numba requires llvmlite
    declared = [Requirement(text).name for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    imported = set()
    for path in (path for package in ("shards", "spkid_dist") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
    outside = imported - set(sys.stdlib_module_names) - {"shards", "spkid_dist"}
    assert {distributions.get(name, name) for name in outside} <= {re.sub(r"\[.*", "", name) for name in declared}
    assert "webdataset" not in outside


def test_the_lowest_versions_that_are_tested_are_those_that_are_promised():
    lowest = {Requirement(line).name: line.partition("==")[2] for line in pins("lowest.txt").values()}
    promised = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["train"])]
    for one in promised:
        if one.name != "torch":
            (bound,) = (spec.version for spec in one.specifier)
            assert lowest[one.name].startswith(bound), one
