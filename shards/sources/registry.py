"""List all kinds of source by name: what `spkid shard --source` offers, and what a manifest's source is rebuilt from.

To add a kind: write one file like `shards.sources.npy` with a class that has the methods of `Source` and a
`from_description`, and add one line to `SOURCES`. The flag, its help, the manifest and scoring follow. A kind that holds
something of each utterance also has `for_utterances` (`shards.sources.DividedSource`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.sources import Source
from shards.sources.audio import AudioSource
from shards.sources.fmatrix import FmatrixSource
from shards.sources.htk import HtkSource
from shards.sources.kaldi import KaldiSource
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.sources.npy import NpySource

SOURCES: dict[str, Callable[[dict[str, Any], Path, UtteranceLimit], Source]] = {
    "fmatrix": FmatrixSource.from_description,
    "npy": NpySource.from_description,
    "kaldi": KaldiSource.from_description,
    "audio": AudioSource.from_description,
    "htk": HtkSource.from_description,
}
"""Kind of source: what makes one of its description, its folder and the largest utterance that it may read.

A description may hold more than a kind needs.
"""


def source_from_description(
    description: dict[str, Any], db_path: Path, limit: UtteranceLimit = DEFAULT_LIMIT
) -> Source:
    """The source that `Source.describe` described, with the same options, on the folder `db_path`; `limit` is no part of it.

    Raises:
        InputError: the description names no kind of source that is known, or its options are damaged; or the folder
            lacks what the source reads when it is opened.
        UsageError: a library that this kind of source needs is not installed.
    """
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise InputError(
            f"the source in train.opts or the manifest is of kind {kind!r}, expected one of {', '.join(SOURCES)}; use the "
            "program's version that wrote it"
        )
    return SOURCES[kind](description, db_path, limit)
