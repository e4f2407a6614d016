"""The command `spkid bench`: measure the stages in turn, and print a table, the slowest stage, and JSON."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.errors import InputError, SpkidError
from shards.files import write_atomic, write_json
from shards.holding import FolderHold
from shards.resources import available_cpus
from spkid_dist.bench.corpus import BenchCorpus, open_corpus
from spkid_dist.bench.limits import measure_limits
from spkid_dist.bench.measure import machine
from spkid_dist.bench.otherprograms import OtherPrograms, describe_use
from spkid_dist.bench.plots import draw_report
from spkid_dist.bench.report import (
    Bottleneck,
    as_json,
    describe_machine,
    explain_shares,
    find_bottleneck,
    in_order,
    make_table,
)
from spkid_dist.bench.resume import measure_resume
from spkid_dist.bench.rows import Findings, Row
from spkid_dist.bench.scaling import measure_scaling, numbers_of_processes
from spkid_dist.bench.score import measure_score
from spkid_dist.bench.shard import measure_shard
from spkid_dist.bench.stopping import Told, stopped_by_signals
from spkid_dist.bench.stream import measure_stream
from spkid_dist.bench.timetable import Timetable, expected_seconds
from spkid_dist.bench.train import measure_train, pilot
from spkid_dist.bench.workbench import Workbench
from spkid_dist.config.bench import BenchConfig
from spkid_dist.process.allocator import keep_freed_memory
from spkid_dist.process.threads import torch_threads
from spkid_dist.ranks.accelerator import make_accelerator
from spkid_dist.ranks.console import RunLog
from spkid_dist.ranks.together import by_main, explain_lost_ranks, raise_everywhere

TIMEOUT_MINUTES = 600.0  # the other ranks wait while one shards the corpus
REPORT_FILES = ("report.md", "report.json", "report.png")
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
    """Measure what `config` asks for and print it, a stage at a time; returns the same as JSON values.

    Called by every process of a launch; rank 0 prints and writes. Its last line is that JSON (`RunLog.summary`).

    Raises:
        InputError: corpus or dataset missing or damaged, a process that was started failed, or --out can't be written.
        UsageError: what can't be measured on this corpus, or by several processes.
        Told: a signal has told this process to stop.
    """
    with open_workbench(config) as (workbench, log), closing(Report(workbench, log)) as report:
        by_main(workbench.accelerator, report.open)
        try:
            _measure(workbench, report, log)
        except (KeyboardInterrupt, Told) as error:
            report.say_interrupted(getattr(error, "name", "Ctrl-C"))
            raise
        workbench.accelerator.wait_for_everyone()  # before the corpus is removed
        return report.finish()


@contextmanager
def open_workbench(config: BenchConfig) -> Iterator[tuple[Workbench, RunLog]]:
    """What stages measure with, and where lines are said; all that was made for it is removed at the end, also by a signal.

    Raises:
        InputError: corpus or dataset missing or damaged.
        UsageError: an option that can't be.
    """
    keep_freed_memory()  # as trainings do
    with make_accelerator(precision=config.mixed_precision, timeout_minutes=TIMEOUT_MINUTES) as accelerator:
        log = RunLog(shown=accelerator.is_main_process)
        with (
            stopped_by_signals(),
            explain_lost_ranks(accelerator, TIMEOUT_MINUTES),
            shared_corpus(config, accelerator) as corpus,
            torch_threads(config.threads) as threads,
        ):
            of_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            workers = config.threads or max(1, available_cpus() // of_host)
            yield (
                Workbench(config=config, corpus=corpus, accelerator=accelerator, threads=threads, workers=workers),
                log,
            )


@contextmanager
def shared_corpus(config: BenchConfig, accelerator: Accelerator) -> Iterator[BenchCorpus]:
    """The corpus, made by one rank of each machine for all of them. Raises on all ranks what `open_corpus` does on one."""
    with ExitStack() as stack:
        mine: BenchCorpus | SpkidError | None = None
        if accelerator.is_local_main_process:
            try:
                mine = stack.enter_context(open_corpus(config))
            except SpkidError as error:
                mine = error
            except OSError as error:
                mine = InputError(str(error))
        everyone: list[tuple[str, BenchCorpus | SpkidError | None]] = gather_object([(socket.gethostname(), mine)])
        for _, found in everyone:
            if isinstance(found, SpkidError):
                raise_everywhere(found)
        yield next(found for host, found in everyone if host == socket.gethostname() and isinstance(found, BenchCorpus))


def _measure(workbench: Workbench, report: "Report", log: RunLog) -> None:
    """Measure the stages, each of which is reported as soon as it is there."""
    what = workbench.config.what
    left_out = _left_out(workbench) if what == "report" else {}
    for name, reason in left_out.items():
        report.add(name, Findings(rows=[], notes=[f"{name}: not measured: {reason}"]))
    names: list[str] = [name for name in MEASURES if name not in left_out] if what == "report" else [what]
    timetable = Timetable(_expected_seconds(workbench, names), log.line)
    timetable.announce()
    timed = replace(workbench, progress=timetable.at)
    for name in names:
        timetable.begin(name)
        others = OtherPrograms()
        found = MEASURES[name](timed)
        timetable.end()
        report.add(
            name, found, others.used_cpus() if workbench.world_size == 1 else 0.0
        )  # the other ranks are not others


def _expected_seconds(workbench: Workbench, names: list[str]) -> dict[str, float]:
    """Seconds of each of the stages, about."""
    rate, num_features = None, workbench.config.num_features
    if {"train", "score", "scaling"} & set(names) and workbench.corpus.shards is not None:
        rate, num_features = pilot(workbench)
    counts = numbers_of_processes(workbench) if "scaling" in names else []
    expected = expected_seconds(workbench.config, rate, num_features, counts)
    return {name: expected[name] for name in names}


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


class Report:
    """What was found so far: printed a stage at a time, and written to --out each time.

    In `report.json`, "complete" says whether all that was asked for is there.
    """

    def __init__(self, workbench: Workbench, log: RunLog) -> None:
        self._bench, self._log = workbench, log
        self._found: dict[str, Findings] = {}
        self._used_cpus: dict[str, float] = {}
        out = workbench.config.out
        self._out = out if workbench.accelerator.is_main_process else None
        self._hold: FolderHold | None = None

    def open(self) -> None:
        """Make --out and remove an earlier report from it, before anything is measured.

        Raises:
            InputError: it can't be, or another process writes there.
        """
        if self._out is not None:
            self._hold = FolderHold(self._out, "give another --out", self._log.line)
            for name in REPORT_FILES:  # of an earlier run
                (self._out / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let --out go."""
        if self._hold is not None:
            self._hold.release()

    def add(self, name: str, findings: Findings, used_cpus: float = 0.0) -> None:
        """A stage was measured, while other programs used some CPUs: print its rows and notes, write the report so far."""
        self._found[name], self._used_cpus[name] = findings, used_cpus
        if self._bench.config.what == "report":  # else the whole report, which follows, is the same
            table = make_table(findings.rows) if findings.rows else []
            for line in (*table, *findings.notes, *describe_use({name: used_cpus})):
                self._log.line(line)
        self._write(complete=False)

    def say_interrupted(self, by: str) -> None:
        """Say what there is."""
        finished = ", ".join(name for name, found in self._found.items() if found.rows) or "none"
        where = f", in {self._out}/report.md" if self._out is not None and self._found else ""
        self._log.line(f"stopped by {by}; finished stages: {finished}{where}")

    def finish(self) -> dict[str, Any]:
        """Print and write all of it."""
        result, lines = self._write(complete=True)
        for line in lines:
            self._log.line(line)
        if self._out is not None:
            self._log.line(f"report: {self._out}/report.md")
        self._log.summary(result, self._bench.config.json)
        return result

    def _write(self, complete: bool) -> tuple[dict[str, Any], list[str]]:
        """The report as JSON values and as lines; it is written where --out says so."""
        config, world_size, threads = self._bench.config, self._bench.world_size, self._bench.threads
        rows = in_order([row for findings in self._found.values() for row in findings.rows])
        bottleneck = self._bottleneck(rows) if complete and config.what == "report" else None
        facts = {"corpus": self._bench.corpus.facts, "processes": world_size, "threads": threads, "complete": complete}
        facts["used_by_others"] = {name: round(cpus, 2) for name, cpus in self._used_cpus.items()}
        result = as_json(config, self._found, bottleneck, facts | {"machine": machine()})
        table = make_table(rows)
        notes = [*explain_shares(rows), *describe_use(self._used_cpus), *result["notes"]]
        below = [*notes, *(bottleneck.sentences() if bottleneck else [])]
        below.append(describe_machine(result["machine"], threads, world_size))
        if not complete:
            below.insert(0, f"not complete: measured so far: {', '.join(self._found)}")
        if self._out is not None and self._hold is not None:
            self._hold.check()
            text = "\n".join((f"# spkid bench {config.what}", "", *table, "", *(f"- {line}" for line in below), ""))
            write_atomic(self._out / "report.md", text.encode())
            write_json(self._out / "report.json", result)
            if complete and (picture := draw_report(rows)):
                write_atomic(self._out / "report.png", picture)
        return result, [*table, *below]

    def _bottleneck(self, rows: list[Row]) -> Bottleneck | None:
        bench = self._bench
        of_host = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        idle = 0 if bench.device.type != "cpu" else max(0, available_cpus() - bench.threads * of_host)
        return find_bottleneck(rows, bench.config, bench.device.type, bench.world_size, idle_cpus=idle)
