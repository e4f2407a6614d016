"""Check that these shards, read one by one, are all shards of the jobs that they name."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from shards.conversion.plan import job_identity
from shards.conversion.record import ShardRecord
from shards.errors import InputError
from shards.hashing import UtteranceSum
from shards.layout import Layout
from shards.manifest import Origin


@dataclass(frozen=True)
class IndexedShard:
    """What a shard's tar tells: its record, the job and dataset that it says it is of, and its utterances' sum."""

    record: ShardRecord
    origin: Origin
    num_features: int
    total: UtteranceSum


class JobChecks:
    """Follows the jobs whose shards are read, in order; a job's identity covers every utterance of its shards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: IndexedShard | None = None  # of the job in hand
        self._last_name = ""
        self._total = UtteranceSum()

    def add(self, shard: IndexedShard) -> None:
        """Check that the next shard goes on with the job in hand, or that a job ends there and the next one begins."""
        first = self._first
        if first is None or shard.origin.part == first.origin.part + 1:
            if first is not None:
                self.close()
            self._check_begin(shard)
            self._first, self._total = shard, UtteranceSum()
        else:
            self._check_alike(shard, {"num_features": first.num_features} | asdict(first.origin))
        self._total += shard.total
        self._last_name = shard.record.info.name

    def close(self) -> None:
        """Check that no shard of the job in hand is missing at its end."""
        assert self._first is not None
        origin = self._first.origin
        layout = Layout(**{field.name: getattr(origin, field.name) for field in fields(Layout)})
        found = job_identity(origin.source, layout, origin.speakers, str(self._total))
        if found != origin.job:
            raise InputError(
                f"{self._folder}: {self._first.record.info.name} to {self._last_name} make job {found}, but they say that "
                f"they are of job {origin.job}: shards are missing at the end, or were exchanged; restore them from a copy"
            )

    def _check_begin(self, shard: IndexedShard) -> None:
        """A job that appends keeps D, the dtype and the speakers' classes."""
        if self._first is None:
            self._check_alike(shard, {"part": 0})
            return
        before = self._first.origin
        expected = {"num_features": self._first.num_features, "dtype": before.dtype}
        if shard.origin.speakers[: len(before.speakers)] != before.speakers:
            expected["speakers"] = before.speakers
        self._check_alike(shard, expected)

    def _check_alike(self, shard: IndexedShard, expected: dict[str, Any]) -> None:
        name = self._first.record.info.name if self._first else "the first shard of a dataset"
        found = {"num_features": shard.num_features} | asdict(shard.origin)
        for field, value in expected.items():
            if found[field] != value:
                raise InputError(
                    f"{self._folder / shard.record.info.name}: {field} is {_short(found[field])}, but {_short(value)} in "
                    f"{name}: these are shards of two datasets; keep each in a folder of its own"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
