"""Memory that there is not: refused before a training begins, and one line with the option to change where it runs out."""

import errno
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from training import OPTIONS, command, environment

from shards import resources
from shards.errors import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.config.network import NetworkOptions
from spkid_dist.process.memory import explain_memory, free_memory, is_out_of_memory
from spkid_dist.train import train_model
from spkid_dist.training.footprint import footprint

NETWORK = NetworkOptions(input_dim=20, in_frames=10, num_spks=1000, hsize=500)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"memory.max": "5000000", "memory.current": "2000000"}, 3_000_000),
        ("0::/slurm/job", {"slurm/memory.max": "5000000", "slurm/memory.current": "2000000"}, 3_000_000),
        (
            "0::/",
            {
                "memory.max": "5000000",
                "memory.current": "4900000",
                "memory.stat": "anon 900000\ninactive_file 1000000\nactive_file 3000000",
            },
            4_100_000,
        ),
        (
            "7:memory:/job\n0::/",
            {
                "memory/job/memory.limit_in_bytes": "5000000",
                "memory/job/memory.usage_in_bytes": "4000000",
                "memory/job/memory.stat": "inactive_file 7\ntotal_inactive_file 1000000\ntotal_active_file 0",
            },
            2_000_000,
        ),
        ("0::/", {"memory.max": "max", "memory.current": "2000000"}, None),
        ("0::/job", {}, None),
    ],
)
def test_what_a_control_group_grants_is_the_memory_but_for_what_files_have_there(
    monkeypatch, tmp_path, groups, files, expected
):
    (tmp_path / "cgroup").write_text(groups + "\n")
    monkeypatch.setattr(resources, "PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "GROUPS_ROOT", tmp_path / "root")
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    if expected is None:
        assert free_memory() > 5_000_000
    else:
        assert [free_memory(), free_memory(processes=2)] == [expected, expected // 2]


@pytest.mark.parametrize(
    ("optimizer", "momentum", "copies"), [("adam", 0.5, 4), ("adamw", 0.0, 4), ("sgd", 0.5, 3), ("sgd", 0.0, 2)]
)
@pytest.mark.parametrize(("average", "more", "more_written"), [("none", 0, 0), ("epochs:2", 1, 0), ("ema:0.9", 1, 1)])
def test_the_network_is_counted_with_what_goes_with_it(optimizer, momentum, copies, average, more, more_written):
    config = TrainConfig(optimizer=optimizer, momentum=momentum, average=average)
    found = footprint(config, NETWORK, pools=0, world_size=1)
    assert found.network == (copies + more) * 4 * NETWORK.num_parameters
    assert found.checkpoint == (copies - 1 + more_written) * 4 * NETWORK.num_parameters


def test_a_batch_is_counted_by_the_part_that_a_process_takes_at_a_time():
    per_window = 4 * (200 + 3 * 500 + 2 * 1000)
    whole = footprint(TrainConfig(batch_size=1000), NETWORK, pools=7, world_size=1)
    assert (whole.batch, whole.pools) == (1000 * per_window, 7)
    split = footprint(TrainConfig(batch_size=1000, accumulation=4), NETWORK, pools=7, world_size=3)
    assert split.batch == 84 * per_window  # of 334 windows


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"hsize": 300_000}, "give a smaller --hsize or --num_layers$"),
        ({"batch_size": 10**9}, r"give a smaller --batch_size \(or --accumulation 4\)$"),
        ({"optimizer": "sgd", "hsize": 300_000}, "give a smaller --hsize"),
    ],
)
def test_a_training_that_cannot_fit_is_refused_before_it_makes_its_network(
    options, flag, shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("spkid_dist.training.footprint.free_memory", lambda _: 10**10)
    config = TrainConfig(**OPTIONS | shards | {"save_path": tmp_path / "ckpt"} | options)
    with pytest.raises(UsageError, match=flag):
        train_model(config)
    assert not list((tmp_path / "ckpt").glob("*_weights.ckpt"))


def test_pools_are_counted_and_processes_share_the_machine(monkeypatch):
    monkeypatch.setattr("spkid_dist.training.footprint.free_memory", lambda processes: 10**9 // processes)
    found = replace(footprint(TrainConfig(), NETWORK, pools=400_000_000, world_size=1), network=0, checkpoint=0)
    found.check(CPU, 2)
    with pytest.raises(
        UsageError, match=r"at least 0\.4 GB per process, .*may take 0\.3 GB.*give a smaller --shuffle_windows$"
    ):
        found.check(CPU, 3)


def test_a_limit_of_the_shell_is_the_memory():
    program = "import resource; from spkid_dist.process.memory import free_memory; print(free_memory())"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v 4000000; exec {sys.executable} -c '{program}'"], capture_output=True, text=True
    )
    assert 0 < int(done.stdout) < 4_000_000 * 1024
    assert free_memory(4) == pytest.approx(free_memory() / 4, rel=0.2)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_whoever_says_it_an_allocation_that_fails_is_one_line_with_the_option(error):
    assert is_out_of_memory(error)
    with (
        pytest.raises(InputError, match=r"^not enough memory \(\w+: .*\); give less$") as found,
        explain_memory(lambda: "give less"),
    ):
        raise error
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no such file"), KeyError("a")])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)) as found, explain_memory(lambda: "give less"):
        raise error
    assert found.value is error


def test_torch_and_numpy_really_say_so():
    for allocate in (lambda: torch.empty(2**50), lambda: __import__("numpy").empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as found:
            allocate()
        assert is_out_of_memory(found.value)


LIMITED = """
import resource, sys, psutil
from spkid_dist.process import memory
from spkid_dist.training import footprint, {what}
footprint.free_memory = lambda _: 10**15  # as where another process takes the memory after the check

def limit(*arguments, __call={what}.{function}, **options):
    here = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (here + 450_000_000, resource.RLIM_INFINITY))
    return __call(*arguments, **options)

{what}.{function} = limit
from spkid_dist.train import main
sys.modules["spkid_dist.train"].{function} = limit
main()
"""


def run_limited(tmp_path, what, function, options):
    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(what=what, function=function))
    words = command(options, module=(str(script),))
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "flag"),
    [({"hsize": 6000}, "--hsize or --num_layers"), ({"batch_size": 1700, "hsize": 2000, "num_layers": 40}, "--")],
)
def test_an_allocation_that_fails_in_a_training_is_one_line(options, flag, shards, tmp_path):
    done = run_limited(
        tmp_path, "learning", "make_optimizer", OPTIONS | shards | {"save_path": tmp_path / "ckpt"} | options
    )
    assert done.returncode == 1, done.stderr[-2000:]
    print(done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("spkid: error: not enough memory (")
    assert f"give a smaller {flag}" in line
