"""Small corpora and lists, written as a test needs them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.sources.fmatrix import write_fmatrix


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def small_corpus(folder: Path, keys: Sequence[str]) -> Path:
    """Feature files of `keys`, and a list of them."""
    for number, key in enumerate(keys):
        path = folder / "mcp" / f"{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, np.full((6, 3), number, np.float32))
    return write(folder / "list", "".join(f"{key}\n" for key in keys))
