"""A folder is held by one process: refused while it lives, taken over by exactly one when it is dead."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shards import InputError, holding
from shards.holding import HOLD_NAME, FolderHold
from shards.liveness import ProcessMark

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from shards.holding import FolderHold

folder, then = Path(sys.argv[1]), sys.argv[2]
hold = FolderHold(folder, "choose another", lambda line: print(line, flush=True))
if then == "fork" and not os.fork():
    os.write(1, b"child %d\\n" % os.getpid())
elif then == "start":
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.write(1, b"child %d\\n" % child.pid)
os.write(1, b"held\\n")
sys.stdin.read()
"""


def start(folder, then="", launcher=()):
    """A process that holds `folder`, and its child, if `then` makes one; it ends with its standard input."""
    command = [*launcher, sys.executable, "-c", PROGRAM, folder, then]
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child = None
    for line in process.stdout:
        if line.startswith("child"):
            child = int(line.split()[1])
        if line == "held\n" and (then not in ("fork", "start") or child):
            break
    return process, child


def kill(process):
    process.kill()
    process.communicate()


def hold(folder, said=None):
    return FolderHold(folder, "choose another", [].append if said is None else said.append)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_held_folder_is_refused_in_one_line_that_names_the_holder(tmp_path):
    process, _ = start(tmp_path)
    with pytest.raises(InputError) as error_info:
        hold(tmp_path)
    kill(process)
    text = str(error_info.value)
    assert text.startswith(f"{tmp_path}: in use by process {process.pid} on ")
    assert " since 20" in text
    assert text.endswith("; wait for its end, or choose another")
    assert "\n" not in text


def test_a_second_hold_of_one_process_is_refused_too(tmp_path):
    with hold(tmp_path), pytest.raises(InputError, match=f"in use by process {os.getpid()} "):
        hold(tmp_path)
    hold(tmp_path).release()


def test_a_released_folder_is_left_empty(tmp_path):
    mine = hold(tmp_path)
    assert names(tmp_path) == [HOLD_NAME]
    mine.release()
    mine.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("then", ["", "fork", "start"])
def test_a_killed_holder_blocks_nobody_even_if_its_children_live(then, tmp_path):
    process, child = start(tmp_path, then)
    kill_alone = process.kill
    kill_alone()
    process.wait()
    said = []
    hold(tmp_path, said).release()
    assert len(said) == 1
    assert f"was held by process {process.pid}" in said[0]
    assert said[0].endswith("which is gone; taken over")
    if child is not None:
        os.kill(child, signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == []


RACE = """
import sys, time
from pathlib import Path
from shards.errors import InputError
from shards.holding import FolderHold
sys.stdin.readline()
try:
    FolderHold(Path(sys.argv[1]), "choose another", lambda line: None)
    print("won", flush=True)
except InputError as error:
    print("refused", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("dead", [False, True])
def test_of_those_who_come_at_the_same_moment_exactly_one_gets_it(dead, tmp_path):
    if dead:
        kill(start(tmp_path)[0])
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outcomes = [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(outcomes) == ["refused\n"] * 4 + ["won\n"]


def race_in_threads(folder, count):
    """How many of the threads that try together get the folder."""
    won, barrier = [], threading.Barrier(count)

    def attempt():
        barrier.wait()
        with contextlib.suppress(InputError):
            won.append(hold(folder))

    threads = [threading.Thread(target=attempt) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in won:
        mine.check()
        mine.release()
    return len(won)


def test_a_dead_holder_is_taken_over_once_in_each_of_many_races(tmp_path):
    for number in range(12):
        folder = tmp_path / f"{number}"
        leave_record(folder, boot="another kernel") if number % 2 else leave_record(folder)
        assert race_in_threads(folder, 6) == 1
        assert names(folder) == []


def leave_record(folder, **mark):
    """What a dead process leaves, of this kernel or of another."""
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = vars(ProcessMark.of_this()) | {"process": int(process.stdout)} | mark
    folder.mkdir(exist_ok=True)
    value = {"token": "0f", "mark": mine, "command": "spkid train", "since": "some day", "locked": True}
    (folder / HOLD_NAME).write_text(json.dumps(value))


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(holding, "DEAD_SECONDS", 0.6)
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.1)


def test_a_holder_on_another_host_lives_while_its_heartbeat_changes(tmp_path):
    leave_record(tmp_path, boot="another kernel", host="far")
    path, stop, beat = tmp_path / HOLD_NAME, threading.Event(), 10**9  # long ago by any clock, and it stays there

    def live():
        for number in range(1000):
            os.utime(path, ns=(beat + number, beat + number))
            if stop.wait(0.05):
                return

    thread = threading.Thread(target=live)
    thread.start()
    said = []
    with pytest.raises(InputError, match=r"in use by process \d+ on far \(spkid train\), since some day"):
        hold(tmp_path, said)
    stop.set()
    thread.join()
    assert "watching its heartbeat for up to 1 s" in said[0]


@pytest.mark.parametrize("ahead", [-(10**9), 10**9])
def test_a_holder_on_another_host_is_dead_without_a_heartbeat_whatever_the_clocks_say(ahead, tmp_path):
    leave_record(tmp_path, boot="another kernel", host="far")
    os.utime(tmp_path / HOLD_NAME, (time.time() + ahead,) * 2)
    began, said = time.monotonic(), []
    hold(tmp_path, said).release()
    assert time.monotonic() - began >= holding.DEAD_SECONDS
    assert "was held by" in said[-1]


def test_a_holder_beats(tmp_path):
    with hold(tmp_path):
        before = (tmp_path / HOLD_NAME).stat().st_mtime_ns
        until = time.monotonic() + 10
        while (tmp_path / HOLD_NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < until


def test_a_holder_that_was_taken_for_dead_is_told_before_it_writes(tmp_path):
    mine = hold(tmp_path / "x")
    mine.check()
    (tmp_path / "x" / HOLD_NAME).unlink()
    other = hold(tmp_path / "x")
    with pytest.raises(InputError, match=r"no longer held by this process.*nothing more is written"):
        mine.check()
    mine.release()
    other.check()
    other.release()


def test_a_deleted_folder_is_no_longer_held(tmp_path):
    mine = hold(tmp_path / "x")
    (tmp_path / "x" / HOLD_NAME).unlink()
    (tmp_path / "x").rmdir()
    with pytest.raises(InputError, match="no longer held by this process: the folder was deleted"):
        mine.check()
    mine.release()


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_the_process_itself_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold(tmp_path), pytest.raises(InputError, match="in use by"):
        hold(tmp_path)
    leave_record(tmp_path)
    record = json.loads((tmp_path / HOLD_NAME).read_text()) | {"locked": False}
    (tmp_path / HOLD_NAME).write_text(json.dumps(record))
    hold(tmp_path).release()


def test_a_process_number_that_another_has_by_now_is_no_holder(tmp_path):
    leave_record(tmp_path, process=os.getpid(), started=ProcessMark.of_this().started - 1)
    record = json.loads((tmp_path / HOLD_NAME).read_text()) | {"locked": False}
    (tmp_path / HOLD_NAME).write_text(json.dumps(record))
    hold(tmp_path).release()


def test_without_hard_links_it_works_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with hold(tmp_path), pytest.raises(InputError, match="in use by"):
        hold(tmp_path)
    leave_record(tmp_path)
    hold(tmp_path).release()
    assert names(tmp_path) == []


def test_a_claim_that_a_killed_process_left_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "CLAIM_SECONDS", 0.2)
    leave_record(tmp_path)
    (tmp_path / f"{HOLD_NAME}.after-0f").write_text("{}")
    hold(tmp_path).release()
    assert names(tmp_path) == []


def test_a_file_of_that_name_that_is_no_record_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "CLAIM_SECONDS", 0.2)  # so long an empty file may be one that is being made
    for text in (
        "",
        "[]",
        '{"token": "../x"}',
        '{"token": "1", "command": "", "since": "", "locked": true, "mark": 1}',
    ):
        (tmp_path / HOLD_NAME).write_text(text)
        with pytest.raises(InputError, match=r"held-by\.json: not the record of a process"):
            hold(tmp_path)
        assert names(tmp_path) == [HOLD_NAME]
    (tmp_path / HOLD_NAME).unlink()
    for make in (os.mkfifo, os.mkdir):  # neither is waited for
        make(tmp_path / HOLD_NAME)
        with pytest.raises(InputError, match=r"held-by\.json: not the record of a process"):
            hold(tmp_path)
        assert names(tmp_path) == [HOLD_NAME]
        (tmp_path / HOLD_NAME).rmdir() if make is os.mkdir else (tmp_path / HOLD_NAME).unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="another namespace of processes needs root")
def test_a_holder_in_another_container_of_this_machine_is_told_at_once(tmp_path):
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("namespaces are not permitted here")
    process, _ = start(tmp_path, launcher=unshare)
    with pytest.raises(InputError, match=r"in use by process \d on "):
        hold(tmp_path)
    kill(process)
    until = time.monotonic() + 10
    while True:  # the kernel ends the namespace's processes after its first one
        try:
            hold(tmp_path).release()
            break
        except InputError:
            assert time.monotonic() < until
