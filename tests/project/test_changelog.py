"""CHANGELOG.md has the form of Keep a Changelog, and its newest release is the version of the package."""

import datetime
import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent.parent
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def headings(level: str) -> list[str]:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix(level).strip() for line in lines if line.startswith(f"{level} ")]


def releases() -> list[tuple[str, str]]:
    """(version, date) of each release, the newest first."""
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings("##")[1:]]
    assert all(found), headings("##")
    return [(match[1], match[2]) for match in found if match]


def test_newest_release_is_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert releases()[0][0] == project["version"]


def test_unreleased_changes_come_first() -> None:
    assert headings("##")[0] == "[Unreleased]"


def test_releases_go_back_in_time() -> None:
    dates = [datetime.date.fromisoformat(date) for _, date in releases()]
    assert dates == sorted(dates, reverse=True)


def test_changes_are_of_the_known_kinds() -> None:
    assert set(headings("###")) <= KINDS
