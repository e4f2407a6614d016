"""Let pages of the site link to files of the project that lie outside docs/, as they do in the repository.

The files become files of the site, and a link that leads out of docs/ leads to them.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+)((?:examples|launch|recipes)/[^)#\s]+|[A-Z]+\.md)")
OUTSIDE = (
    "examples/*.*",
    "launch/*.md",
    "launch/**/*.*",
    "recipes/*.*",
    "DESIGN.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the project's files that pages may link to."""
    paths = {path for pattern in OUTSIDE for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        name = str(path.relative_to(ROOT))
        files.append(File.generated(config, f"project/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of docs/ into links to the files that were added, and those between them back."""
    here = page.file.src_uri
    if here.startswith("project/"):
        depth = here.count("/") - 1
        return re.sub(r"\]\(((?:\.\./)*)docs/", lambda _: f"]({'../' * depth}../", markdown)
    depth = here.count("/")

    def inside(match: re.Match[str]) -> str:
        ups = match[1].count("../")
        return f"]({'../' * depth}project/{match[2]}" if ups > depth else match[0]

    return LINK.sub(inside, markdown)
