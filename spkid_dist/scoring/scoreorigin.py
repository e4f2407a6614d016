"""Say in a file of scores what they are scores of, so that nobody takes them for those of other weights or utterances.

A file of scores is kept under the name that the user gave it, beside whatever later scorings write.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.errors import InputError
from shards.jsontext import from_json, parse_json, shown
from shards.plaintext import printable, shown_place
from spkid_dist.scoring.models import ModelFiles
from spkid_dist.scoring.weightsdigest import is_digest


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What scores are of: the names of the weights files with their digests, and the flags that named the utterances."""

    weights: dict[str, str]
    te_list_file: str | None
    te_shards: str | None

    def __str__(self) -> str:
        """In words."""
        listed = "" if self.te_list_file is None else f"the list {self.te_list_file}"
        dataset = "" if self.te_shards is None else f"the dataset {self.te_shards}"
        names = ", ".join(name for name in self.weights.values())
        return printable(f"by {names}, on {' of '.join(filter(None, (listed, dataset))) or 'the default list'}")

    def check(self, models: Sequence[ModelFiles], scores: Path) -> None:
        """Raise InputError where the scores in the file `scores` are not by these models."""
        if sorted(self.weights) != sorted(one.digest for one in models):
            given = ", ".join(str(one.weights) for one in models)
            raise InputError(
                f"{scores}: holds scores {self}, but the weights in {given} are others; score with these, or give no model"
            )


def origin_of(models: Sequence[ModelFiles], te_list_file: Path | None, te_shards: str | None) -> Origin:
    """The origin of scores by `models`, of the utterances that the two flags name."""
    weights = {one.digest: one.weights.name for one in models}
    listed = None if te_list_file is None else str(te_list_file)
    return Origin(weights=weights, te_list_file=listed, te_shards=None if te_shards is None else shown_place(te_shards))


def origin_to_text(origin: Origin) -> str:
    """The origin as JSON."""
    return json.dumps(asdict(origin))


def origin_from_text(text: str | None) -> Origin | None:
    """The origin in JSON; None where there is no text. Raises ValueError where it is damaged."""
    if text is None:
        return None
    origin: Origin = from_json(Origin, parse_json(text, undecodable=True), "its origin")  # names of files stand in it
    if not origin.weights or not all(map(is_digest, origin.weights)):
        raise ValueError(f"its origin names the weights {shown(origin.weights)}, expected names by their digests")
    return origin
