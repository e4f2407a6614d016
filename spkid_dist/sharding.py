"""The command `spkid shard`: a list of feature files, or of audio, in; a dataset out."""

import json
import time
from pathlib import Path

from shards.convert import convert
from shards.corpus import Utterance, find_speakers, read_list
from shards.layout import Manifest
from shards.plan import Layout, make_plan
from shards.sources import Source
from shards.sources.kaldi import SCP_NAME, UTT2SPK_NAME, read_kaldi_folder
from shards.sources.registry import source_from_description
from shards.speakers import speaker_by_utt2spk
from spkid_dist.config import ShardConfig
from spkid_dist.console import RunLog, shard_progress

DEFAULT_LIST = Path("cfg/all.train")


def shard(config: ShardConfig) -> Manifest:
    """Shard the utterances of a list into `config.out`; the last line printed is a JSON summary.

    Raises:
        InputError: bad input, or an output folder that can't be used; the folder is no dataset then.
        UsageError: an option out of range.
    """
    log = RunLog(shown=True)
    layout = Layout(seed=config.seed, block_frames=config.block_frames, shard_bytes=config.shard_bytes)
    source = open_source(config)
    list_path, utterances = list_utterances(config)
    if not config.spk2idx.exists():
        log.line(f"{config.spk2idx}: made from the speakers of {list_path}")
    speakers = find_speakers(list_path, utterances, config.spk2idx, write=True)
    began = time.perf_counter()
    plan = make_plan(utterances, speakers, source, layout)
    with log.bar(len(utterances), "utterances") as bar:
        manifest = convert(plan, source, config.out, shard_progress(bar))
    seconds = time.perf_counter() - began
    log.line(
        f"{config.out}: {len(manifest.shards)} shards, {manifest.num_blocks} blocks; look: spkid info {config.out}"
    )
    summary = {
        "utterances": manifest.num_utterances,
        "frames": manifest.num_frames,
        "bytes": sum(info.bytes for info in manifest.shards),
        "seconds": round(seconds, 3),
        "frames_per_second": round(manifest.num_frames / seconds),
    }
    log.line(json.dumps(summary))
    return manifest


def open_source(config: ShardConfig) -> Source:
    """The source that the flags describe. Raises InputError and UsageError as `source_from_description`."""
    description = {"kind": config.source, "features": config.features.describe()}
    return source_from_description(
        description if config.ext is None else description | {"ext": config.ext}, config.db_path
    )


def list_utterances(config: ShardConfig) -> tuple[Path, list[Utterance]]:
    """The utterances to shard, and where they are listed; a Kaldi folder lists its own, with their speakers.

    Raises:
        InputError: the list or the speakers' table is missing or damaged, or an utterance has no speaker.
        UsageError: a speaker flag that can't be.
    """
    rule = config.speaker_rule()
    if config.source == "kaldi":
        if config.list_file is None:
            return config.db_path / SCP_NAME, read_kaldi_folder(config.db_path, rule)
        rule = rule or speaker_by_utt2spk(config.db_path / UTT2SPK_NAME)
    list_path = config.list_file or DEFAULT_LIST
    return list_path, read_list(list_path, rule=rule)
