"""Libraries that only some sources and exports need: imported when such a one is made, not before."""

from importlib import import_module
from typing import Any

from shards.errors import UsageError


def import_extra(module: str, extra: str) -> Any:
    """The module, which the optional dependencies `extra` of this project bring.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its C library
        raise UsageError(
            f"{module} can't be imported ({error}), and it is needed here: run pip install 'spkid-dist[{extra}]'"
        ) from None
