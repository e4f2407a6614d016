"""How a corpus is cut into shards: a plan that depends on the list and the options alone, not on who carries it out.

Utterances are shuffled by sorting them on a hash of (seed, key): the order needs no generator, and is the same for the
same set of utterances however the list was sorted. A shard is an equal share of that order, so a task is known by two
integers, and every block is a random sample of the corpus.

The plan itself is a few numbers. Tasks are made in segments of consecutive shards of at most 2^20 utterances, each
selected from the list by one scan (`shards.listing`), so memory is that of a segment whatever the list: 10^9 utterances
in 10^5 shards are 954 segments of 105 shards. One of 1,000 machines scans the list twice, once to plan and once for its
own 100 shards; one machine that does the whole job scans it 955 times, which takes longer than the conversion itself.
Memory grows past that only where a single shard has more utterances.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.corpus import Utterance
from shards.errors import UsageError
from shards.layout import DTYPES, check_types
from shards.listing import Listing, MemoryListing, UtteranceSum
from shards.sources import Source

SEGMENT_UTTERANCES = 2**20  # selected from the list at a time


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
    """A conversion job and where its utterances are listed, cut into as many shares as shards."""

    job: Job
    listing: Listing

    @property
    def utterances(self) -> list[Utterance]:
        """All utterances in their order of storage: for lists that fit into memory."""
        return self.listing.select(range(self.job.num_utterances))

    def share(self, shard: int) -> range:
        """The utterances of one shard, as ranks in the order of storage."""
        total, num_shards = self.job.num_utterances, self.job.num_shards
        return range(shard * total // num_shards, (shard + 1) * total // num_shards)

    def task(self, shard: int) -> ShardTask:
        """The task of one shard. Raises InputError as `tasks`."""
        return next(self.tasks([shard]))

    def tasks(self, shards: Sequence[int]) -> Iterator[ShardTask]:
        """The tasks of ascending `shards`, made a segment at a time.

        Raises:
            InputError: an utterance is listed twice, or the list has changed since the plan was made.
        """
        for segment in self._segments(shards):
            first = self.share(segment[0]).start
            utterances = self.listing.select(range(first, self.share(segment[-1]).stop))
            for shard in segment:
                share = self.share(shard)
                yield ShardTask(self.job, shard, utterances[share.start - first : share.stop - first])
            del utterances  # before the next segment takes as much memory

    def _segments(self, shards: Sequence[int]) -> Iterator[list[int]]:
        """`shards` cut into runs of consecutive ones that have at most SEGMENT_UTTERANCES together, or are single."""
        segment: list[int] = []
        for shard in shards:
            if segment and (
                shard != segment[-1] + 1 or self.share(shard).stop - self.share(segment[0]).start > SEGMENT_UTTERANCES
            ):
                yield segment
                segment = []
            segment.append(shard)
        if segment:
            yield segment


def make_plan(listed: Listing | Sequence[Utterance], speakers: list[str], source: Source, layout: Layout) -> Plan:
    """Plan the conversion of the utterances `listed`; a few of them are loaded to learn D and the mean size.

    A listing must be of the layout's seed. Where it is one segment, all of it is selected, and so checked, now.

    Raises:
        InputError: one of those few is missing or damaged, or an utterance is listed twice.
    """
    listing = MemoryListing(listed, layout.seed) if isinstance(listed, Sequence) else listed
    total = listing.total
    if total.count <= SEGMENT_UTTERANCES:
        listing.select(range(total.count))
    sample = listing.first
    loaded = [source.load(utterance) for utterance in sample]
    num_features = loaded[0].shape[1]
    itemsize = np.dtype(layout.dtype).itemsize
    mean_bytes = itemsize * num_features * sum(len(frames) for frames in loaded) / len(loaded)
    options = {"source": source.describe(), "speakers": list(speakers)} | asdict(layout)
    num_shards = math.ceil(max(1.0, total.count * mean_bytes / layout.shard_bytes))
    job = Job(
        identity=job_identity(options, total),
        speakers=speakers,
        layout=layout,
        source=source.describe(),
        num_features=num_features,
        num_utterances=total.count,
        num_shards=min(num_shards, total.count),
        first_read=source.where(sample[0]),
        sample=_digest(loaded),
    )
    return Plan(job, listing)


def _digest(arrays: Iterable[NDArray[np.float32]]) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def job_identity(options: Mapping[str, Any], total: UtteranceSum) -> str:
    """The identity of a job: its options and its utterances, which `total` is the sum of."""
    identity = dict(options) | {"utterances": str(total)}
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())
