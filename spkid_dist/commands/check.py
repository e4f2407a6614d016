"""The commands `spkid verify` (compare every byte of a dataset with what was written) and `spkid index` (rebuild its index)."""

import time
from collections.abc import Sequence

from shards.errors import InputError
from shards.manifest import Manifest
from shards.stores.store import StoreOptions
from shards.verification.index import rebuild_index
from shards.verification.shardcheck import Defect
from shards.verification.verify import Report, verify_dataset
from spkid_dist.config import IndexConfig, VerifyConfig
from spkid_dist.ranks.console import RunLog

BESIDE_SHARDS = 3  # manifest and two tables


def verify(config: VerifyConfig) -> Report:
    """Verify the dataset in `config.folder`: a line for each defect, then a JSON summary (`RunLog.summary`).

    An unfinished append is no defect: a line says what of it there is.

    Raises:
        InputError: there is no such folder, it is another dataset than --fingerprint says, or there are defects.
    """
    log = RunLog(shown=True)
    began = time.perf_counter()
    if config.fingerprint is not None:
        found = Manifest.load(config.folder).fingerprint
        StoreOptions(fingerprint=config.fingerprint).check_fingerprint(found, str(config.folder))
    with log.bar(BESIDE_SHARDS + len(list(config.folder.glob("*.tar"))), "files") as bar:

        def done(defects: Sequence[Defect]) -> None:
            bar.advance(1)
            for defect in defects:
                log.line(f"{config.folder}/{defect}")

        report = verify_dataset(config.folder, workers=config.workers, quick=config.quick, done=done)
    seconds = time.perf_counter() - began
    shards = [] if report.manifest is None else report.manifest.shards
    num_bytes = sum(info.bytes for info in shards)
    summary = {
        "defects": len(report.defects),
        "remarks": len(report.remarks),
        "quick": config.quick,
        "shards": len(shards),
        "blocks": sum(info.blocks for info in shards),
        "bytes": num_bytes,
        "seconds": round(seconds, 3),
    }
    if not config.quick:
        summary["gigabytes_per_second"] = round(num_bytes / seconds / 1e9, 3)
    if not report.defects:
        what = "sizes and headers" if config.quick else "every byte"
        log.line(f"{config.folder}: no damage found; {what} of {len(shards)} shards compared in {seconds:.1f} s")
    for remark in report.remarks:
        log.line(remark)
    log.summary(summary, config.json)
    if report.defects:
        raise InputError(f"{config.folder}: damaged (defects: {len(report.defects)}, named above); do not train on it")
    return report


def index(config: IndexConfig) -> Manifest:
    """Rebuild the index of the shards in `config.folder`, and print a JSON summary (`RunLog.summary`).

    Raises:
        InputError: a shard is damaged, missing or of another dataset; nothing was written then.
    """
    log = RunLog(shown=True)
    began = time.perf_counter()
    with log.bar(len(list(config.folder.glob("*.tar"))), "shards") as bar:
        manifest = rebuild_index(config.folder, workers=config.workers, done=bar.advance, say=log.line)
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
    log.summary(summary, config.json)
    return manifest
