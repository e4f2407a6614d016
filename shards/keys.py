"""Read the keys of a block's utterances from its JSON, which anybody may have written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.jsontext import from_json, parse_json
from shards.layout import key_hash
from shards.plaintext import unsafe_character


@dataclass(frozen=True)
class _Keys:
    keys: list[str]


def parse_keys(json: memoryview, hashes: NDArray[Any]) -> list[str]:
    """The keys in the payload of KEY.json; they have the hashes (U,) uint64 of the utterance table, in this order.

    Raises:
        ValueError: the JSON is damaged, has other keys, or one with a character that no name may have.
    """
    found: _Keys = from_json(_Keys, parse_json(bytes(json)))
    if not np.array_equal(np.array([key_hash(key) for key in found.keys], np.uint64), hashes):
        raise ValueError(f"its {len(found.keys)} keys are not those of the table")
    unsafe = next((key for key in found.keys if unsafe_character(key) is not None), None)
    if unsafe is not None:
        raise ValueError(f"the utterance {unsafe!r} has a character that no name may have")
    return found.keys
