"""README and docs: generated pages follow the code, links lead somewhere, commands and programs are ones that exist."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import UsageError
from spkid_dist.commands.registry import COMMANDS, _parse

ROOT = Path(__file__).parents[2]
ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "true"}
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), ROOT / "launch/README.md"]
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
OTHER_WORDS = ("--help", "--version", "help", "version", "completion", "COMMAND")
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """The fenced blocks of a page in these languages."""
    found = [(language, body) for _, language, body in BLOCK.findall(path.read_text())]
    return [body for language, body in found if language in languages]


def without_blocks(path):
    return BLOCK.sub("", path.read_text())


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_what_the_code_says():
    made = generator()
    for file_name, page in made.PAGES.items():
        committed = (ROOT / "docs/reference" / file_name).read_text()
        assert committed == made.MADE + page(), f"run: python docs/generate.py ({file_name})"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_within_the_project_lead_somewhere(path):
    for target in LINK.findall(without_blocks(path)):
        if not re.match(r"\w+:", target) and not target.startswith("#"):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_programs_compile_and_import_what_there_is(path):
    imports = []
    for program in blocks(path, "python"):
        tree = ast.parse(program)
        imports += [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    ours = [ast.unparse(node) for node in imports if (node.module or "").split(".")[0] in ("shards", "spkid_dist")]
    exec("\n".join(ours), {})  # noqa: S102 - imports of ours, from pages of ours


def command_lines(text):
    """The command lines of a shell block, joined where they go on, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def flags_of_ours(words):
    """The command and its flags where a line runs a command of ours, in whatever way; None elsewhere."""
    for at, word in enumerate(words):
        if word == "spkid" and at + 1 < len(words):
            return words[at + 1 :]
        if word in ("spkid_dist.train", "spkid_dist.score"):
            return [word.split(".")[1], *words[at + 1 :]]
        if word == "spkid_dist" and words[at - 1] == "-m":
            return words[at + 1 :]
    return None


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_have_only_flags_that_exist(path):
    for block in blocks(path, "sh", "bash", "console", "shell"):
        for words in command_lines(block):
            given = flags_of_ours(words)
            if not given or "..." in words or given[0] in OTHER_WORDS:
                continue
            assert given[0] in COMMANDS, " ".join(words)
            ends = [index for index, word in enumerate(given) if word in ("|", "&&", ";", ">", ">>", "2>&1", "&", "||")]
            parsed = given[: min(ends, default=len(given))]
            if "--config" in parsed:  # a file that the page has made
                at = parsed.index("--config")
                del parsed[at : at + 2]
            try:
                _parse(parsed)
            except UsageError as error:
                pytest.fail(f"{' '.join(words)}: {error}")
            except SystemExit as end:
                assert not end.code, " ".join(words)


def check_types(pages, folder, *options):
    for page in pages:
        for number, program in enumerate(blocks(page, "python")):
            (folder / f"{page.stem.replace('-', '_').lower()}_{number}.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", *options, "--config-file", ROOT / "pyproject.toml"]
    done = subprocess.run([*command, *folder.glob("*.py")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_examples_of_readme_are_typed(tmp_path):
    check_types([ROOT / "README.md"], tmp_path)


@pytest.mark.long
def test_programs_of_the_guides_are_typed(tmp_path):
    check_types([*ROOT.glob("docs/guides/*.md")], tmp_path, "--allow-untyped-calls")  # dask's client has no types


@pytest.mark.long
@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/own-loop.md"])
def test_programs_of_a_page_run_one_after_the_other(page, digits, tmp_path):
    """On the datasets of the first hour."""
    command = [sys.executable, "-m", "spkid_dist", "shard", "--db_path", str(digits / "mcp")]
    for name in ("train", "test"):
        files = ["--list", str(digits / f"cfg/all.{name}"), "--spk2idx", str(digits / "cfg/spk2idx.json")]
        subprocess.run([*command, *files, "--out", str(tmp_path / "data" / name)], check=True, cwd=tmp_path)
    for program in blocks(ROOT / page, "python"):
        program = program.replace("range(20)", "range(1)")
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=ON_CPU
        )
        assert done.returncode == 0, done.stderr[-2000:]


def test_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
