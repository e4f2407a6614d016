"""The command `spkid shard`: a list of feature files in, a dataset out."""

import json
import time

from shards.convert import convert
from shards.corpus import find_speakers, read_list
from shards.layout import Manifest
from shards.plan import Layout, make_plan
from shards.sources.fmatrix import FmatrixSource
from spkid_dist.config import ShardConfig
from spkid_dist.console import RunLog, shard_progress


def shard(config: ShardConfig) -> Manifest:
    """Shard the utterances of a list into `config.out`; the last line printed is a JSON summary.

    Raises:
        InputError: bad input, or an output folder that can't be used; the folder is no dataset then.
        UsageError: an option out of range.
    """
    log = RunLog(shown=True)
    layout = Layout(seed=config.seed, block_frames=config.block_frames, shard_bytes=config.shard_bytes)
    utterances = read_list(config.list_file, config.speaker_component)
    if not config.spk2idx.exists():
        log.line(f"{config.spk2idx}: made from the speakers of {config.list_file}")
    speakers = find_speakers(config.list_file, utterances, config.spk2idx, write=True)
    source = FmatrixSource(config.db_path, config.ext)
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
