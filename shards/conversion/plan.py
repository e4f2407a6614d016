"""Plan how a corpus is cut into shards, from the list and the options alone, whoever carries it out.

Utterances are shuffled by sorting them on a hash of (seed, key): the order needs no generator, and is the same for the
same set of utterances however the list was sorted. A shard is an equal share of that order, so a task is known by two
integers, and every block is a random sample of the corpus.

The plan itself is a few numbers. Tasks are made in segments of consecutive shards of at most 2^20 utterances, each
selected from the list by one scan (`shards.listing`), so memory is that of a segment whatever the list: 10^9 utterances
in 10^5 shards are 962 segments of 104 shards. One of 1,000 machines scans the list twice, once to plan and once for its
own 100 shards; one machine that does the whole job scans it 963 times, which takes longer than the conversion itself.
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

from shards.conversion.appending import check_absent, check_options
from shards.conversion.frames import check_not_transposed, check_shape
from shards.corpus import Utterance
from shards.dataset import ShardDataset
from shards.jsontext import from_json, shown
from shards.layout import Layout
from shards.listing import Listing, MemoryListing
from shards.manifest import Manifest, Origin
from shards.names import classes_of, one_form
from shards.sources import Source
from shards.sources.limits import MAX_FEATURES
from shards.speakers import SpeakerRule, describe_rule

SEGMENT_UTTERANCES = 2**20  # selected from the list at a time


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of a conversion have in common.

    `identity` names the list (by `utterances`, an `UtteranceSum`) and all options that change bytes, `sample` (xxh3_128)
    the frames that were loaded for the plan: it tells a job that is continued with other feature files. A job that
    appends is `part` 1 or more of its dataset, has shards from `first_shard` on, and goes with no dataset but that of the
    fingerprint `base`. `begun_by` says which process began it, for messages.
    """

    identity: str
    utterances: str
    part: int
    first_shard: int
    base: str
    speakers: list[str]
    layout: Layout
    source: dict[str, Any]
    num_features: int
    num_utterances: int
    num_shards: int
    first_read: str
    sample: str
    begun_by: str = ""

    @property
    def shards(self) -> range:
        """The numbers of its shards."""
        return range(self.first_shard, self.first_shard + self.num_shards)

    @property
    def origin(self) -> Origin:
        """What each shard keeps of the whole, so that the manifest can be rebuilt from the tars alone."""
        options = asdict(self.layout)
        return Origin(job=self.identity, part=self.part, source=self.source, speakers=self.speakers, **options)

    def is_in(self, manifest: Manifest) -> bool:
        """Whether it is finished: a job of this list and these options is in the dataset, in a place that it can have.

        Speakers that the dataset has got since do not matter.
        """
        jobs = manifest.jobs[1:] if self.part else manifest.jobs[:1]
        options = self.source, self.layout
        return any(
            info.job == job_identity(*options, self.speakers[: info.num_speakers], self.utterances) for info in jobs
        )

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values, for `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> "Job":
        """The job that `to_json` described.

        Raises:
            ValueError, UsageError: `value` is something else.
        """
        job: Job = from_json(Job, value)
        if job.to_json() != value:
            raise ValueError(f"it has the fields {shown(list(value))}, expected those of a job")
        if not isinstance(job.source.get("kind"), str):
            raise ValueError("its source has no kind")
        if not 1 <= job.num_shards <= job.num_utterances:
            raise ValueError(f"{job.num_shards} shards of {job.num_utterances} utterances")
        if not 1 <= job.num_features <= MAX_FEATURES or not job.speakers:
            raise ValueError(f"{job.num_features} features per frame and {len(job.speakers)} speakers")
        if (job.part == 0) != (job.first_shard == 0) or (job.part == 0) != (job.base == ""):
            raise ValueError(
                f"part {job.part} of a dataset begins with shard {job.first_shard} and goes with {job.base!r}"
            )
        return job


@dataclass(frozen=True)
class ShardTask:
    """One task of a job: all that a worker needs to make one shard."""

    job: Job
    shard: int
    utterances: list[Utterance]


@dataclass(frozen=True)
class Plan:
    """A conversion job and where its utterances are listed, cut into as many shares as shards.

    `onto` is the dataset that it appends to, None where it makes one.
    """

    job: Job
    listing: Listing
    onto: ShardDataset | None

    def share(self, shard: int) -> range:
        """The utterances of one shard, as ranks in the order of storage."""
        total, num_shards = self.job.num_utterances, self.job.num_shards
        number = shard - self.job.first_shard
        return range(number * total // num_shards, (number + 1) * total // num_shards)

    def task(self, shard: int) -> ShardTask:
        """The task of one shard. Raises InputError as `tasks`."""
        return next(self.tasks([shard]))

    def tasks(self, shards: Sequence[int]) -> Iterator[ShardTask]:
        """The tasks of ascending `shards`, made a segment at a time.

        Raises:
            InputError: an utterance is listed twice or in the dataset already, or the list has changed since the plan
                was made.
        """
        for segment in self._segments(shards):
            first = self.share(segment[0]).start
            utterances = self.listing.select(range(first, self.share(segment[-1]).stop))
            if self.onto is not None and self.job.num_utterances > SEGMENT_UTTERANCES:  # else checked by `make_plan`
                check_absent(self.onto, utterances)
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


def make_plan(
    listed: Listing | Sequence[Utterance],
    speakers: list[str],
    source: Source,
    layout: Layout,
    onto: ShardDataset | None = None,
    rule: SpeakerRule | None = None,
) -> Plan:
    """Plan the conversion of the utterances `listed`; a few of them are loaded to learn D and the mean size.

    A listing must be of the layout's seed. Where it is one segment, all of it is selected, and so checked, now.

    Args:
        listed: what to convert.
        speakers: in class order; where it appends, `shards.conversion.appending.extended_speakers`.
        source: where the frames come from.
        layout: how they are stored.
        onto: the dataset to append to; None to make one.
        rule: what named the speakers, which the dataset keeps; None for the source's usual rule.

    Raises:
        InputError: one of those few is missing or damaged, an utterance is listed twice, or in `onto` already; or D, the
            dtype or the source is not that of `onto`.
    """
    listing = MemoryListing(_spelled(listed, speakers), layout.seed) if isinstance(listed, Sequence) else listed
    if onto is not None:
        check_options(onto, source.describe(), layout.dtype)
    plan = Plan(_make_job(listing, speakers, source, layout, onto, rule), listing, onto)
    total = listing.total.count
    if total <= SEGMENT_UTTERANCES:
        utterances = listing.select(range(total))
        if onto is not None and not plan.job.is_in(onto.manifest):
            check_absent(onto, utterances)
    return plan


def _spelled(utterances: Sequence[Utterance], speakers: Sequence[str]) -> Sequence[Utterance]:
    """The utterances, with the names of `speakers` as they are spelled there: both forms of a name are one speaker."""
    if all(one.speaker.isascii() for one in utterances):
        return utterances
    classes = classes_of(speakers)
    found = [classes.get(one.speaker, classes.get(one_form(one.speaker))) for one in utterances]
    return [
        one if index is None else Utterance(one.key, speakers[index])
        for one, index in zip(utterances, found, strict=True)
    ]


def _make_job(
    listing: Listing,
    speakers: list[str],
    source: Source,
    layout: Layout,
    onto: ShardDataset | None,
    rule: SpeakerRule | None,
) -> Job:
    description = source.describe()
    description |= describe_rule(rule, description["kind"])
    total = listing.total
    sample = listing.first
    loaded = [source.load(utterance) for utterance in sample]
    num_features = loaded[0].shape[1]
    first_read = source.where(sample[0])
    check_not_transposed(loaded, first_read)
    if onto is not None:
        check_shape(loaded[0], onto.manifest.num_features, f"the dataset {onto.folder} has", first_read)
    itemsize = np.dtype(layout.dtype).itemsize
    mean_bytes = itemsize * num_features * sum(len(frames) for frames in loaded) / len(loaded)
    num_shards = math.ceil(max(1.0, total.count * mean_bytes / layout.shard_bytes))
    return Job(
        identity=job_identity(description, layout, speakers, str(total)),
        utterances=str(total),
        part=0 if onto is None else len(onto.manifest.jobs),
        first_shard=0 if onto is None else len(onto.manifest.shards),
        base="" if onto is None else onto.fingerprint,
        speakers=speakers,
        layout=layout,
        source=description,
        num_features=num_features,
        num_utterances=total.count,
        num_shards=min(num_shards, total.count),
        first_read=first_read,
        sample=_digest(loaded),
    )


def _digest(arrays: Iterable[NDArray[np.float32]]) -> str:
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def job_identity(source: Mapping[str, Any], layout: Layout, speakers: Sequence[str], utterances: str) -> str:
    """The identity of a job: its options and its utterances, an `UtteranceSum` as text."""
    options = {"source": source, "speakers": speakers, "utterances": utterances} | asdict(layout)
    return xxhash.xxh3_128_hexdigest(json.dumps(options, sort_keys=True).encode())
