"""Import libraries that only some sources, options and exports need, when one of them is used."""

from importlib import import_module
from typing import Any

from shards.errors import UsageError


def import_extra(module: str, extra: str, needed_by: str = "this source") -> Any:
    """The module, which the optional dependencies `extra` of this project bring; `needed_by` is for the message.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its C library
        raise UsageError(
            f"{module} can't be imported ({error}), and {needed_by} needs it: run pip install 'spkid-dist[{extra}]'"
        ) from None
