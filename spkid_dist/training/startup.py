"""Prepare a training up to the first batch: its folder, its data, and that all ranks mean the same training."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.corpus import Utterance, check_speakers, find_speakers, read_list, write_speakers
from shards.errors import InputError, UsageError
from shards.guesses import describe_difference
from shards.names import are_alike
from shards.sources.fmatrix import FmatrixSource
from shards.sources.limits import UtteranceLimit
from shards.speakers import speaker_by_component
from shards.stores.store import StoreOptions
from spkid_dist.config import TrainConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.model import describe_model
from spkid_dist.ranks.console import RunLog, shard_progress
from spkid_dist.ranks.settings import settings_without_effect
from spkid_dist.ranks.shardcache import CacheUse
from spkid_dist.ranks.sharded_once import ListedCorpus, cached_shards
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.speakerlines import say_training_speakers
from spkid_dist.trained import options_of
from spkid_dist.training.folder import TrainingFolder
from spkid_dist.training.job import Job, TrainingData
from spkid_dist.training.step import stream_dtype

EVALUATION_BATCH = 8192  # windows a step of all ranks together; no result depends on it


@contextlib.contextmanager
def open_save_path(job: Job) -> Iterator[TrainingFolder]:
    """Take `save_path` for this training, and open the log in it, while the block runs. Called by all ranks.

    Raises:
        InputError, UsageError: as `TrainingFolder.open`.
    """
    folder = TrainingFolder(job.config, job.log)
    try:
        by_main(job.accelerator, folder.open)
        yield folder
    finally:
        folder.close()


def open_data(job: Job) -> TrainingData:
    """The training and the validation stream of this rank; feature files are sharded first.

    Raises:
        InputError: data missing or damaged, or the two do not fit together.
    """
    config, accelerator = job.config, job.accelerator
    cached: tuple[CacheUse, ...] = ()
    if config.tr_shards is not None and config.va_shards is not None:
        folders = config.tr_shards, config.va_shards
    else:
        cached = _shard_features(config, accelerator, job.log)
        folders = str(cached[0].folder), str(cached[1].folder)
    placed = steps_are_placed(config, accelerator)
    options: dict[str, Any] = {
        "in_frames": config.in_frames,
        "edge": config.edge,
        "num_streams": config.num_streams,
        "shuffle_windows": config.shuffle_windows,
        "seed": config.seed,
        "normalize": "utterance" if config.normalize == "utterance" else "none",
        "dtype": stream_dtype(config.mixed_precision, config.normalize),
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "device": accelerator.device if placed or accelerator.device.type != "cpu" else None,
        "placed": placed,
        "device_memory": config.device_memory,
        "reuse": True,
    }
    tr_store, va_store = _store_options(config)
    tr_data = WindowDataset(
        folders[0],
        store=tr_store,
        batch_size=config.batch_size,
        selection=_selection(config),
        on_bad_block=config.on_bad_block,
        **options,
    )
    va_data = WindowDataset(
        folders[1], batch_size=EVALUATION_BATCH, shuffle=False, with_ids=True, store=va_store, **options
    )
    tr_manifest, va_manifest = tr_data.data.manifest, va_data.data.manifest
    for what, flag, ours, theirs in (
        ("features per frame", "features", tr_manifest.num_features, va_manifest.num_features),
        ("speakers", "--spk2idx", tr_manifest.speakers, va_manifest.speakers),
        ("audio features", "--features.*", tr_manifest.source.get("features"), va_manifest.source.get("features")),
    ):
        if ours != theirs and not (what == "speakers" and are_alike(tr_manifest.speakers, va_manifest.speakers)):
            here, there = describe_difference(theirs, ours)
            raise InputError(
                f"{folders[1]}: its {what} are {here}, those of the training set {folders[0]} are {there}; shard both with the "
                f"same {flag}"
            )
    return TrainingData(training=tr_data, validation=va_data, cached=cached)


def steps_are_placed(config: TrainConfig, accelerator: Accelerator) -> bool:
    """Whether the windows lie on the device for many steps together; the fused engine takes them from nowhere else."""
    return accelerator.device.type == "cuda" or config.engine == "fused"


def _store_options(config: TrainConfig) -> tuple[StoreOptions, StoreOptions]:
    """How the training set and the validation set are read, and which they must be."""
    both = StoreOptions(cache_dir=config.shard_cache, cache_bytes=config.shard_cache_bytes)
    training, validation, *_ = [*(config.fingerprint or ()), None, None]
    return replace(both, fingerprint=training), replace(both, fingerprint=validation)


def _selection(config: TrainConfig) -> Selection:
    utterances = None
    if config.tr_utterances is not None:
        listed = read_list(config.tr_utterances, config.speaker_component, speakers_known=False, are_paths=False)
        utterances = [utterance.key for utterance in listed]
    return Selection(speakers=config.tr_speakers, utterances=utterances, balance=config.balance_speakers)


def _shard_features(config: TrainConfig, accelerator: Accelerator, log: RunLog) -> tuple[CacheUse, ...]:
    source = FmatrixSource(config.db_path, config.ext, UtteranceLimit(config.max_frames))
    paths = config.tr_list_file, config.va_list_file
    with _sharding_flags_explained():
        listed = [read_list(path, config.speaker_component) for path in paths]
        speakers = find_speakers(paths[0], listed[0], config.spk2idx)
        check_speakers(paths[1], listed[1], config.spk2idx, speakers)
        return _shard_lists(config, accelerator, log, source, listed, speakers)


@contextlib.contextmanager
def _sharding_flags_explained() -> Iterator[None]:
    """Say of flags that an error names, and that only `spkid shard` has, how to use them."""
    try:
        yield
    except InputError as error:
        if not any(flag in str(error) for flag in ("--speaker_regex", "--source")):
            raise
        raise InputError(
            f"{error}; these are flags of spkid shard: shard the files with it first, and train on --tr_shards, --va_shards"
        ) from None


def _shard_lists(
    config: TrainConfig,
    accelerator: Accelerator,
    log: RunLog,
    source: FmatrixSource,
    listed: list[list[Utterance]],
    speakers: list[str],
) -> tuple[CacheUse, ...]:
    paths = config.tr_list_file, config.va_list_file
    cached = []
    for path, utterances in zip(paths, listed, strict=True):
        with log.bar(len(utterances), "utterances") as bar:
            corpus = ListedCorpus(
                list_path=path,
                utterances=utterances,
                source=source,
                speakers=speakers,
                rule=speaker_by_component(config.speaker_component),
            )
            use = cached_shards(
                corpus,
                config.cache_dir,
                config.cache_bytes,
                makes_it=accelerator.is_local_main_process,
                say=log.line,
                progress=shard_progress(bar),
            )
        cached.append(use)
    if accelerator.is_main_process and write_speakers(config.spk2idx, speakers):
        log.line(f"{config.spk2idx}: made from the speakers of {paths[0]}")
    return tuple(cached)


def check_ranks_alike(config: TrainConfig, data: dict[str, str]) -> None:
    """Compare all ranks' options and data (what -> fingerprint); folders may differ from machine to machine.

    Raises:
        UsageError: a rank's are not those of rank 0.
    """
    everything = options_of(config)
    options: dict[str, Any] = {f"--{n}": v for n, v in everything.items() if not isinstance(getattr(config, n), Path)}
    places = {"training set": everything["tr_shards"], "validation set": everything["va_shards"]}
    found = {what: f"{places.get(what) or 'of its files'}, fingerprint {value}" for what, value in data.items()}
    everyone = gather_object([(options, data, found)])
    first_options, first_data, first_found = everyone[0]
    for rank, (theirs, their_data, their_found) in enumerate(everyone):
        names = [name for name, value in theirs.items() if value != first_options.get(name)]
        wrong = [f"{name} is {theirs[name]}, of rank 0 {first_options.get(name)}" for name in names]
        wrong += [
            f"its {what} is another ({their_found[what]}) than that of rank 0 ({first_found[what]})"
            for what in their_data
            if their_data[what] != first_data[what]
        ]
        if wrong:
            raise_everywhere(
                UsageError(f"rank {rank}: {wrong[0]}; start all processes with the same options and the same data")
            )


def log_start(job: Job, data: TrainingData, network: torch.nn.Sequential, engine: str) -> None:
    """Say what is trained on what, and on which device."""
    log, accelerator = job.log, job.accelerator
    for line in settings_without_effect(os.environ):
        log.line(line)
    for dataset, name in ((data.training, "training"), (data.validation, "validation")):
        counts = dataset.windows
        short = f", {counts.num_short} utterances are shorter than a window" if counts.num_short else ""
        num_utterances = dataset.data.manifest.num_utterances
        log.line(f"{name}: {num_utterances} utterances, {counts.total} windows{short}, {len(dataset)} batches")
    for line in say_training_speakers(data.training, data.validation) if accelerator.is_main_process else ():
        log.line(line)
    for name, formula, number in describe_model(network):
        log.line(f"{name:>10}: {formula} = {number} parameters")
    total = sum(parameter.numel() for parameter in network.parameters())
    log.line(f"{'total':>10}: {total} parameters")
    log.line(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, precision {accelerator.mixed_precision}, "
        f"{job.config.optimizer}, engine {engine}, {torch.get_num_threads()} threads per process"
    )
