"""Two hosts with addresses of their own (network namespaces), and a link between them that is cut; `make test-cluster`."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training import OPTIONS, environment, make_shards, result, run, statistics

CONFIG = Path(__file__).parents[2] / "launch/accelerate/nodes.yaml"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT_MINUTES = 0.25
TRAINING = OPTIONS | {"epoch": 60, "patience": 10_000, "checkpoint_steps": 30, "timeout_minutes": TIMEOUT_MINUTES}


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


class Hosts:
    """Two network namespaces, joined by a pair of devices."""

    def __init__(self):
        self.names = [f"spkid-{os.getpid()}-{number}" for number in range(2)]
        self.devices = [f"spk{os.getpid() % 10**7}v{number}" for number in range(2)]

    def up(self):
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.devices[0], "type", "veth", "peer", "name", self.devices[1])
        for name, device, address in zip(self.names, self.devices, ADDRESSES, strict=True):
            ip("link", "set", device, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")

    def down(self):
        for name in self.names:
            for process in ip("netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            ip("netns", "delete", name, check=False)

    def link(self, state):
        ip("-n", self.names[0], "link", "set", self.devices[0], state)

    def train(self, options):
        """Start a training, a process on each host; returns the two launchers."""
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        launch = ("--config_file", CONFIG, "--num_processes", 2, "--main_process_ip", ADDRESSES[0])
        jobs = []
        for rank, (name, device) in enumerate(zip(self.names, self.devices, strict=True)):
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch", *launch]
            command += ["--machine_rank", rank, "-m", "spkid_dist.train", *flags]
            variables = environment() | {"GLOO_SOCKET_IFNAME": device}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            jobs.append(subprocess.Popen([*map(str, command)], env=variables, **pipes))
        return jobs


@pytest.fixture
def hosts():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    found = Hosts()
    try:
        found.up()
        yield found
    finally:
        found.down()


def ended(jobs, seconds=180):
    printed = [job.communicate(timeout=seconds) for job in jobs]
    return [job.returncode for job in jobs], printed


def test_two_hosts_train_and_a_cut_link_ends_in_an_error_on_both(hosts, tmp_path):
    options = TRAINING | make_shards(tmp_path / "c")
    codes, printed = ended(hosts.train(options | {"save_path": tmp_path / "straight"}))
    assert codes == [0, 0], printed
    one = run(options | {"save_path": tmp_path / "one", "epoch": 3})
    assert one.returncode == 0, one.stderr
    for name, values in statistics(tmp_path / "one").items():
        found = statistics(tmp_path / "straight")[name][: len(values)]
        np.testing.assert_allclose(found, values, rtol=1e-3)

    jobs = hosts.train(options | {"save_path": tmp_path / "cut"})
    for line in jobs[0].stdout:
        if line.startswith("VALIDATION: epoch 5 "):
            break
    hosts.link("down")
    began = time.monotonic()
    codes, printed = ended(jobs)
    assert time.monotonic() - began < 60 * TIMEOUT_MINUTES + 30
    for rank, (_, errors) in enumerate(printed):
        assert codes[rank] == 1, errors
        (line,) = (line for line in errors.splitlines() if line.startswith("spkid: error"))
        assert re.search(rf"rank {rank} of 2 on .*: lost the other processes: .*--timeout_minutes 0\.25 \(.+\)", line)
        assert "spkid_dist/train.py" not in errors  # no traceback of ours

    hosts.link("up")
    codes, printed = ended(hosts.train(options | {"save_path": tmp_path / "cut", "resume": "auto"}))
    assert codes == [0, 0], printed
    assert "continuing in epoch" in printed[0][0]
    assert result(tmp_path / "cut") == result(tmp_path / "straight")
