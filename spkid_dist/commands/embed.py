"""The command `spkid embed`: write an embedding of each utterance, by one process or many.

Each process keeps the rows of its share in a file without a name. They are joined piece by piece at the end, and rank 0 writes:
no process has more than a piece in memory.
"""

import contextlib
import time
from pathlib import Path

from shards.errors import InputError
from spkid_dist.config import EmbedConfig
from spkid_dist.scoring.embedding import Embedder
from spkid_dist.scoring.embeddingfile import check_format, check_keys, companion, write_embeddings
from spkid_dist.scoring.finite import check_embeddings
from spkid_dist.scoring.opening import names_nobody, open_listed
from spkid_dist.scoring.resultfiles import results_held
from spkid_dist.scoring.rowfile import RowFile, rows_beside, rows_of_all
from spkid_dist.scoring.run import ScoringRun, scoring_run
from spkid_dist.scoring.utterances import Utterances

REMEDY = "or give --out a file in another folder"  # on a full disk


def embed_utterances(config: EmbedConfig) -> Path:
    """Write the embeddings of the utterances; returns the file's path, for `read_embeddings`.

    Called by every process of a launch; rank 0 writes.

    Raises:
        InputError: list, features, weights or train.opts missing, damaged or not fitting together; or --out can't be written.
        UsageError: an option that can't be on this machine.
    """
    check_format(config.out)
    with (
        scoring_run(config, "embed") as run,
        results_held(config.out, "out", run.log.line) if run.processes.is_main else contextlib.nullcontext(),
    ):
        _embed(config, run)
    return config.out


def _embed(config: EmbedConfig, run: ScoringRun) -> None:
    processes, log = run.processes, run.log
    utterances = open_listed(config, config.te_list_file, run.model, lambda: names_nobody)
    embedder = Embedder(run.model, processes.device, batch_size=config.batch_size, precision=config.mixed_precision)
    log.line(f"{utterances.count} utterances, {processes.world_size} process(es) on {processes.device.type}")
    began = time.perf_counter()
    with contextlib.closing(rows_beside(config.out, embedder.size, processes, REMEDY)) as rows:
        keys = _fill(rows, embedder, utterances, config, run)
        parts = rows_of_all(rows, utterances.count, embedder.size, processes)
        if processes.is_main:
            write_embeddings(config.out, keys, parts, embedder.size)
        for _ in parts:  # each process has rows of each piece
            pass
    beside = companion(config.out)
    also = "" if beside is None else f"; beside it {beside.name}"
    rate = utterances.count / (time.perf_counter() - began)
    log.line(
        f"{utterances.count} utterances embedded as {embedder.size // 2} means and as many deviations, {rate:,.0f} "
        f"utterances/s: {config.out}{also}"
    )


def _fill(rows: RowFile, embedder: Embedder, utterances: Utterances, config: EmbedConfig, run: ScoringRun) -> list[str]:
    """Put the embeddings of this process's share into `rows`; the keys of all utterances, in the order of the results."""
    rank, world_size = run.processes.rank, run.processes.world_size
    keys: list[tuple[int, str]] = []
    with run.log.bar(utterances.share_size(rank, world_size), "utterances") as bar:
        for embedded in embedder.embed(utterances.groups(rank, world_size, config.workers)):
            group = embedded.group
            check_keys(config.out, group.keys)
            check_embeddings(group, embedded.vectors)
            rows.add(group.positions, embedded.vectors)
            keys += zip(group.positions.tolist(), group.keys, strict=True)
            bar.advance(len(group.keys))
    found = sorted(run.processes.gather(keys))
    if len(found) != utterances.count:
        raise InputError(
            f"{len(found)} of {utterances.count} utterances were found in the dataset's blocks, but its table has all; "
            "build the table again: spkid index"
        )
    return [key for _, key in found]
