"""Read files by a source that is no part of this project: a class that a command line names, or that a package registers.

`module:Class` is imported because the user's own command line names it. An installed package registers a class as an entry
point of the group ``spkid_dist.sources``; its name is then a kind of source like any other. What stands in a manifest, in
train.opts or in any other file is compared with these names, and never imported: who sends a dataset sends no code with it.
"""

import importlib
import json
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import InputError, SpkidError, UsageError
from shards.plaintext import printable
from shards.sources import Source
from shards.sources.limits import DEFAULT_LIMIT, UtteranceLimit

GROUP = "spkid_dist.sources"
CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
METHODS = ("from_description", "describe", "where", "load")


@dataclass(frozen=True)
class OwnSource:
    """A source of somebody else's class, whose mistakes are errors that name it; `kind` is the name that led to the class."""

    kind: str
    source: Source
    limit: UtteranceLimit = DEFAULT_LIMIT

    def describe(self) -> dict[str, Any]:
        """What the class describes, and its name.

        Raises:
            InputError: that is no JSON object.
        """
        described = self.source.describe()
        try:
            kept = json.loads(json.dumps(described))
        except (TypeError, ValueError):
            kept = None
        if not isinstance(kept, dict) or kept != described:
            raise InputError(
                f"the source {self.kind}: describe() gives {described!r}; expected a dictionary of JSON values"
            )
        return kept | {"kind": self.kind}

    def where(self, utterance: Utterance) -> str:
        """What the class says."""
        return str(self.source.where(utterance))

    def load(self, utterance: Utterance) -> NDArray[np.float32]:
        """The utterance's frames, (T, D) float32.

        Raises:
            InputError: the class raises it, or any other error; or it gives something else, or more than the limit.
        """
        where = self.where(utterance)
        try:
            frames = self.source.load(utterance)
        except SpkidError:
            raise
        except Exception as error:  # whatever somebody else's code raises for a file
            told = printable(f"{type(error).__name__}: {error}")
            raise InputError(
                f"{where}: the source {self.kind} fails: {told}; correct the file, or the class"
            ) from error
        if not isinstance(frames, np.ndarray) or frames.ndim != 2 or frames.dtype != np.float32:
            is_array = isinstance(frames, np.ndarray)
            found = f"{frames.dtype} of shape {frames.shape}" if is_array else f"a {type(frames).__name__}"
            raise InputError(f"{where}: the source {self.kind} gives {found}; expected an array (T, D) of float32")
        self.limit.check(len(frames), frames.shape[1], where)
        return frames


def registered() -> dict[str, EntryPoint]:
    """The classes that installed packages register, by the kind of source; nothing is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def is_class_name(kind: str) -> bool:
    """Whether this is spelled as a class that a command line may name."""
    return CLASS_NAME.fullmatch(kind) is not None


def open_own(kind: str, description: dict[str, Any], db_path: Path, limit: UtteranceLimit) -> OwnSource:
    """The source of the class `module:Class`, or of a registered kind, as `source_from_description`; this imports it.

    Raises:
        UsageError: it can't be imported, or is no such class.
        InputError: the class raises it.
    """
    made = _import(kind)
    missing = [name for name in METHODS if not callable(getattr(made, name, None))]
    if missing:
        raise UsageError(f"--source {kind}: it has no method {missing[0]}; expected a class with {', '.join(METHODS)}")
    try:
        return OwnSource(kind, made.from_description(description, db_path, limit), limit)
    except SpkidError:
        raise
    except Exception as error:
        raise UsageError(
            f"--source {kind}: from_description fails: {printable(f'{type(error).__name__}: {error}')}; correct the class"
        ) from error


def _import(kind: str) -> Any:
    point = registered().get(kind)
    try:
        if point is not None:
            return point.load()
        module, _, name = kind.partition(":")
        if os.getcwd() not in sys.path:  # noqa: PTH109 - text
            sys.path.append(os.getcwd())  # noqa: PTH109 - behind all others: no file there takes the place of a library
        return getattr(importlib.import_module(module), name)
    except SpkidError:
        raise
    except Exception as error:
        raise UsageError(
            f"--source {kind}: can't be imported: {printable(f'{type(error).__name__}: {error}')}; expected MODULE:CLASS, a "
            "module that is installed, on $PYTHONPATH or in the working folder"
        ) from error
