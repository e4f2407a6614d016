"""The batch files of launch/slurm on a real Slurm of two nodes; `make test-cluster`."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import two_nodes
from conftest import FSDD
from training import OPTIONS, make_shards, result, run, statistics

BATCH = Path(__file__).parents[2] / "launch/slurm"
JOB_SECONDS = 240
TRAINING = OPTIONS | {"epoch": 40, "patience": 10_000, "checkpoint_steps": 30}


class Cluster:
    """Two nodes, and the folder in which jobs are submitted."""

    def __init__(self, folder, work):
        self.folder, self.work = folder, work
        self._before = set(self._all())

    def submit(self, *arguments, **variables):
        """Submit a batch file; returns the job's number."""
        environment = two_nodes.environment(self.folder) | variables
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["sbatch", "--parsable", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=self.work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def slurm(self, *command):
        return two_nodes.slurm(self.folder, *command)

    def states(self):
        """Job -> state, of all jobs since; a task of an array is ID_TASK."""
        return {job: state for job, state in self._all().items() if job not in self._before}

    def _all(self):
        lines = self.slurm("squeue", "-h", "-t", "all", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for(self, holds, what):
        deadline = time.monotonic() + JOB_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                pytest.fail(f"after {JOB_SECONDS} s not {what}\n{self.slurm('squeue', '-t', 'all')}\n{self.logs()}")
            time.sleep(0.1)

    def wait_for_all(self):
        """Wait until no job is left, and all have ended well."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
        self.wait_for(lambda: set(self.states().values()) <= over, "all jobs ended")
        assert set(self.states().values()) == {"COMPLETED"}, f"{self.states()}\n{self.logs()}"

    def wait_for_line(self, job, pattern):
        """Wait until the job's log has a line."""
        log = self.work / f"spkid-train-{job}.log"
        self.wait_for(lambda: log.exists() and re.search(pattern, log.read_text()), f"{pattern} in {log.name}")

    def log(self, job):
        return (self.work / f"spkid-train-{job}.log").read_text()

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.work.glob("*.log"))


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    reason = two_nodes.missing()
    if reason:
        pytest.skip(f"no Slurm: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        two_nodes.start(folder)
        yield folder
    finally:
        two_nodes.stop(folder)


@pytest.fixture
def cluster(daemons, tmp_path):
    yield Cluster(daemons, tmp_path)
    two_nodes.slurm(daemons, "scancel", "--full", "-u", "root")
    two_nodes.slurm(daemons, "scontrol", "update", "nodename=" + ",".join(two_nodes.NODES), "state=resume")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("corpus") / "c")


def flags(options):
    return [part for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def straight(daemons, shards, tmp_path_factory):
    """A training over both nodes without an interruption."""
    work = tmp_path_factory.mktemp("straight")
    cluster = Cluster(daemons, work)
    cluster.submit("--nodes", 2, BATCH / "train.sbatch", *flags(TRAINING | shards), f"--save_path={work}/ckpt")
    cluster.wait_for_all()
    return work / "ckpt"


def train(cluster, shards):
    return cluster.submit("--nodes", 2, BATCH / "train.sbatch", *flags(TRAINING | shards))


def test_an_array_of_tasks_makes_the_bytes_of_one_process(cluster, synthetic, tmp_path):
    corpus = FSDD if (FSDD / "mcp").is_dir() else synthetic
    options = ["--db_path", corpus / "mcp", "--list", corpus / "cfg/all.test", "--ext", "mcp", "--shard_bytes", 300_000]
    options += ["--spk2idx", corpus / "cfg/spk2idx.json", "--block_frames", 500]
    subprocess.run(
        [
            *map(
                str,
                (
                    sys.executable,
                    "-c",
                    "from spkid_dist.commands.cli import main; main()",
                    "shard",
                    *options,
                    "--out",
                    tmp_path / "one",
                ),
            )
        ],
        check=True,
    )
    cluster.submit("--array", "0-2", "--cpus-per-task", 1, BATCH / "shard_array.sbatch", *options, "--out", "out")
    cluster.wait_for_all()
    one, out = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "out"))
    tars = {name for name in one if name.endswith((".tar", ".npy")) or name == "manifest.json"}
    assert len(tars) > 3
    assert {name: out.get(name) for name in tars} == {name: one[name] for name in tars}


def test_two_nodes_learn_what_one_process_learns(straight, shards, tmp_path):
    done = run(TRAINING | shards | {"save_path": tmp_path / "one", "epoch": 3})
    assert done.returncode == 0, done.stderr
    expected, found = statistics(tmp_path / "one"), statistics(straight)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name][: len(values)], values, rtol=1e-3)


def test_a_process_is_started_for_each_gpu_that_slurm_grants(cluster, shards):
    # Slurm counts them, but there are none: the variable makes CPUs stand in for them.
    options = TRAINING | shards | {"epoch": 1}
    variables = {"ACCELERATE_USE_CPU": "true"}
    submit = ("--nodes", 2, "--gpus-per-node", 2, BATCH / "train.sbatch", *flags(options))
    job = cluster.submit(*submit, **variables)
    cluster.wait_for_all()
    assert "4 process(es) on cpu" in cluster.log(job)


def test_a_signal_before_the_time_is_over_requeues_and_changes_nothing(cluster, straight, shards, tmp_path):
    job = train(cluster, shards)
    cluster.wait_for_line(job, "VALIDATION: epoch 5 ")
    cluster.slurm("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@180 does
    cluster.wait_for_all()
    log = cluster.log(job)
    assert "stopped by the file STOP in epoch" in log
    assert "back into the queue" in log
    assert "continuing in epoch" in log
    assert result(tmp_path / "ckpt") == result(straight)


def test_a_node_that_dies_is_survived(cluster, straight, shards, tmp_path):
    job = train(cluster, shards)
    cluster.wait_for_line(job, "VALIDATION: epoch 5 ")
    two_nodes.kill_node(cluster.folder, two_nodes.NODES[1])
    cluster.wait_for(lambda: cluster.states()[job] != "RUNNING", "the job has ended")
    two_nodes.start_node(cluster.folder, two_nodes.NODES[1])
    cluster.wait_for_all()
    assert "continuing in epoch" in cluster.log(job)
    assert result(tmp_path / "ckpt") == result(straight)


def test_a_training_that_fails_at_once_is_not_repeated(cluster, shards):
    job = cluster.submit(BATCH / "train.sbatch", *flags(shards), "--lr", -1)
    cluster.wait_for(lambda: cluster.states()[job] not in ("PENDING", "RUNNING", "COMPLETING"), "the job has ended")
    assert cluster.states()[job] == "FAILED"
    assert "--lr -1.0: expected more than 0" in cluster.log(job)
    assert "back into the queue" not in cluster.log(job)


def test_a_sweep_ends_with_one_table(cluster, shards, tmp_path):
    options = OPTIONS | shards | {"epoch": 2, "save_path": "sweep"}
    options = {name: value for name, value in options.items() if name not in ("hsize", "in_frames")}
    sizes = {"HSIZES": "8 16", "CONTEXTS": "3 5"}
    cluster.submit("--array", "0-3", BATCH / "sweep.sbatch", *flags(options), **sizes)
    cluster.wait_for_all()
    header, *rows = (line.split("\t") for line in (tmp_path / "sweep/results.tsv").read_text().splitlines())
    assert header[:3] == ["training", "hsize", "in_frames"]
    assert sorted(row[0] for row in rows) == [f"hsize{h}-frames{c}" for h in (16, 8) for c in (3, 5)]
    losses = [float(row[header.index("va_loss")]) for row in rows]
    assert losses == sorted(losses)


def test_a_sweep_that_is_stopped_goes_on_and_is_in_the_table(cluster, shards, tmp_path):
    options = {name: value for name, value in (TRAINING | shards).items() if name not in ("hsize", "in_frames")}
    sizes = {"HSIZES": "8", "CONTEXTS": "5"}
    submit = ("--array", "0-0", BATCH / "sweep.sbatch", *flags(options | {"save_path": "sweep"}))
    job = cluster.submit(*submit, **sizes)
    log = tmp_path / f"spkid-sweep-{job}_0.log"
    cluster.wait_for(lambda: log.exists() and "VALIDATION: epoch 5 " in log.read_text(), "five epochs trained")
    cluster.slurm("scancel", "--signal=USR1", f"{job}_0")  # to the step, as --signal=USR1@180 does
    cluster.wait_for_all()
    assert "stopped by SIGUSR1 in epoch" in log.read_text()
    assert "continuing in epoch" in log.read_text()
    header, row = (line.split("\t") for line in (tmp_path / "sweep/results.tsv").read_text().splitlines())
    assert dict(zip(header, row, strict=True))["epochs"] == "40"


def test_a_sweep_of_another_size_is_refused(cluster, shards):
    job = cluster.submit("--array", "0-1", BATCH / "sweep.sbatch", *flags(shards), "--save_path", "sweep")
    cluster.wait_for(lambda: cluster.states().get(f"{job}_1") == "FAILED", "the task has failed")
    assert "submit with --array 0-5" in cluster.logs()
