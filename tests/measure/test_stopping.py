"""A `spkid bench` that is told to stop leaves its finished stages, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_bench import TOY
from training import command, environment

from spkid_dist.bench.stopping import Told, stopped_by_signals


@pytest.fixture
def start(tmp_path):
    """Start a bench that works in `folder`, wait until it has said `line` (None: until it writes its corpus), and a while."""
    running = []

    def run(what, line, seconds=0.0, ranks=1, **flags):
        (tmp_path / "folder").mkdir()
        options = TOY | {"folder": tmp_path / "folder", "out": tmp_path / "out"} | flags
        words = command(options, ranks, ("-m", "spkid_dist", "bench", what))
        process = subprocess.Popen(
            words,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        if line is None:
            while not names(tmp_path / "folder"):
                assert process.poll() is None
                time.sleep(0.01)
        else:
            assert next((said for said in process.stdout if line in said), None), "it has ended"
        time.sleep(seconds)
        return process

    yield run, tmp_path
    for process in running:
        process.stdout.close()
        if process.poll() is None:
            process.kill()
            process.wait()


def names(folder):
    return [path.name for path in folder.iterdir()]


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.long
def test_finished_stages_are_there_after_a_signal_and_nothing_else(start):
    run, folder = start
    process = run("report", "measuring: resume", repeats=20)
    children = descendants(process)
    process.terminate()
    rest = process.stdout.read()
    assert process.wait(30) == 128 + signal.SIGTERM
    finished = "limits, shard, stream, train, score"
    assert f"stopped by SIGTERM; finished stages: {finished}, in {folder}/out/report.md" in rest
    assert sorted(names(folder / "out")) == ["report.json", "report.md"]
    found = json.loads((folder / "out/report.json").read_text())
    assert found["complete"] is False
    assert {row["stage"] for row in found["rows"]} >= {"machine", "files -> shards", "utterances -> scores"}
    assert f"not complete: measured so far: {finished}" in (folder / "out/report.md").read_text()
    assert not names(folder / "folder")
    assert not psutil.wait_procs(children, 5)[1]


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [
        ("shard", signal.SIGINT, 130),
        pytest.param("resume", signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param("resume", signal.SIGHUP, 129, marks=pytest.mark.long),
    ],
)
def test_a_signal_to_all_processes_and_another_one_leave_nothing(start, what, number, code):
    run, folder = start
    process = run(what, "measuring", 0.5, repeats=100, threads=2)
    children = descendants(process)
    for _ in range(2):  # who is impatient
        os.killpg(process.pid, number)
    assert process.wait(30) == code
    assert not names(folder / "folder")
    assert not psutil.wait_procs(children, 10)[1]


def test_a_signal_while_the_corpus_is_written_leaves_nothing(start):
    run, folder = start
    process = run("limits", None, frames=1_000_000)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not names(folder / "folder")


@pytest.mark.long
def test_processes_of_a_launch_leave_nothing_when_the_launcher_is_stopped(start):
    run, folder = start
    process = run("train", "measuring", 0.5, ranks=2, repeats=1000)
    process.terminate()
    assert process.wait(60) != 0
    assert not names(folder / "folder")


@pytest.mark.long
def test_processes_that_scaling_launches_end_with_it(start):
    run, folder = start
    process = run("scaling", "measuring", repeats=100, processes=2)
    until = time.monotonic() + 60
    while len(descendants(process)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    children = descendants(process)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not names(folder / "folder")
    assert not psutil.wait_procs(children, 5)[1]


def test_signals_are_handled_in_the_block_alone_and_once():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Told) as told, stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)  # while it is being left
    assert (told.value.code, told.value.name) == (143, "SIGTERM")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_block_works_outside_the_main_thread():
    program = (
        "import threading\nfrom spkid_dist.bench.stopping import stopped_by_signals\n"
        "def run():\n    with stopped_by_signals():\n        print('done')\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "done\n"
