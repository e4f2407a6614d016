"""What reads files that others may have written or damaged, as functions of bytes: for `fuzz.py` and `test_fuzz.py`.

A target may raise `SpkidError` and nothing else; it must not unpickle, nor allocate beyond a small multiple of its input.
"""

import dataclasses
import io
import json
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import xxhash

from shards import FmatrixSource, Layout, ShardDataset, convert, make_plan
from shards.conversion.claiming import claim_folder
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_shard
from shards.conversion.merging import JOB_NAME, load_job
from shards.conversion.record import ShardRecord, record_name
from shards.corpus import Utterance
from shards.errors import InputError, SpkidError
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, UTTERANCES_NAME, shard_name
from shards.manifest import Manifest, TableInfo
from shards.sources.fmatrix import parse_fmatrix, write_fmatrix
from shards.sources.npy import ZIP_MAGIC, parse_npy, parse_npz
from shards.verification.index import index_shard
from shards.verification.verify import verify_dataset

ALLOWED_BYTES = 4 << 20  # whatever the size of the input: buffers, and small things of Python itself
ALLOWED_RATIO = 16
DEFLATE_RATIO = 1032  # the most that the format of .npz expands to


@dataclass(frozen=True)
class Target:
    """Reads bytes; `seeds` are sound ones, and `ratio` is how many times its size an input may allocate."""

    run: Callable[[bytes], None]
    seeds: list[bytes]
    ratio: int = ALLOWED_RATIO


def check(target: Target, data: bytes) -> None:
    """Run a target on bytes; what it must not do is an AssertionError, or whatever it raised."""
    with _no_pickle(), _no_large_allocation(ALLOWED_BYTES + target.ratio * len(data)):
        try:
            target.run(data)
        except SpkidError as error:
            assert "\n" not in str(error), error


@contextmanager
def _no_pickle() -> Iterator[None]:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a pickle was loaded")

    with mock.patch.multiple(pickle, load=refuse, loads=refuse, Unpickler=refuse):
        yield


@contextmanager
def _no_large_allocation(limit: int) -> Iterator[None]:
    if not tracemalloc.is_tracing():
        tracemalloc.start(1)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    yield
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before <= limit, f"{peak - before} bytes were allocated; expected at most {limit}"


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name; `folder` is for the files that they read."""
    for number, length in enumerate((3, 5, 2)):
        write_fmatrix(folder / f"utt{number}.mcp", np.full((length, 2), number + 0.5, np.float32))
    source = FmatrixSource(folder)
    plan = make_plan([Utterance(f"utt{n}", f"spk{n % 2}") for n in range(3)], ["spk0", "spk1"], source, Layout())
    job = LocalFolder(folder / "job")
    claim_folder(plan.job, job)
    convert_shard(plan.task(0), source, job)
    convert(plan, source, folder / "dataset")
    dataset = ShardDataset(folder / "dataset")
    return {
        "fmatrix": Target(lambda data: _use(parse_fmatrix(data, "x")), [(folder / "utt0.mcp").read_bytes()]),
        "npy": Target(_read_npy, _npy_seeds(), DEFLATE_RATIO),
        "record": Target(_Record(plan.job.identity), [job.read(record_name(0))]),
        "job": Target(_Job(LocalFolder(folder / "jobs")), [job.read(JOB_NAME)]),
        "manifest": Target(_read_manifest, [(dataset.folder / MANIFEST_NAME).read_bytes()]),
        "shard": Target(_Shard(dataset.folder), [(dataset.folder / shard_name(0)).read_bytes()]),
        "blocks": Target(_Table(dataset.folder, BLOCKS_NAME), [(dataset.folder / BLOCKS_NAME).read_bytes()]),
        "utterances": Target(
            _Table(dataset.folder, UTTERANCES_NAME), [(dataset.folder / UTTERANCES_NAME).read_bytes()]
        ),
    }


def _use(frames: np.ndarray) -> None:
    """Touch every value."""
    assert frames.dtype == np.float32
    assert frames.ndim == 2
    frames.tobytes()


def _npy_seeds() -> list[bytes]:
    frames = np.arange(6, dtype=np.float64).reshape(3, 2)
    buffers = [io.BytesIO() for _ in range(3)]
    np.save(buffers[0], np.asfortranarray(frames))
    np.savez(buffers[1], frames=frames)
    np.savez_compressed(buffers[2], frames.astype(np.float16))
    return [buffer.getvalue() for buffer in buffers]


def _read_npy(data: bytes) -> None:
    with np.errstate(all="ignore"):  # the sum of what is no number
        _use(parse_npz(data, "x") if data.startswith(ZIP_MAGIC) else parse_npy(data, "x"))


@dataclass(frozen=True)
class _Record:
    """The record of a task."""

    job: str

    def __call__(self, data: bytes) -> None:
        ShardRecord.parse(data, record_name(0), self.job).to_bytes()


@dataclass(frozen=True)
class _Job:
    """An unfinished job's description."""

    folder: LocalFolder

    def __call__(self, data: bytes) -> None:
        self.folder.path.mkdir(exist_ok=True)
        (self.folder.path / JOB_NAME).write_bytes(data)
        job = load_job(self.folder)
        assert job is not None
        assert json.dumps(job.to_json())
        assert len(range(job.num_shards)) <= job.num_utterances


def _read_manifest(data: bytes) -> None:
    """The manifest as it is; then, so that what lies behind it is reached, with a fingerprint that fits."""
    try:
        _use_manifest(Manifest.parse(data, "x/manifest.json"))
    except InputError as error:
        found = re.search(r"its contents make '([0-9a-f]{32})'", str(error))
        if found is None:
            raise
        value = json.loads(data) | {"fingerprint": found[1]}
        _use_manifest(Manifest.parse(json.dumps(value), "x/manifest.json"))


def _use_manifest(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.to_bytes(), "x/manifest.json") == manifest


@dataclass(frozen=True)
class _Shard:
    """A tar: indexed, and compared with manifest and tables."""

    folder: Path

    def __call__(self, data: bytes) -> None:
        sound = (self.folder / shard_name(0)).read_bytes()
        (self.folder / shard_name(0)).write_bytes(data)
        try:
            verify_dataset(self.folder)
            index_shard(self.folder, 0)
        finally:
            (self.folder / shard_name(0)).write_bytes(sound)


@dataclass(frozen=True)
class _Table:
    """A table, with a manifest that has its digest: what was made wrong, not what was damaged."""

    folder: Path
    name: str

    def __call__(self, data: bytes) -> None:
        sound = {name: (self.folder / name).read_bytes() for name in (self.name, MANIFEST_NAME)}
        manifest = Manifest.parse(sound[MANIFEST_NAME], MANIFEST_NAME)
        info = TableInfo(bytes=len(data), digest=xxhash.xxh3_128_hexdigest(data))
        changed = dataclasses.replace(manifest, tables=manifest.tables | {self.name: info})
        (self.folder / self.name).write_bytes(data)
        (self.folder / MANIFEST_NAME).write_bytes(changed.to_bytes())
        try:
            verify_dataset(self.folder)
            dataset = ShardDataset(self.folder)
            for block in range(len(dataset.blocks)):
                dataset.read_block(block)
        finally:
            for name, contents in sound.items():
                (self.folder / name).write_bytes(contents)
