"""The command `spkid index`: manifest and tables again, from the shards alone."""

import json
import time

from shards.manifest import Manifest
from shards.verification.index import rebuild_index
from spkid_dist.config import IndexConfig
from spkid_dist.console import RunLog


def index(config: IndexConfig) -> Manifest:
    """Rebuild the index of the shards in `config.folder`; the last line printed is a JSON summary.

    Raises:
        InputError: a shard is damaged, missing or of another dataset; nothing was written then.
    """
    log = RunLog(shown=True)
    began = time.perf_counter()
    with log.bar(len(list(config.folder.glob("*.tar"))), "shards") as bar:
        manifest = rebuild_index(config.folder, workers=config.workers, done=bar.advance)
    seconds = time.perf_counter() - began
    log.line(
        f"{config.folder}: {len(manifest.shards)} shards, {manifest.num_blocks} blocks; manifest and tables written"
    )
    summary = {
        "utterances": manifest.num_utterances,
        "frames": manifest.num_frames,
        "bytes": sum(info.bytes for info in manifest.shards),
        "fingerprint": manifest.fingerprint,
        "seconds": round(seconds, 3),
    }
    log.line(json.dumps(summary))
    return manifest
