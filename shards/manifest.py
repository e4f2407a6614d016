"""The manifest of a dataset: it describes all shards, and the jobs that made them.

What is read is compared with its fingerprint, and checked: types, names, totals. The tables are `shards.tables`'.
"""

import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards.errors import InputError, UsageError
from shards.files import read_regular
from shards.guesses import file_trouble, guess_dataset
from shards.jsontext import MOST_BYTES, from_json, parse_json, shown
from shards.layout import (
    BLOCKS_NAME,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST_NAME,
    UTTERANCES_NAME,
    Layout,
    ShardInfo,
    shard_name,
    table_name,
)
from shards.plaintext import is_remote, unsafe_character
from shards.speakers import RULE_FIELD

SOURCE_FIELDS: dict[str, Any] = {
    "ext": str,
    "features": dict[str, Any],
    RULE_FIELD: dict[str, Any],
}  # where they are there
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """One table's file beside the manifest; `digest` as in `ShardInfo`."""

    bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What each shard keeps of the whole, the "dataset" of its first block's JSON: its job and the job's options.

    `part` is the job's number: 0 made the dataset, the others appended to it. `speakers` are all until then.
    """

    job: str
    part: int
    source: dict[str, Any]
    speakers: list[str]
    dtype: str
    seed: int
    block_frames: int
    shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """A job that made some of a dataset's shards, which follow each other; `num_speakers` are the dataset's until then."""

    job: str
    source: dict[str, Any]
    num_speakers: int
    seed: int
    block_frames: int
    shard_bytes: int
    shards: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What describes all shards of a dataset. `speakers` are in class order; `mean` and `std` hold D values each."""

    num_features: int
    dtype: str
    speakers: list[str]
    jobs: list[JobInfo]
    num_utterances: int
    num_frames: int
    mean: list[float]
    std: list[float]
    tables: dict[str, TableInfo]
    shards: list[ShardInfo]

    @property
    def num_blocks(self) -> int:
        """Blocks of all shards."""
        return sum(shard.blocks for shard in self.shards)

    @property
    def source(self) -> dict[str, Any]:
        """Where frames come from: of the first job, which the others' kind and features equal.

        Where the jobs' speakers were named by several rules, none is kept.
        """
        first = self.jobs[0].source
        if all(job.source.get(RULE_FIELD) == first.get(RULE_FIELD) for job in self.jobs):
            return first
        return first | {RULE_FIELD: {"by": "several"}}

    @property
    def seed(self) -> int:
        """Of the order of storage, of the first job."""
        return self.jobs[0].seed

    @property
    def blocks_name(self) -> str:
        """The file of the block table."""
        return table_name(BLOCKS_NAME, len(self.jobs))

    @property
    def utterances_name(self) -> str:
        """The file of the utterance table."""
        return table_name(UTTERANCES_NAME, len(self.jobs))

    def origin(self, shard: int) -> Origin:
        """What a shard keeps of the whole."""
        ends = accumulate(job.shards for job in self.jobs)
        part, job = next(
            (part, job) for part, (job, end) in enumerate(zip(self.jobs, ends, strict=True)) if shard < end
        )
        shared = {name: getattr(job, name) for name in ("job", "source", "seed", "block_frames", "shard_bytes")}
        return Origin(part=part, speakers=self.speakers[: job.num_speakers], dtype=self.dtype, **shared)

    @property
    def fingerprint(self) -> str:
        """The dataset's identity: xxh3_128 of the manifest's canonical JSON, which holds the digests of all else."""
        canonical = json.dumps(self._head() | asdict(self), sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_128_hexdigest(canonical.encode())

    @staticmethod
    def _head() -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION}

    def to_bytes(self) -> bytes:
        """The manifest's file: equal manifests give equal bytes."""
        value = self._head() | {"fingerprint": self.fingerprint} | asdict(self)
        return (json.dumps(value, indent=1) + "\n").encode()

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Read and check the manifest of the dataset in `folder`.

        Raises:
            InputError: there is none, it is of another version, or anything in it is not as it was written.
        """
        path = folder / MANIFEST_NAME
        try:
            data = read_regular(path, MOST_BYTES)
        except OSError as error:
            remedy = "restore it from a copy" if path.exists() else guess_dataset(folder)
            raise InputError(f"{path}: can't read the manifest: {file_trouble(error, remedy)}") from None
        return Manifest.parse(data, str(path))

    @staticmethod
    def parse(text: str | bytes, where: str) -> "Manifest":
        """The manifest in the text of its file, found at `where`. Raises InputError as `load`."""
        try:
            value = parse_json(text)
        except ValueError as error:
            raise _damaged(where, str(error)) from None
        return parse_manifest(value, where)


def parse_manifest(value: Any, path: str) -> Manifest:
    """The manifest in the parsed JSON `value`; `path` is for messages. Raises InputError as `Manifest.load`."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f'{path}: not a manifest of this project; expected "format": "{FORMAT}"')
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {shown(version)}, but this program reads version {FORMAT_VERSION}; "
            "use the program's version that wrote it, or shard the corpus again"
        )
    try:
        manifest: Manifest = from_json(Manifest, value)
        for job in manifest.jobs:
            check_source(job.source)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    fingerprint = manifest.fingerprint
    if value.get("fingerprint") != fingerprint:
        found = shown(value.get("fingerprint"))
        raise _damaged(path, f"its fingerprint is {found}, but its contents make {fingerprint!r}")
    for check in (_check_frames, _check_jobs, _check_shards, _check_totals):
        check(manifest, path)
    return manifest


def check_source(source: dict[str, Any]) -> None:
    """Check the description of a source: what each kind has, as far as readers of a dataset look at it.

    Raises:
        ValueError: a field is missing or of another type.
    """
    if not isinstance(source.get("kind"), str):
        raise ValueError('source has no "kind"')
    for name, kind in SOURCE_FIELDS.items():
        if name in source:
            from_json(kind, source[name], f"source.{name}")


# What a fingerprint can't tell: a manifest that was made wrong.


def _check_frames(manifest: Manifest, path: str) -> None:
    if manifest.dtype not in DTYPES:
        raise _damaged(path, f"dtype {manifest.dtype!r} is not one of {', '.join(DTYPES)}")
    if not 1 <= manifest.num_features == len(manifest.mean) == len(manifest.std):
        raise _damaged(
            path, f"{manifest.num_features} features, but {len(manifest.mean)} means and {len(manifest.std)} deviations"
        )
    if min(manifest.std) < 0 or max(map(abs, (*manifest.mean, *manifest.std))) > FLOAT32_MAX:
        raise _damaged(path, "a mean or a deviation is beyond float32, or a deviation is negative")


def _check_jobs(manifest: Manifest, path: str) -> None:
    speakers = [0, *(job.num_speakers for job in manifest.jobs)]
    if speakers != sorted(speakers) or speakers[-1] != len(manifest.speakers):
        raise _damaged(path, f"{len(manifest.speakers)} speakers, but its jobs say {speakers[1:]}")
    if len(set(manifest.speakers)) < len(manifest.speakers) or not all(manifest.speakers):
        raise _damaged(path, "a speaker stands twice among its speakers, or has no name")
    unsafe = next((name for name in manifest.speakers if unsafe_character(name) is not None), None)
    if unsafe is not None:
        raise _damaged(path, f"the speaker {unsafe!r} has a character that no name may have")
    shards = [job.shards for job in manifest.jobs]
    if not shards or min(shards) < 1 or sum(shards) != len(manifest.shards):
        raise _damaged(path, f"{len(manifest.shards)} shards, but its jobs say {shown(shards)}")
    for job in manifest.jobs:
        try:
            Layout(dtype=manifest.dtype, seed=job.seed, block_frames=job.block_frames, shard_bytes=job.shard_bytes)
        except UsageError as error:
            raise _damaged(path, f"an option of a job can't be: {error}") from None


def _check_shards(manifest: Manifest, path: str) -> None:
    row_bytes = manifest.num_features * np.dtype(manifest.dtype).itemsize
    for number, shard in enumerate(manifest.shards):
        if shard.name != shard_name(number):
            raise _damaged(path, f"shard {number} is named {shard.name!r}, expected {shard_name(number)!r}")
        if not 1 <= shard.blocks <= shard.utterances <= shard.frames or shard.frames * row_bytes > shard.bytes:
            raise _damaged(
                path,
                f"shard {number} can't have {shard.blocks} blocks, {shard.utterances} utterances and {shard.frames} frames "
                f"in {shard.bytes} bytes",
            )


def _check_totals(manifest: Manifest, path: str) -> None:
    expected = [manifest.blocks_name, manifest.utterances_name]
    if sorted(manifest.tables) != expected:
        raise _damaged(path, f"tables {shown(sorted(manifest.tables))}, expected {' and '.join(expected)}")
    if sum(shard.bytes for shard in manifest.shards) >= 2**63:
        raise _damaged(path, "its shards have more bytes together than there can be")
    for total, what in ((manifest.num_utterances, "utterances"), (manifest.num_frames, "frames")):
        parts = sum(getattr(shard, what) for shard in manifest.shards)
        if parts != total:
            raise _damaged(path, f"its shards have {parts} {what} together, but the total says {total}")


def _damaged(path: str, what: str) -> InputError:
    folder = "FOLDER, of a local copy" if is_remote(str(path)) else Path(path).parent
    return InputError(
        f"{path}: damaged: {what}; restore it from a copy, or build it again from the shards: spkid index {folder}"
    )
