"""How a corpus is cut into shards: a plan that depends on the list and the options alone, not on who carries it out.

Utterances are shuffled by sorting them on a hash of (seed, key): the order needs no generator, and is the same for the
same set of utterances however the list was sorted. A shard is an equal share of that order, so a task is known by two
integers, and every block is a random sample of the corpus.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import UsageError
from shards.layout import DTYPES, check_types
from shards.sources import Source

SAMPLE_UTTERANCES = 64  # loaded beforehand to estimate the size of a shard's share


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The options that change a dataset's bytes, besides its source."""

    dtype: str = "float32"
    seed: int = 0
    block_frames: int = 8192
    shard_bytes: int = 256_000_000

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: expected 0 or more, below 2^63")
        if not 1 <= self.block_frames <= 2**24:
            raise UsageError(f"--block_frames {self.block_frames}: expected 1 to {2**24}")
        if self.shard_bytes < 1:
            raise UsageError(f"--shard_bytes {self.shard_bytes}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of a conversion have in common.

    `identity` names the list and all options that change bytes, `sample` (xxh3_128) the frames that were loaded for the
    plan: it tells a job that is continued with other feature files.
    """

    identity: str
    speakers: list[str]
    layout: Layout
    source: dict[str, Any]
    num_features: int
    num_utterances: int
    num_shards: int
    first_read: str
    sample: str

    def describe(self) -> dict[str, Any]:
        """What each shard keeps of the whole, so that the manifest can be rebuilt from the tars alone."""
        return {"job": self.identity, "source": self.source, "speakers": self.speakers} | asdict(self.layout)

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values, for `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Job":
        """The job that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError, UsageError: `value` is something else.
        """
        values = {**value, "layout": Layout(**value["layout"])}
        job = Job(**values)
        check_types(Layout, value["layout"])
        check_types(Job, values)
        if not 1 <= job.num_shards <= job.num_utterances:
            raise ValueError(f"{job.num_shards} shards of {job.num_utterances} utterances")
        return job


@dataclass(frozen=True)
class ShardTask:
    """One task of a job: all that a worker needs to make one shard."""

    job: Job
    shard: int
    utterances: list[Utterance]


@dataclass(frozen=True)
class Plan:
    """A conversion job and its utterances in their order of storage, cut into as many shares as shards."""

    job: Job
    utterances: list[Utterance]

    def share(self, shard: int) -> range:
        """The utterances of one shard, as indices into `utterances`."""
        total, num_shards = len(self.utterances), self.job.num_shards
        return range(shard * total // num_shards, (shard + 1) * total // num_shards)

    def task(self, shard: int) -> ShardTask:
        """The task of one shard."""
        share = self.share(shard)
        return ShardTask(self.job, shard, self.utterances[share.start : share.stop])


def make_plan(utterances: Sequence[Utterance], speakers: list[str], source: Source, layout: Layout) -> Plan:
    """Plan the conversion of `utterances`; a few of them are loaded to learn D and the mean size.

    Raises:
        InputError: one of those is missing or damaged.
    """
    ordered = sorted(utterances, key=lambda u: (xxhash.xxh3_64_intdigest(u.key.encode(), seed=layout.seed), u.key))
    sample = ordered[:SAMPLE_UTTERANCES]
    loaded = [source.load(utterance) for utterance in sample]
    num_features = loaded[0].shape[1]
    itemsize = np.dtype(layout.dtype).itemsize
    mean_bytes = itemsize * num_features * sum(len(frames) for frames in loaded) / len(loaded)
    options = {"source": source.describe(), "speakers": list(speakers)} | asdict(layout)
    num_shards = math.ceil(max(1.0, len(ordered) * mean_bytes / layout.shard_bytes))
    job = Job(
        identity=job_identity(options, (listing([utterance]) for utterance in ordered)),
        speakers=speakers,
        layout=layout,
        source=source.describe(),
        num_features=num_features,
        num_utterances=len(ordered),
        num_shards=min(num_shards, len(ordered)),
        first_read=source.where(sample[0]),
        sample=_digest(loaded),
    )
    return Plan(job, ordered)


def _digest(arrays: Iterable[NDArray[np.float32]]) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def job_identity(options: Mapping[str, Any], listings: Iterable[bytes]) -> str:
    """The identity of a job: its options and, in the order of storage, the `listing` of its utterances."""
    digest = xxhash.xxh3_128()
    digest.update(json.dumps(options, sort_keys=True).encode())
    for part in listings:
        digest.update(part)
    return digest.hexdigest()


def listing(utterances: Iterable[Utterance]) -> bytes:
    """The utterances as the job's identity takes them."""
    return "".join(f"\n{utterance.key}\t{utterance.speaker}" for utterance in utterances).encode()
