"""Every command that writes is killed before a file operation: the next run removes what was left, and its result is right.

A process that has imported everything forks a child for each command. The child counts what it is about to do to files (by
Python's audit events), and kills itself before the operation that the test has chosen.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import LAYOUT, write_corpus
from trained_folders import make_training

from shards import ShardDataset, claim_folder, convert, make_plan, read_list
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_tasks
from shards.holding import HOLD_NAME
from shards.layout import Layout
from shards.sources.fmatrix import FmatrixSource
from shards.unfinished import TEMPORARY_MARK

FORKS = """
import json, os, signal, sys
import matplotlib.figure, torch
import spkid_dist.commands.check, spkid_dist.commands.shard, spkid_dist.export, spkid_dist.score, spkid_dist.train
from spkid_dist.commands.registry import run_arguments

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

def run(arguments, kill_at, below, report):
    count = 0
    def before(event, values):
        nonlocal count
        if event == "open" and isinstance(values[2], int):
            changes = values[2] & (os.O_WRONLY | os.O_RDWR) and not values[2] & os.O_TMPFILE == os.O_TMPFILE
        else:
            changes = event in CHANGES
        if changes and str(values[0]).startswith(below):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    out = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.addaudithook(before)
    code = run_arguments(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(out, b"\\n%d" % count)
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            run(*json.loads(line))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
KILLED = -9


class Forks:
    """Runs commands in children of one process."""

    def __init__(self, folder):
        self.report = folder / "report"
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, arguments, below, kill_at=0):
        """The exit code of a command, what it said, and how many operations below a folder there were."""
        request = [[str(word) for word in arguments], kill_at, str(below), str(self.report)]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        said, _, count = self.report.read_text().rpartition("\n")
        return code, said, 0 if code == KILLED else int(count)


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.process.kill()
    made.process.communicate()


@dataclass(frozen=True)
class Given:
    """What the commands work on, not to be changed: a corpus, its dataset, an unfinished job, and a model."""

    corpus: Path
    dataset: Path
    job: Path
    model: Path


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    corpus = write_corpus(folder / "corpus")
    keys = (corpus / "cfg/all.train").read_text().split()
    for name, chosen in {"some": keys[:40], "more": keys[40:60]}.items():
        (corpus / name).write_text("".join(f"{key}\n" for key in chosen))
    speakers = sorted(json.loads((corpus / "cfg/spk2idx.json").read_text()))
    source = FmatrixSource(corpus / "mcp", "mcp")
    plan = make_plan(read_list(corpus / "some"), speakers, source, Layout(**LAYOUT))
    convert(plan, source, folder / "dataset")
    claim_folder(plan.job, LocalFolder(folder / "job"))
    convert_tasks(plan, source, LocalFolder(folder / "job"), plan.job.shards)
    model = make_training(
        folder / "model", source={"kind": "fmatrix", "ext": "mcp"}, num_spks=len(speakers), speakers=speakers
    )
    return Given(corpus, folder / "dataset", folder / "job", model)


def shard(given, work, name, *more):
    paths = ("--db_path", given.corpus / "mcp", "--list", given.corpus / name, "--spk2idx", work / "map.json")
    return ["shard", *paths, "--out", work / "out", *(f"--{name}={value}" for name, value in LAYOUT.items()), *more]


def append(given, work):
    shutil.copytree(given.dataset, work / "out")
    shutil.copy(given.corpus / "cfg/spk2idx.json", work / "map.json")
    return shard(given, work, "more", "--append")


def merge(given, work):
    shutil.copytree(given.job, work / "out")
    return ["merge", work / "out"]


def index(given, work):
    shutil.copytree(given.dataset, work / "out", ignore=shutil.ignore_patterns("*.npy", "*.json"))
    return ["index", work / "out"]


def export(given, work):
    return ["export", "--model", given.model, "--out", work / "out", "--format", "safetensors"]


def score(given, work):
    output = ("--log_file", work / "results.txt", "--scores", work / "scores.npz")
    return ["score", "--model", given.model, "--te_shards", given.dataset, *output]


def embed(given, work):
    return ["embed", "--model", given.model, "--te_shards", given.dataset, "--out", work / "out.npz"]


NETWORK = (
    "--in_frames",
    5,
    "--hsize",
    8,
    "--batch_size",
    200,
    "--num_streams",
    4,
    "--shuffle_windows",
    256,
    "--epoch",
    2,
)


def train(given, work):
    data = ("--tr_shards", given.dataset, "--va_shards", given.dataset)
    return ["train", *data, "--save_path", work / "ckpt", *NETWORK, "--resume", "auto", "--profile", 1]


def cached_train(given, work):
    lists = ("--tr_list_file", given.corpus / "some", "--va_list_file", given.corpus / "more")
    data = ("--db_path", given.corpus / "mcp", *lists, "--spk2idx", given.corpus / "cfg/spk2idx.json")
    places = ("--cache_dir", work / "cache", "--save_path", work / "ckpt")
    return ["train", *data, *places, *NETWORK, "--resume", "auto"]


COMMANDS = {
    "shard": lambda given, work: shard(given, work, "some"),
    "append": append,
    "merge": merge,
    "index": index,
    "export": export,
    "score": score,
    "embed": embed,
    "train": train,
    "train with a cache": cached_train,
}
# They tell of times, of machines, or of earlier runs.
OTHERWISE = (
    "train.log",
    "summary.json",
    "train_stats.json",
    "curves.png",
    "results.json",
    "profile-rank0.json",
    "checkpoints",
)


def result(work):
    """The files below a folder by name with their bytes, but for those that tell of times."""
    found = {str(path.relative_to(work)): path for path in work.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not any(part in name for part in OTHERWISE)}


def litter(work):
    """What should not be there after a run."""
    marks = (TEMPORARY_MARK, HOLD_NAME, ".making-", "records")
    return [
        str(path) for path in work.rglob("*") if any(mark in path.name for mark in marks) or path.name.startswith(".")
    ]


TRAININGS = ("train", "train with a cache")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in TRAININGS else ()) for name in COMMANDS]
)
def test_what_a_killed_command_left_is_gone_after_the_next_run_and_its_result_is_right(
    name, forks, given, tmp_path, request
):
    work = tmp_path / "work"
    work.mkdir()
    code, said, count = forks.run(COMMANDS[name](given, work), work)
    assert code == 0, said
    assert litter(work) == []
    assert count >= 4
    expected = result(work)
    draw = random.Random(name)
    kills = request.config.getoption("--kills")
    for kill_at in sorted(draw.sample(range(1, count + 1), min(count, kills))):
        shutil.rmtree(work)
        work.mkdir()
        arguments = COMMANDS[name](given, work)
        code, said, _ = forks.run(arguments, work, kill_at)
        assert code == KILLED, said
        code, said, _ = forks.run(arguments, work)
        assert code == 0, (kill_at, said)
        assert litter(work) == [], kill_at
        assert result(work) == expected, kill_at


def test_a_killed_append_leaves_the_dataset_as_it_was_at_any_moment(forks, given, tmp_path, request):
    work = tmp_path / "work"
    work.mkdir()
    _, _, count = forks.run(append(given, work), work)
    old, new = (ShardDataset(folder).fingerprint for folder in (given.dataset, work / "out"))
    for kill_at in random.Random(2).sample(range(1, count + 1), min(count, 4 * request.config.getoption("--kills"))):
        shutil.rmtree(work)
        work.mkdir()
        forks.run(append(given, work), work, kill_at)
        assert ShardDataset(work / "out").fingerprint in (old, new)
        code, said, _ = forks.run(["verify", work / "out"], work)
        assert code == 0, said
