"""Give a JSON object a digest of its own content, so that a bit that flips in it later is found by who reads it.

The digest is the xxh3_128 of all other fields as JSON with sorted names, so neither indentation nor order counts.
"""

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from shards.files import plain_json

DIGEST_NAME = "digest"


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the digest of its fields as the last of them; null stands for numbers that JSON has not."""
    fields = {name: item for name, item in value.items() if name != DIGEST_NAME}
    return fields | {DIGEST_NAME: _digest(fields)}


def without_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object as it was given to `with_digest`. One without a digest, of an earlier version, is taken as it is.

    Raises:
        ValueError: it is not what was written.
    """
    fields = {name: item for name, item in value.items() if name != DIGEST_NAME}
    if DIGEST_NAME in value and value[DIGEST_NAME] != _digest(fields):
        raise ValueError(
            f"its {DIGEST_NAME} is not that of its content: it was damaged, or edited by hand; if you have edited it, "
            f"delete its field {DIGEST_NAME!r}"
        )
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plain_json(fields), sort_keys=True).encode())
