"""Several jobs at one folder: the first has it, equal ones share the work and all succeed, others are refused in a line."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import LAYOUT, folder_bytes, write_corpus

from shards import FmatrixSource, InputError, Layout, ShardDataset, claim_folder, convert, make_plan, merge, read_list
from shards.conversion.appending import extended_speakers
from shards.conversion.claiming import JobOverError
from shards.conversion.folder import JOB_HOLD_NAME, LocalFolder
from shards.conversion.job import convert_shard, convert_tasks
from shards.conversion.record import record_name
from shards.layout import JOB_NAME, MANIFEST_NAME, shard_name
from shards.verification.verify import verify_dataset

# A process that runs the commands that it is given, one a line, and says how each ended.
RACER = """
import contextlib, io, json, sys
from spkid_dist.commands.registry import run_arguments
import spkid_dist.commands.shard

print("ready", flush=True)
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run_arguments(json.loads(line))
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


class Racers:
    """Processes that have imported everything, so that their commands begin at the same moment."""

    def __init__(self, count):
        self.processes = [
            subprocess.Popen([sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def start(self, number, arguments):
        stdin = self.processes[number].stdin
        stdin.write(json.dumps([str(word) for word in arguments]) + "\n")
        stdin.flush()

    def outcome(self, number):
        """The exit code and the error of the command that was started."""
        return tuple(json.loads(self.processes[number].stdout.readline()))

    def race(self, *commands):
        for number, arguments in enumerate(commands):
            self.start(number, arguments)
        return [self.outcome(number) for number in range(len(commands))]

    def stop_when(self, number, condition):
        """Stop the process as soon as the condition holds, or leave it if it was too fast; whether it stands still now."""
        until = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < until
        self.processes[number].send_signal(signal.SIGSTOP)

    def go_on(self, number):
        self.processes[number].send_signal(signal.SIGCONT)

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def racers():
    made = Racers(3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Feature files, and lists: of all, of the first and of the second half."""
    folder = write_corpus(tmp_path_factory.mktemp("races"))
    keys = (folder / "cfg/all.train").read_text().split()
    lists = {"all": keys, "one": keys[:60], "two": keys[60:], "three": keys[60:90]}
    for name, chosen in lists.items():
        (folder / name).write_text("".join(f"{key}\n" for key in chosen))
    return folder


def command(corpus, name, out, *more):
    paths = (
        "--db_path",
        corpus / "mcp",
        "--list",
        corpus / name,
        "--spk2idx",
        corpus / "cfg/spk2idx.json",
        "--out",
        out,
    )
    return ("shard", *paths, *(f"--{name}={value}" for name, value in LAYOUT.items()), *more)


def make(corpus, name, onto=None):
    source = FmatrixSource(corpus / "mcp", "mcp")
    utterances = read_list(corpus / name)
    speakers = sorted(json.loads((corpus / "cfg/spk2idx.json").read_text()))
    if onto is not None:
        speakers = extended_speakers(onto, utterances, Path("no map"))
    return make_plan(utterances, speakers, source, Layout(**LAYOUT), onto), source


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """The bytes of each dataset that one process makes: of a list, and of "one" with another appended."""
    found = {}
    for name in ("all", "one", "two"):
        out = tmp_path_factory.mktemp("expected") / "out"
        plan, source = make(corpus, name)
        convert(plan, source, out)
        found[name] = folder_bytes(out)
    for name in ("two", "three"):
        out = tmp_path_factory.mktemp("expected") / "out"
        write(out, found["one"])
        plan, source = make(corpus, name, ShardDataset(out))
        convert(plan, source, out)
        found[f"one, {name}"] = folder_bytes(out)
    return found


def write(folder, contents):
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def rounds(request, few):
    return max(few, request.config.getoption("--kills"))


def test_equal_jobs_at_once_all_succeed_and_leave_nothing_behind(racers, corpus, expected, tmp_path, request):
    for number in range(rounds(request, 4)):
        out = tmp_path / f"{number}"
        assert racers.race(*[command(corpus, "all", out)] * 3) == [(0, "")] * 3
        assert folder_bytes(out) == expected["all"]


REFUSED = re.compile(r"spkid: error: .*: holds (an unfinished job|a dataset) of another list.*choose another --out.*\n")


def test_of_two_different_jobs_at_once_one_succeeds_and_one_is_refused(racers, corpus, expected, tmp_path, request):
    winners = set()
    for number in range(rounds(request, 4)):
        out = tmp_path / f"{number}"
        names = ["one", "two"] if number % 2 else ["two", "one"]
        outcomes = racers.race(*(command(corpus, name, out) for name in names))
        assert sorted(code for code, _ in outcomes) == [0, 1], outcomes
        won = [code for code, _ in outcomes].index(0)
        assert REFUSED.fullmatch(outcomes[1 - won][1]), outcomes
        assert folder_bytes(out) == expected[names[won]]
        winners.add(names[won])


def test_equal_appends_at_once_all_succeed(racers, corpus, expected, tmp_path, request):
    for number in range(rounds(request, 4)):
        out = tmp_path / f"{number}"
        write(out, expected["one"])
        assert racers.race(*[command(corpus, "two", out, "--append")] * 3) == [(0, "")] * 3
        assert folder_bytes(out) == expected["one, two"]


def test_of_two_different_appends_at_once_none_is_lost(racers, corpus, expected, tmp_path, request):
    for number in range(rounds(request, 4)):
        out = tmp_path / f"{number}"
        write(out, expected["one"])
        names = ["two", "three"] if number % 2 else ["three", "two"]
        outcomes = racers.race(*(command(corpus, name, out, "--append") for name in names))
        assert sorted(code for code, _ in outcomes) == [0, 1], outcomes
        won = [code for code, _ in outcomes].index(0)
        assert re.fullmatch(
            r"spkid: error: .*(unfinished job of another list.*, begun by process \d+ on .*finish that one"
            r"|run the command again|has utterance .* already).*\n",
            outcomes[1 - won][1],
        ), outcomes
        assert folder_bytes(out) == expected[f"one, {names[won]}"]


def test_merges_at_once_all_succeed(racers, corpus, expected, tmp_path, request):
    made = tmp_path / "made"
    plan, source = make(corpus, "all")
    claim_folder(plan.job, LocalFolder(made))
    convert_tasks(plan, source, LocalFolder(made), plan.job.shards)
    for number in range(rounds(request, 4)):
        out = shutil.copytree(made, tmp_path / f"{number}")
        assert racers.race(*[("merge", out)] * 3) == [(0, "")] * 3
        assert folder_bytes(out) == expected["all"]


def names_in(folder):
    try:
        return {path.name.partition(".tmp-")[0] for path in folder.iterdir()}
    except FileNotFoundError:
        return set()


POINTS = {
    "its folder is there": lambda out: out.exists(),
    "it claims": lambda out: JOB_HOLD_NAME in names_in(out),
    "its job is there": lambda out: (out / JOB_NAME).exists(),
    "its first shard is there": lambda out: (out / shard_name(0)).exists(),
    "its records are there": lambda out: (out / "records").exists(),
    "it writes tables": lambda out: "blocks.npy" in names_in(out),
    "its manifest is there": lambda out: (out / MANIFEST_NAME).exists(),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("other", ["all", "one"])
def test_a_job_that_stands_still_at_any_point_loses_and_spoils_nothing(
    point, other, racers, corpus, expected, tmp_path
):
    out = tmp_path / "out"
    racers.start(0, command(corpus, "all", out))
    racers.stop_when(0, lambda: POINTS[point](out))
    racers.start(1, command(corpus, other, out))
    threading.Timer(0.7, racers.go_on, [0]).start()  # the second waits, where the first holds the folder
    outcomes = [racers.outcome(1), racers.outcome(0)]
    if other == "all":
        assert outcomes == [(0, "")] * 2
        assert folder_bytes(out) == expected["all"]
    else:
        assert sorted(code for code, _ in outcomes) == [0, 1], outcomes
        (lost,) = (said for code, said in outcomes if code)
        assert REFUSED.fullmatch(lost), outcomes
        assert folder_bytes(out) == expected["all" if outcomes[1][0] == 0 else "one"]


@pytest.mark.long
def test_jobs_that_stand_still_at_random_moments_lose_and_spoil_nothing(racers, corpus, expected, tmp_path, request):
    draw = random.Random(5)
    for number in range(4 * rounds(request, 4)):
        out = tmp_path / f"{number}"
        appended = draw.random() < 0.5
        if appended:
            write(out, expected["one"])
        name, more = ("two", ["--append"]) if appended else ("all", [])
        for racer in range(3):
            racers.start(racer, command(corpus, name, out, *more))
        for _ in range(6):
            racer = draw.randrange(3)
            time.sleep(draw.uniform(0, 0.1))
            racers.processes[racer].send_signal(signal.SIGSTOP)
            time.sleep(draw.uniform(0, 0.1))
            racers.go_on(racer)
        assert [racers.outcome(racer) for racer in range(3)] == [(0, "")] * 3
        assert folder_bytes(out) == expected["one, two" if appended else "all"]


class Slow(LocalFolder):
    """A folder where `then` happens between the look at it and the turn of whoever has looked."""

    then = staticmethod(lambda: None)

    def in_turn(self, say):
        action, Slow.then = Slow.then, staticmethod(lambda: None)
        action()
        return super().in_turn(say)


@pytest.fixture
def slow(tmp_path):
    yield Slow(tmp_path / "out")
    Slow.then = staticmethod(lambda: None)


def test_an_equal_job_that_ended_between_the_looks_is_found(slow, corpus, expected):
    plan, source = make(corpus, "all")
    Slow.then = staticmethod(lambda: convert(plan, source, slow.path))
    manifest = claim_folder(plan.job, slow)
    assert manifest.num_utterances == plan.job.num_utterances
    assert folder_bytes(slow.path) == expected["all"]


def test_another_job_that_ended_between_the_looks_is_found(slow, corpus, expected):
    plan, _ = make(corpus, "one")
    Slow.then = staticmethod(lambda: convert(*make(corpus, "two"), slow.path))
    with pytest.raises(InputError, match="holds a dataset of another list"):
        claim_folder(plan.job, slow)
    assert folder_bytes(slow.path) == expected["two"]


def test_an_append_that_ended_between_the_looks_is_not_overwritten(slow, corpus, expected):
    write(slow.path, expected["one"])
    mine, _ = make(corpus, "two", ShardDataset(slow.path))
    other = make(corpus, "three", ShardDataset(slow.path))
    Slow.then = staticmethod(lambda: convert(*other, slow.path))
    with pytest.raises(
        InputError, match="it was appended to, or replaced, since the command began; run the command again"
    ):
        claim_folder(mine.job, slow)
    assert folder_bytes(slow.path) == expected["one, three"]


def test_an_append_is_not_cleared_away_by_a_finished_job_that_ends_late(slow, corpus, expected):
    """It looked when nothing but its own leftovers was there."""
    write(slow.path, expected["one"])
    (slow.path / "records").mkdir()
    (slow.path / record_name(0)).touch()
    first, _ = make(corpus, "one")
    append, source = make(corpus, "two", ShardDataset(slow.path))

    def begin():
        claim_folder(append.job, LocalFolder(slow.path))
        convert_tasks(append, source, LocalFolder(slow.path), append.job.shards)

    Slow.then = staticmethod(begin)
    assert claim_folder(first.job, slow) is not None
    merge(LocalFolder(slow.path))
    assert folder_bytes(slow.path) == expected["one, two"]


def test_a_job_that_another_process_ends_meanwhile_writes_no_more_and_succeeds(corpus, expected, tmp_path):
    out = tmp_path / "out"
    plan, source = make(corpus, "all")
    seen = []

    class Overtaken(FmatrixSource):
        def load(self, utterance):
            if not seen:
                seen.append(True)
                convert(plan, source, out)
            return super().load(utterance)

    assert convert(plan, Overtaken(source.db_path, source.ext), out).num_utterances == plan.job.num_utterances
    assert folder_bytes(out) == expected["all"]


def test_a_job_whose_folder_was_given_to_another_publishes_nothing_there(corpus, expected, tmp_path):
    out = LocalFolder(tmp_path / "out")
    plan, source = make(corpus, "one")
    claim_folder(plan.job, out)
    shutil.rmtree(out.path)
    other, other_source = make(corpus, "two")
    claim_folder(other.job, out)
    with pytest.raises(JobOverError, match=r"no longer the folder of this job: job\.json is gone, or of another job"):
        convert_shard(plan.task(0), source, out)
    with pytest.raises(JobOverError, match="nothing more is written there"):
        convert_tasks(plan, source, out, plan.job.shards)
    assert convert(other, other_source, out.path)
    assert folder_bytes(out.path) == expected["two"]


def test_shards_that_others_have_made_meanwhile_are_not_made_again(corpus, expected, tmp_path):
    out = LocalFolder(tmp_path / "out")
    plan, source = make(corpus, "all")
    claim_folder(plan.job, out)
    loaded = []

    class Counting(FmatrixSource):
        def load(self, utterance):
            if not loaded:
                for shard in plan.job.shards[1:]:
                    convert_shard(plan.task(shard), source, out)
            loaded.append(utterance.key)
            return super().load(utterance)

    convert_tasks(plan, Counting(source.db_path, source.ext), out, plan.job.shards)
    assert len(loaded) == len(plan.share(0))
    merge(out)
    assert folder_bytes(out.path) == expected["all"]


def test_a_job_that_was_being_made_when_its_maker_was_killed_is_made_again(corpus, expected, tmp_path):
    """On a file system without hard links, an empty file is there for a moment."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOB_NAME).touch()
    plan, source = make(corpus, "one")
    convert(plan, source, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == expected["one"]


def test_a_job_says_who_began_it_and_differs_from_none_by_that(corpus, tmp_path):
    out = LocalFolder(tmp_path / "out")
    plan, _ = make(corpus, "one")
    claim_folder(plan.job, out)
    begun = json.loads((out.path / JOB_NAME).read_text())["begun_by"]
    assert begun.startswith("process ")
    assert claim_folder(dataclasses.replace(plan.job, begun_by="somebody else"), out) is None
    with pytest.raises(
        InputError, match=r"out: no dataset yet, but an unfinished job: 0 of \d shards are done, begun by pro"
    ):
        verify_dataset(out.path)
