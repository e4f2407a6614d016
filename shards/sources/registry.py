"""List all kinds of source by name: what `spkid shard --source` offers, and what a manifest's source is rebuilt from.

To add a kind: write one file like `shards.sources.npy` with a class that has the methods of `Source` and a
`from_description`, and add one line to `SOURCES`. The flag, its help, the manifest and scoring follow. A kind that holds
something of each utterance also has `for_utterances` (`shards.sources.DividedSource`). Sources that are
no part of the project are in `shards.sources.own`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import InputError, UsageError
from shards.sources import Source
from shards.sources.audio import AudioSource
from shards.sources.fmatrix import FmatrixSource
from shards.sources.htk import HtkSource
from shards.sources.kaldi import KaldiSource
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit
from shards.sources.npy import NpySource
from shards.sources.own import is_class_name, open_own, registered

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
    description: dict[str, Any], db_path: Path, limit: UtteranceLimit = DEFAULT_LIMIT, named: str | None = None
) -> Source:
    """The source that `Source.describe` described, with the same options, on the folder `db_path`; `limit` is no part of it.

    A class ``module:Class`` is imported only if the user has `named` it; a description alone imports nothing but what
    installed packages register.

    Raises:
        InputError: the description names no kind of source that is known, or its options are damaged; or the folder
            lacks what the source reads when it is opened.
        UsageError: a library that this kind of source needs is not installed; the user has named another source than the
            description; or a class can't be imported.
    """
    kind = description.get("kind")
    if named is not None and named != kind:
        raise UsageError(
            f"--source {named}: the files of the training were of the source {kind!r}; give that, or leave it out"
        )
    if isinstance(kind, str) and kind in SOURCES:
        return SOURCES[kind](description, db_path, limit)
    if isinstance(kind, str) and (kind == named or kind in registered()):
        return open_own(kind, description, db_path, limit)
    raise InputError(
        f"the source in train.opts or the manifest is of kind {kind!r}, expected one of {', '.join(kinds_of_source())}; "
        f"{_explain_unknown(kind)}"
    )


def kinds_of_source() -> list[str]:
    """All kinds of source by name: the project's, then those of installed packages."""
    return [*SOURCES, *sorted(registered().keys() - SOURCES.keys())]


def check_source(kind: str) -> None:
    """Raise UsageError where `kind` is no kind of source, and no ``module:Class``; nothing is imported."""
    if kind not in kinds_of_source() and not is_class_name(kind):
        raise UsageError(
            f"--source {kind}: expected one of {', '.join(kinds_of_source())}, or a class of your own as MODULE:CLASS"
        )


def _explain_unknown(kind: Any) -> str:
    if isinstance(kind, str) and is_class_name(kind):
        return (
            f"it is a class outside of this program: if you have it and trust it, give --source {kind}; or shard the "
            "utterances where it is, and give --te_shards"
        )
    return "install the package that registers it, or use the program's version that wrote it"
