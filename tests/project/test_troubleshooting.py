"""The page of error messages quotes messages that the program has, and the guides link to places that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = DOCS / "troubleshooting.md"
PREFIX = re.compile(r"spkid: error: |ImportError: |shards\.errors\.\w+: ")
LEAST_FIXED = 12  # characters of a message that are the same in each run


@cache
def fixed_parts():
    """The texts of the sources with placeholders: of each, what stands between them, as a tuple of strings."""
    sources = [*ROOT.glob("shards/**/*.py"), *ROOT.glob("spkid_dist/**/*.py")]
    trees = [ast.parse(path.read_text()) for path in sources]
    found = {
        parts_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)
    }
    return {parts for parts in found if sum(map(len, parts)) >= LEAST_FIXED}


def parts_of(node):
    """What stands before, between and behind the placeholders of a string."""
    if isinstance(node, ast.Constant):
        return (node.value,) if isinstance(node.value, str) else ()
    parts = [""]
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts[-1] += value.value
        else:
            parts.append("")
    return tuple(parts)


def is_printed(message):
    """Whether a text of the sources, with its placeholders filled, is this message, perhaps behind a file and a line."""
    candidates = [parts for parts in fixed_parts() if all(part in message for part in parts)]
    return any(re.fullmatch("(.*: )?" + ".*".join(map(re.escape, parts)), message) for parts in candidates)


def quoted_messages():
    """The messages on the page, without what stands before each error."""
    blocks = re.findall(r"```text\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [PREFIX.sub("", line, count=1) for line in lines]


def test_the_page_quotes_thirty_messages_or_more():
    assert len(quoted_messages()) >= 30


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_one_of_the_sources(message):
    assert is_printed(message)


def test_a_message_that_the_sources_lack_is_noticed():
    assert not is_printed("data/train: no utterance has 1000 frames, so there is nothing to train on")


def anchors_of(page):
    """The places on a page that can be linked to: its headings, as sites write them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*DOCS.glob("guides/*.md"), DOCS / "glossary.md", PAGE], ids=lambda page: page.name)
def test_links_of_a_page_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), target
        assert not anchor or anchor in anchors_of(place), f"{target}#{anchor}"
