"""A process uses the CPUs that it was granted, and no more threads than those."""

import json
import os
import subprocess
import sys

import pytest
import torch

from shards import resources
from shards.resources import available_cpus
from spkid_dist.config import IndexConfig, VerifyConfig
from spkid_dist.process.threads import torch_threads

ALL = len(os.sched_getaffinity(0))


@pytest.fixture
def granted(monkeypatch, tmp_path):
    """Give this process control groups: granted("0::/job", {"job/cpu.max": "100000 100000"})."""

    def grant(groups, files, affinity=64):
        (tmp_path / "cgroup").write_text(groups + "\n")
        monkeypatch.setattr(resources, "PROCESS_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(resources, "GROUPS_ROOT", tmp_path / "root")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return grant


V1 = {"cpu.cfs_quota_us": "350000", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job", {"job/cpu.max": "400000 100000"}, 4),
        ("0::/job", {"job/cpu.max": "max 100000"}, 64),
        ("0::/job", {"job/cpu.max": "250000 100000"}, 2),  # the half would be waited for
        ("0::/job", {"job/cpu.max": "50000 100000"}, 1),
        ("0::/slice/job/step", {"slice/cpu.max": "300000 100000", "slice/job/step/cpu.max": "max 100000"}, 3),
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # a container with a namespace of its own
        ("0::/docker/1234", {"cpu.max": "200000 100000"}, 2),  # and one that sees the host's name of its group
        ("5:cpu,cpuacct:/job\n0::/", {f"cpu,cpuacct/job/{name}": text for name, text in V1.items()}, 3),
        ("5:cpuacct,cpu:/job", {f"cpu/job/{name}": text for name, text in V1.items()}, 3),
        ("1:cpu:/docker/1234", {f"cpu/{name}": text for name, text in V1.items()}, 3),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("3:cpuset:/job\n2:cpuacct:/job", {f"cpuset/job/{name}": text for name, text in V1.items()}, 64),
        ("0::/job", {}, 64),
        ("0::/job", {"job/cpu.max": ""}, 64),
    ],
)
def test_the_quota_of_a_control_group_and_of_those_around_it_counts(granted, groups, files, expected):
    granted(groups, files)
    assert available_cpus() == expected


def test_the_smaller_of_affinity_and_quota_counts(granted):
    granted("0::/", {"cpu.max": "800000 100000"}, affinity=3)
    assert available_cpus() == 3


def test_a_system_without_control_groups_has_its_cpus(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "PROCESS_GROUPS", tmp_path / "none")
    assert available_cpus() == ALL


def test_commands_take_as_many_workers_as_there_are_cpus(granted):
    granted("0::/", {"cpu.max": "500000 100000"})
    assert VerifyConfig(folder="data").workers == IndexConfig(folder="data").workers == 5


@pytest.fixture
def four_threads(monkeypatch):
    """torch has chosen four threads, and nobody said how many; as it was afterwards."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(
    ("quota", "variables", "expected"),
    [
        ("200000", {}, 2),
        ("800000", {}, 4),
        ("200000", {"OMP_NUM_THREADS": "4"}, 4),  # who said so may have reasons
        ("400000", {"LOCAL_WORLD_SIZE": "2"}, 2),
        ("100000", {"LOCAL_WORLD_SIZE": "2"}, 1),
    ],
)
def test_torch_has_no_more_threads_than_cpus_unless_told(granted, monkeypatch, quota, variables, expected):
    granted("0::/", {"cpu.max": f"{quota} 100000"})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with torch_threads() as count:
        assert count == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_threads_are_put_back_after_an_error_and_after_a_change_within():
    with pytest.raises(KeyError), torch_threads(2):
        torch.set_num_threads(3)
        raise KeyError
    assert torch.get_num_threads() == 4


PROGRAM = """
import json
import torch
from shards.resources import available_cpus
from spkid_dist.process.threads import torch_threads
own = torch.get_num_threads()
with torch_threads() as count:
    print(json.dumps([available_cpus(), count, own]))
"""


@pytest.mark.skipif(ALL < 2, reason="needs two CPUs")
@pytest.mark.parametrize("threads", [None, "2"])
def test_taskset_limits_a_process_and_its_threads(threads):
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables |= {} if threads is None else {"OMP_NUM_THREADS": threads}
    first = min(os.sched_getaffinity(0))
    printed = subprocess.check_output(["taskset", "-c", str(first), sys.executable, "-c", PROGRAM], env=variables)
    cpus, count, own = json.loads(printed)
    # What was asked for is torch's to decide: on a busy machine it may take 1 thread where OMP_NUM_THREADS says 2.
    assert (cpus, count) == (1, 1 if threads is None else own)
    assert own <= int(threads or ALL)


@pytest.mark.usefixtures("four_threads")
def test_a_training_takes_no_more_threads_than_it_was_granted(granted, monkeypatch, shards, tmp_path, capsys):
    from spkid_dist import TrainConfig, train_model

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    granted("0::/", {"cpu.max": "300000 100000"})
    # Tests run side by side: other programs use the CPUs.
    monkeypatch.setattr("spkid_dist.train.leave_cpus_to_others", lambda *_: None)
    train_model(TrainConfig(**shards, save_path=tmp_path / "ckpt", epoch=1, batch_size=500, hsize=8))
    assert ", 3 threads per process" in capsys.readouterr().out
    assert torch.get_num_threads() == 4
