"""The commands `spkid shard` and `spkid merge`: make a dataset of a list of feature files or audio files."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from shards.conversion.appending import extend_map, extended_speakers
from shards.conversion.check import find_bad
from shards.conversion.claiming import claim_folder
from shards.conversion.folder import Folder, open_folder
from shards.conversion.job import ConvertedShard, convert_tasks
from shards.conversion.merging import merge as merge_job
from shards.conversion.merging import missing_shards
from shards.conversion.plan import Plan, make_plan
from shards.conversion.tasks import TaskShare, parse_share
from shards.conversion.workers import process_pool
from shards.corpus import Utterance, find_speakers, write_speakers
from shards.dataset import ShardDataset
from shards.errors import InputError, SpkidError
from shards.layout import Layout
from shards.listing import ListFile, Listing, MemoryListing
from shards.manifest import Manifest
from shards.plaintext import shown_place
from shards.sources import Source, settled_source
from shards.sources.kaldi import UTT2SPK_NAME, KaldiSource, read_kaldi_folder
from shards.sources.kaldidir import say_unused
from shards.sources.kaldiscp import SCP_NAME
from shards.sources.kaldisteps import KaldiSteps
from shards.sources.limits import UtteranceLimit
from shards.sources.registry import source_from_description
from shards.speakers import (
    SPEAKER_FLAGS,
    SpeakerRule,
    kept_rule,
    kept_table,
    speaker_by_component,
    speaker_by_utt2spk,
    spelled_as,
)
from spkid_dist.commands.slurm import run_array
from spkid_dist.config import MergeConfig, ShardConfig
from spkid_dist.ranks.console import RunLog, shard_progress
from spkid_dist.streaming.speakerlines import say_list_speakers, shown

DEFAULT_LIST = Path("cfg/all.train")

# A speaker who is added to the map of a model becomes one of its outputs, and is no unknown speaker any more.
OTHER_SPEAKERS = (
    "add it there, or remove the utterance from the list; if the speaker is to be unknown to a model, leave its map as it is "
    "and give --spk2idx a new file for this list"
)


def shard(config: ShardConfig) -> Manifest | None:
    """Shard the utterances of a list into `config.out`, and print a JSON summary of the work (`RunLog.summary`).

    Returns the manifest; None where this was one of several tasks, which `spkid merge` joins.

    Raises:
        InputError: bad input, an output folder that can't be used, or a task of the Slurm array failed; the folder is no
            dataset then.
        UsageError: an option out of range.
    """
    log = RunLog(shown=True)
    share = TaskShare(0, 1) if config.task is None else parse_share(config.task)
    began = time.perf_counter()
    plan, source, num_skipped = _plan(config, log)
    out = open_folder(config.out)
    manifest = claim_folder(plan.job, out, log.line)
    summary = None
    if manifest is not None:
        log.line(f"{config.out}: finished already; nothing was read or written")
    else:
        if config.slurm_array is None:
            done = _convert_share(plan, source, out, share, config, log)
        else:
            done = _convert_by_array(plan, out, config, config.slurm_array, log)
        seconds = time.perf_counter() - began
        summary = {"skipped": num_skipped} | _summary(done, plan.job.layout, seconds)
    if share.count > 1:
        log.line(f"task {share.index} of {share.count} is done; when all are: spkid merge {config.out}")
    else:
        manifest = manifest or merge_job(out, log.line)
        _say_done(log, config.out, manifest)
    if config.append and manifest is not None:
        _extend_map(config.spk2idx, manifest.speakers, log)
    if summary is not None:
        log.summary(summary, config.json)
    return manifest


def _plan(config: ShardConfig, log: RunLog) -> tuple[Plan, Source, int]:
    """The job, where its frames come from, and how many bad utterances it leaves out."""
    layout = Layout(
        dtype=config.dtype, seed=config.seed, block_frames=config.block_frames, shard_bytes=config.shard_bytes
    )
    source = open_source(config)
    onto = ShardDataset(config.out) if config.append else None
    rule = find_rule(config, onto)
    list_path, listing = open_listing(config, rule, layout.seed, () if onto is None else onto.manifest.speakers)
    source = settled_source(source, listing.first)
    if onto is None:
        speakers = find_speakers(list_path, listing.examples, config.spk2idx, OTHER_SPEAKERS)
    else:
        speakers = extended_speakers(onto, listing.examples, config.spk2idx)
    num_listed = listing.total.count
    for line in say_unused(config.db_path, source.steps.used) if isinstance(source, KaldiSource) else ():
        log.line(line)
    for line in say_list_speakers(str(list_path), [one.speaker for one in listing.examples], num_listed, speakers):
        log.line(line)
    if config.skip_bad:
        good = _without_bad(listing.select(range(num_listed)), source, config.workers, log)
        listing = MemoryListing(good, layout.seed)
    plan = make_plan(listing, speakers, source, layout, onto, rule)
    if onto is None and write_speakers(config.spk2idx, speakers):
        log.line(f"{config.spk2idx}: made from the speakers of {list_path}")
    return plan, source, num_listed - plan.job.num_utterances


def _convert_share(
    plan: Plan, source: Source, out: Folder, share: TaskShare, config: ShardConfig, log: RunLog
) -> list[ConvertedShard]:
    mine = share.shards(plan.job.num_shards)
    shards = plan.job.shards[mine.start : mine.stop]
    with log.bar(sum(len(plan.share(number)) for number in shards), "utterances") as bar:
        return convert_tasks(plan, source, out, shards, shard_progress(bar), workers=config.workers)


def _convert_by_array(plan: Plan, out: Folder, config: ShardConfig, count: int, log: RunLog) -> list[ConvertedShard]:
    """Have the shares that are not done yet done by the tasks of an array."""
    names = out.sizes()
    tasks = {}
    for share in (TaskShare(index, count) for index in range(count)):
        mine = share.shards(plan.job.num_shards)
        if missing_shards(plan.job.shards[mine.start : mine.stop], names):
            tasks[f"task {share.index} of {share.count}"] = partial(array_task, config, share)
    if not tasks:
        return []
    return [shard for done in run_array(tasks, config.slurm, config.workers, log) for shard in done]


def array_task(config: ShardConfig, share: TaskShare) -> list[ConvertedShard] | SpkidError:
    """What a task of an array does: its share, or the user's mistake that it met."""
    log = RunLog(shown=True)
    try:
        plan, source, _ = _plan(config, log)
        out = open_folder(config.out)
        if claim_folder(plan.job, out, log.line) is not None:
            return []
        return _convert_share(plan, source, out, share, config, log)
    except SpkidError as error:
        return error


def _without_bad(utterances: list[Utterance], source: Source, workers: int, log: RunLog) -> list[Utterance]:
    """The good utterances; the others are listed in the log."""
    workers_or_none = process_pool(workers) if workers > 1 else nullcontext()
    with log.bar(len(utterances), "utterances checked") as bar, workers_or_none as pool:
        bad = find_bad(utterances, source, pool, shard_progress(bar))
    for item in bad:
        log.line(f"skipped {item.utterance.key}: {item.reason}")
    left_out = {item.utterance.key for item in bad}
    return [utterance for utterance in utterances if utterance.key not in left_out]


def merge(config: MergeConfig) -> Manifest:
    """Join what the tasks of a job left into a dataset; one that is joined already stays as it is.

    Raises:
        InputError: a task is not done, or the folder holds no job.
    """
    log = RunLog(shown=True)
    manifest = merge_job(open_folder(config.folder), log.line)
    _say_done(log, config.folder, manifest)
    return manifest


def _extend_map(path: Path, speakers: list[str], log: RunLog) -> None:
    """Have the map number the speakers that an append has brought: it may have been made by the dataset's first job."""
    new = extend_map(path, speakers)
    if new:
        log.line(f"{path}: {len(new):,} new speakers, classes {len(speakers) - len(new)} and up: {shown(new)}")


def _say_done(log: RunLog, out: str, manifest: Manifest) -> None:
    log.line(
        f"{shown_place(out)}: {len(manifest.shards)} shards, {manifest.num_blocks} blocks; look: spkid info {shown_place(out)}"
    )


def _summary(done: list[ConvertedShard], layout: Layout, seconds: float) -> dict[str, Any]:
    """What this run did, for scripts."""
    num_bytes = sum(shard.info.bytes for shard in done)
    frames = sum(shard.info.frames for shard in done)
    summary = {
        "utterances": sum(shard.info.utterances for shard in done),
        "frames": frames,
        "bytes": num_bytes,
        "seconds": round(seconds, 3),
        "frames_per_second": round(frames / seconds),
    }
    if layout.dtype == "float16":
        summary["largest_relative_error"] = max((shard.rounding_error for shard in done), default=0.0)
    return summary


def open_source(config: ShardConfig) -> Source:
    """The source that the flags describe. Raises InputError and UsageError as `source_from_description`."""
    description: dict[str, Any] = {"kind": config.source}
    if config.source == "kaldi":
        description["features"] = KaldiSteps(config.kaldi_cmvn, config.kaldi_vad).describe()
    elif config.source == "audio":
        description["features"] = config.features.describe()
    if config.ffmpeg:
        description["ffmpeg"] = True
    if config.ext is not None:
        description["ext"] = config.ext
    if config.num_features is not None:
        description["num_features"] = config.num_features
    return source_from_description(description, config.db_path, UtteranceLimit(config.max_frames), named=config.source)


def find_rule(config: ShardConfig, onto: ShardDataset | None) -> SpeakerRule | None:
    """The speaker rule that a flag asks for, or that of the dataset that is appended to; None for the source's usual one.

    Raises:
        InputError: a table is missing or damaged; or no flag is given, and the dataset's speakers were not named by a
            rule that names others too.
        UsageError: the flag's value can't be.
    """
    rule = config.speaker_rule()
    if rule is not None or onto is None:
        return rule
    table = kept_table(onto.manifest.source)
    if table is not None:
        raise InputError(f"{onto.folder}: its speakers were named by {table}; say who speaks here: {SPEAKER_FLAGS}")
    return kept_rule(onto.manifest.source)


def open_listing(
    config: ShardConfig, rule: SpeakerRule | None, seed: int, speakers: Sequence[str] = ()
) -> tuple[Path, Listing]:
    """The utterances to shard, and where they are listed; a Kaldi folder lists its own, with their speakers.

    Without a `rule`, utt2spk names the speakers of a Kaldi folder, and the second component those of other lists. Those of
    `speakers` are spelled as there.

    A list is not read into memory.

    Raises:
        InputError: the list or utt2spk is missing or damaged, or an utterance has no speaker.
    """
    if config.source == "kaldi":
        if speakers or config.list_file is not None:
            rule = rule or speaker_by_utt2spk(config.db_path / UTT2SPK_NAME)
            rule = spelled_as(speakers, rule)
        if config.list_file is None:
            return config.db_path / SCP_NAME, MemoryListing(read_kaldi_folder(config.db_path, rule), seed)
    list_path = config.list_file or DEFAULT_LIST
    rule = spelled_as(speakers, rule or speaker_by_component())
    return list_path, ListFile(list_path, rule, seed, are_paths=config.source != "kaldi")
