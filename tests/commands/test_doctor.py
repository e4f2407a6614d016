"""`spkid doctor`: what a job sees, by one process and by two."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_corpus
from training import command, environment

from spkid_dist.commands.doctor import find_problems
from spkid_dist.commands.rankfacts import Vitals
from spkid_dist.config import DoctorConfig

CONFIG = Path(__file__).parents[2] / "launch/accelerate/cpus.yaml"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), [7, 9, 4]).dataset.folder


def doctor(options, processes=1, module=("-m", "spkid_dist", "doctor")):
    return subprocess.run(
        command(options, processes, module), env=environment(), capture_output=True, text=True, check=False, timeout=120
    )


def test_two_processes_see_each_other_and_the_shards(shards, tmp_path):
    launch = ("-m", "accelerate.commands.launch", "--config_file", CONFIG, "-m", "spkid_dist", "doctor")
    done = doctor({"shards": shards, "save_path": tmp_path / "ckpt"}, module=launch)
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert (found["healthy"], found["processes"], found["problems"]) == (True, 2, [])
    assert [(rank["rank"], rank["local_rank"], rank["backend"]) for rank in found["ranks"]] == [
        (0, 0, "gloo"),
        (1, 1, "gloo"),
    ]
    assert len({rank["fingerprint"] for rank in found["ranks"]} - {None}) == 1
    assert found["all_reduce_bytes_per_second"] > 0
    assert all(abs(seconds) < 1 for seconds in found["clock_seconds"])
    assert all(rank["memory_bytes"] > 0 and rank["disk_bytes"] > 0 for rank in found["ranks"])
    assert any("all-reduce:" in line for line in lines)
    assert not (tmp_path / "ckpt").exists()


ELSEWHERE = """
import os, sys
sys.argv += ["--shards", sys.argv.pop()] if os.environ["RANK"] == "1" else ["--shards", sys.argv.pop()[:-2]]
from spkid_dist.commands.doctor import main
main()
"""


@pytest.mark.long  # test_two_processes_see_each_other_and_the_shards
def test_shards_that_one_rank_does_not_see_are_named(shards, tmp_path):
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    done = doctor({}, 2, module=(script, f"{shards}-2"))
    assert done.returncode == 1
    found = json.loads(done.stdout.splitlines()[-1])
    (problem,) = found["problems"]
    assert problem.startswith("rank 1 on ")
    assert f"{shards}-2" in problem
    assert [line for line in done.stderr.splitlines() if line.startswith("spkid: error")] == [
        f"spkid: error: {problem}"
    ]


def test_damaged_shards_are_found_by_one_process(shards, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    (tar,) = copy.glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:600])
    done = subprocess.run(
        [sys.executable, "-m", "spkid_dist", "doctor", "--shards", copy],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["healthy"] is False
    assert tar.name in done.stderr


def vitals(rank, **changes):
    plain = Vitals(
        rank=rank, local_rank=rank, host="a", device="cpu", device_id=None, backend="gloo", threads=1, cores=4,
        memory_bytes=10**10, disk_bytes=10**10, versions={"torch": "2.13.0"}, fingerprint="f" * 16,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "clock", "expected"),
    [
        (
            {"versions": {"torch": "2.11.0"}},
            0.0,
            r"rank 1 on a: torch 2\.11\.0, but 2\.13\.0 on rank 0.*install the same",
        ),
        ({"fingerprint": "e" * 16}, 0.0, r"rank 1 on a: sees another dataset.*\(eeeeeeee, there ffffffff\)"),
        ({}, -3.0, r"rank 1 on a: its clock is -3\.0 s off"),
        ({"problems": ["no disk"]}, 0.0, "rank 1 on a: no disk"),
    ],
)
def test_what_differs_between_ranks_is_wrong(changes, clock, expected):
    (problem,) = find_problems([vitals(0), vitals(1, **changes)], [0.0, clock])
    assert re.match(expected, problem)


def test_two_ranks_on_one_device_are_wrong():
    gpu = {"device": "cuda:0 H100", "device_id": "uuid-1"}
    (problem,) = find_problems([vitals(0, **gpu), vitals(1, **gpu)], [0.0, 0.0])
    assert problem.startswith("ranks 0 and 1 are both on cuda:0")
    assert find_problems([vitals(0, **gpu), vitals(1, **gpu, host="b")], [0.0, 0.0]) == []


def test_waiting_forever_is_no_option():
    from shards import UsageError

    with pytest.raises(UsageError, match="--timeout_minutes 0"):
        DoctorConfig(timeout_minutes=0)
