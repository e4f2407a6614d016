"""The command `spkid bench`: stages measured one after the other, a table, the slowest of them, and JSON."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from shards.errors import InputError, SpkidError
from shards.files import make_folder, write_atomic, write_json
from spkid_dist.allocator import keep_freed_memory
from spkid_dist.bench.config import BenchConfig
from spkid_dist.bench.corpus import Corpus, open_corpus
from spkid_dist.bench.limits import measure_limits
from spkid_dist.bench.measure import machine
from spkid_dist.bench.plots import draw_report
from spkid_dist.bench.report import as_json, describe_machine, find_bottleneck, in_order, make_table
from spkid_dist.bench.resume import measure_resume
from spkid_dist.bench.rows import Findings
from spkid_dist.bench.scaling import measure_scaling
from spkid_dist.bench.score import measure_score
from spkid_dist.bench.shard import measure_shard
from spkid_dist.bench.stream import measure_stream
from spkid_dist.bench.train import measure_train
from spkid_dist.bench.workbench import Workbench, torch_threads
from spkid_dist.config import TrainConfig
from spkid_dist.console import RunLog
from spkid_dist.cpus import available_cpus
from spkid_dist.ranks import explain_lost_ranks, raise_everywhere
from spkid_dist.training.startup import make_accelerator

TIMEOUT_MINUTES = 600.0  # the other ranks wait while one shards the corpus
MEASURES: dict[str, Callable[[Workbench], Findings]] = {
    "limits": measure_limits,
    "shard": measure_shard,
    "stream": measure_stream,
    "train": measure_train,
    "score": measure_score,
    "resume": measure_resume,
    "scaling": measure_scaling,
}


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure what `config` asks for and print it; the same as JSON is the last line, and returned.

    Called by every process of a launch; rank 0 prints and writes.

    Raises:
        InputError: corpus or dataset missing or damaged, a process that was started failed, or --out can't be written.
        UsageError: what can't be measured on this corpus, or by several processes.
    """
    keep_freed_memory()  # as trainings do
    accelerator = make_accelerator(TrainConfig(mixed_precision=config.mixed_precision, timeout_minutes=TIMEOUT_MINUTES))
    log = RunLog(shown=accelerator.is_main_process)
    threads = config.threads or max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        with (
            explain_lost_ranks(accelerator, TIMEOUT_MINUTES),
            shared_corpus(config, accelerator) as corpus,
            torch_threads(threads),
        ):
            workbench = Workbench(config=config, corpus=corpus, accelerator=accelerator, threads=threads)
            found = _measure(workbench, log)
            accelerator.wait_for_everyone()  # before the corpus is removed
        return _report(workbench, found, log)
    finally:
        accelerator.end_training()
        accelerator.free_memory()
        AcceleratorState._reset_state()  # what this process does next may be of another precision


@contextmanager
def shared_corpus(config: BenchConfig, accelerator: Accelerator) -> Iterator[Corpus]:
    """The corpus, made by one rank of each machine for all of them. Raises on all ranks what `open_corpus` does on one."""
    with ExitStack() as stack:
        mine: Corpus | SpkidError | None = None
        if accelerator.is_local_main_process:
            try:
                mine = stack.enter_context(open_corpus(config))
            except SpkidError as error:
                mine = error
            except OSError as error:
                mine = InputError(str(error))
        everyone: list[tuple[str, Corpus | SpkidError | None]] = gather_object([(socket.gethostname(), mine)])
        for _, found in everyone:
            if isinstance(found, SpkidError):
                raise_everywhere(found)
        yield next(found for host, found in everyone if host == socket.gethostname() and isinstance(found, Corpus))


def _measure(workbench: Workbench, log: RunLog) -> dict[str, Findings]:
    what = workbench.config.what
    if what != "report":
        return {what: MEASURES[what](workbench)}
    left_out = _left_out(workbench)
    found = {}
    for name, measure in MEASURES.items():
        if name in left_out:
            found[name] = Findings(rows=[], notes=[f"{name}: not measured: {left_out[name]}"])
            continue
        log.line(f"measuring: {name}")
        found[name] = measure(workbench)
    return found


def _left_out(workbench: Workbench) -> dict[str, str]:
    """The stages that a report can't have here, and why."""
    left_out = {}
    if workbench.corpus.files is None:
        left_out["shard"] = "it needs feature files; give --db_path too"
    if "://" in workbench.shards:
        left_out["score"] = "it reads local datasets, and --shards is a URL"
    if workbench.world_size > 1:
        left_out["scaling"] = "it starts its own processes; run it without a launcher"
    return left_out


def _report(workbench: Workbench, found: dict[str, Findings], log: RunLog) -> dict[str, Any]:
    """Print and write the report."""
    config, world_size = workbench.config, workbench.world_size
    rows = in_order([row for findings in found.values() for row in findings.rows])
    bottleneck = find_bottleneck(rows, config, workbench.device.type, world_size) if config.what == "report" else None
    facts = {"corpus": workbench.corpus.facts, "processes": world_size, "threads": workbench.threads}
    result = as_json(config, found, bottleneck, facts | {"machine": machine()})
    below = [*result["notes"], *(bottleneck.sentences() if bottleneck else [])]
    below.append(describe_machine(result["machine"], workbench.threads, world_size))
    table = make_table(rows)
    for line in (*table, *below):
        log.line(line)
    if config.out is not None and workbench.accelerator.is_main_process:
        make_folder(config.out)
        text = "\n".join((f"# spkid bench {config.what}", "", *table, "", *(f"- {line}" for line in below), ""))
        write_atomic(config.out / "report.md", text.encode())
        write_json(config.out / "report.json", result)
        if picture := draw_report(rows):
            write_atomic(config.out / "report.png", picture)
        log.line(f"report: {config.out}/report.md")
    log.line(json.dumps(result))
    return result
