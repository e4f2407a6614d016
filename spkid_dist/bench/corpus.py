"""Prepare the corpus to measure on: your own feature files, your own dataset, or a synthetic one."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from shards import (
    FmatrixSource,
    Layout,
    ShardDataset,
    StoreOptions,
    Utterance,
    convert,
    find_speakers,
    make_plan,
    read_list,
)
from shards.files import staging_folder, unreadable_feature_file
from shards.plaintext import shown_place
from shards.sources.limits import UtteranceLimit
from spkid_dist.config.bench import BenchConfig
from spkid_dist.measure.synthetic import SyntheticCorpus

DEFAULT_LIST = Path("cfg/all.train")
SAMPLED_FILES = 50


@dataclass(frozen=True, kw_only=True)
class Files:
    """Feature files: some utterances of a list, the folder they lie in, and the speakers in class order."""

    source: FmatrixSource
    listed: list[Utterance]
    speakers: list[str]

    def paths(self) -> list[Path]:
        """The files, in the order of the list."""
        return [Path(self.source.where(utterance)) for utterance in self.listed]

    def num_bytes(self) -> int:
        """Bytes of all files. Raises InputError where one is missing."""
        total = 0
        for path in self.paths():
            try:
                total += path.stat().st_size
            except OSError as error:
                raise unreadable_feature_file(str(path), error) from None
        return total

    def windows_per_byte(self, in_frames: int) -> float:
        """Windows that fit into the utterances' frames, a byte of the files; of a sample of them."""
        sample = self.listed[:: max(1, len(self.listed) // SAMPLED_FILES)]
        lengths = np.array([len(self.source.load(utterance)) for utterance in sample])
        num_bytes = replace(self, listed=sample).num_bytes()
        return float(np.maximum(lengths - in_frames + 1, 0).sum() / num_bytes)

    def share(self, rank: int, world_size: int) -> "Files":
        """Every W-th utterance; one of them where there are fewer than ranks."""
        return replace(self, listed=self.listed[rank::world_size] or self.listed[:1])

    def shard(
        self, out: Path, *, executor: Executor | None = None, workers: int = 1, shard_bytes: int = Layout().shard_bytes
    ) -> None:
        """Shard the files into `out`, by this process, or by `workers` of an executor's."""
        plan = make_plan(self.listed, self.speakers, self.source, Layout(shard_bytes=shard_bytes))
        convert(plan, self.source, out, executor=executor, workers=workers)


@dataclass(frozen=True, kw_only=True)
class BenchCorpus:
    """What is measured on: `shards` is a dataset's folder or URL (None where only sharding is measured), `work` a folder for
    what is written meanwhile, `facts` says what corpus it is.
    """

    shards: str | None
    files: Files | None
    work: Path
    facts: dict[str, Any]


@contextmanager
def open_corpus(config: BenchConfig) -> Iterator[BenchCorpus]:
    """The corpus that `config` asks for, made and sharded where need be in a temporary folder, which is removed at the end.

    Raises:
        InputError: list, files or speaker map missing or damaged, or the folder can't be written.
        UsageError: a speaker flag that can't be.
    """
    with staging_folder((config.folder or Path(gettempdir())) / "spkid-bench", mode=0o700) as staging:
        work = staging.resolve()
        files, facts = _open_files(config, work)
        shards = config.shards
        if shards is not None and config.fingerprint is not None:
            ShardDataset(shards, StoreOptions(fingerprint=config.fingerprint))
        if shards is None and config.what != "shard" and files is not None:
            files.shard(work / "shards", shard_bytes=_shard_bytes(files))
            shards = str(work / "shards")
        yield BenchCorpus(shards=shards, files=files, work=work, facts=facts)


def _open_files(config: BenchConfig, work: Path) -> tuple[Files | None, dict[str, Any]]:
    """The feature files, and what to call the corpus."""
    if config.db_path is not None:
        files = own_files(config, config.db_path)
        return files, {"db_path": str(config.db_path), "shards": _shown(config.shards), "utterances": len(files.listed)}
    if config.shards is not None:
        return None, {"shards": _shown(config.shards)}
    synthetic = SyntheticCorpus(
        num_speakers=config.speakers,
        train_utterances=max(1, round(config.frames / config.speakers / config.mean_frames)),
        test_utterances=0,
        mean_frames=config.mean_frames,
        num_features=config.num_features,
    )
    facts = {
        "synthetic_frames": config.frames,
        "speakers": config.speakers,
        "mean_frames": config.mean_frames,
        "num_features": config.num_features,
    }
    return synthetic_files(synthetic, work), facts


def own_files(config: BenchConfig, db_path: Path) -> Files:
    """The files of the list, evenly spread ones where they are more than `config.frames` frames, by a sample's lengths."""
    list_path = config.list_file or DEFAULT_LIST
    source = FmatrixSource(db_path, config.ext, UtteranceLimit(config.max_frames))
    listed = read_list(list_path, rule=config.speaker_rule())
    speakers = find_speakers(list_path, listed, config.spk2idx)
    sample = listed[:: max(1, len(listed) // SAMPLED_FILES)]
    mean_frames = sum(len(source.load(utterance)) for utterance in sample) / len(sample)
    every = max(1, int(len(listed) * mean_frames / config.frames))
    return Files(source=source, listed=listed[::every], speakers=speakers)


def synthetic_files(corpus: SyntheticCorpus, folder: Path) -> Files:
    """Write a synthetic corpus into `folder`; the files of its training list."""
    corpus.write(folder)
    listed = read_list(folder / "cfg/all.train")
    return Files(source=FmatrixSource(folder / "mcp", "mcp"), listed=listed, speakers=corpus.speakers())


def _shard_bytes(files: Files) -> int:
    return max(1, min(Layout().shard_bytes, files.num_bytes()))


def _shown(place: str | None) -> str | None:
    return None if place is None else shown_place(place)
