"""Sharding by a Slurm array: the same bytes as one process makes, and a failed task is told and made good by a rerun."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from jobs import command, file_of, folder_bytes, plan_of, stored, write_corpus

from shards.layout import MANIFEST_NAME


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("slurm"))


def by_array(corpus, out, count, *arguments, cluster="local"):
    """The command for an array of `count` tasks; its logs lie beside `out`."""
    flags = ("--slurm_array", count, "--slurm.cluster", cluster, "--slurm.log_dir", out.parent / "logs")
    return command(corpus, out, *flags, *arguments)


@pytest.fixture(scope="module")
def reference(corpus, tmp_path_factory):
    """The bytes that one process makes."""
    out = tmp_path_factory.mktemp("reference") / "out"
    subprocess.run(command(corpus, out), check=True, capture_output=True)
    return folder_bytes(out)


def last_in_storage(corpus):
    """The file of an utterance that only the last task loads: planning samples the first ones."""
    plan, source = plan_of(corpus)
    return file_of(source, stored(plan)[-1])


def test_an_array_makes_the_bytes_of_one_process(corpus, reference, tmp_path):
    done = subprocess.run(by_array(corpus, tmp_path / "out", 2, "--workers", 2), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert folder_bytes(tmp_path / "out") == reference
    summary = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert summary["utterances"] == 120
    again = subprocess.run(by_array(corpus, tmp_path / "out", 2), check=True, capture_output=True, text=True)
    assert "finished already" in again.stdout


@pytest.mark.long
def test_a_tasks_mistake_reaches_the_user_and_a_rerun_does_only_what_is_missing(corpus, reference, tmp_path):
    path, out = last_in_storage(corpus), tmp_path / "out"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        failed = subprocess.run(by_array(corpus, out, 2), capture_output=True, text=True)
    finally:
        path.write_bytes(whole)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert f"1 of 2 tasks failed, the first: task 1 of 2: {path}: truncated" in failed.stderr
    assert f"its log: {tmp_path / 'logs'}" in failed.stderr
    assert not (out / MANIFEST_NAME).exists()
    rerun = subprocess.run(by_array(corpus, out, 2), check=True, capture_output=True, text=True)
    assert "task 1 of 2: done" in rerun.stdout
    assert "task 0 of 2" not in rerun.stdout
    assert folder_bytes(out) == reference


def open_by(path):
    """The other processes that have `path` open."""
    search = ("find", "/proc", "-maxdepth", "3", "-path", "/proc/[0-9]*/fd/*", "-lname", path)
    found = subprocess.run(search, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return {int(line.split("/")[2]) for line in found.stdout.split()} - {os.getpid()}


@pytest.mark.long  # test_a_tasks_mistake_reaches_the_user_and_a_rerun_does_only_what_is_missing
def test_a_killed_task_reaches_the_user_with_its_log(corpus, reference, tmp_path):
    path, out = last_in_storage(corpus), tmp_path / "out"
    whole = path.read_bytes()
    path.unlink()
    os.mkfifo(path)  # the task waits in it until it is killed
    try:
        arguments = by_array(corpus, out, 2)
        # submitit waits 15 s for the result to come over a network's file system
        arguments[2] = f"import submitit; submitit.core.core.Job._results_timeout_s = 0; {arguments[2]}"
        job = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with path.open("wb"):
            (victim,) = open_by(path)
            os.kill(victim, signal.SIGKILL)
            _, error = job.communicate()
    finally:
        path.unlink()
        path.write_bytes(whole)
    assert job.returncode == 1
    assert error.count("\n") == 1
    assert "task 1 of 2: it ended without a result (killed, or out of time or memory); its log ends with" in error
    assert not (out / MANIFEST_NAME).exists()
    subprocess.run(by_array(corpus, out, 2), check=True, capture_output=True)
    assert folder_bytes(out) == reference


SBATCH = """#!/bin/sh
# A cluster of one machine: the tasks of the array run at once, from a copy as Slurm's do: the submitter moves its file.
cp "$1" "$SUBMITTED"
for task in 0 1 2; do
    SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_PROCID=0 SLURM_NTASKS=1 \\
        sh "$SUBMITTED" > /dev/null 2>&1 &
done
echo Submitted batch job 7
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do
    [ "$1" = --unbuffered ] && shift || shift 2
done
exec "$@"
"""


def cluster(folder, sbatch):
    """Environment in which `sbatch` runs the tasks."""
    for name, text in (("sbatch", sbatch), ("srun", SRUN), ("sacct", "#!/bin/sh\necho JobID,State\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SUBMITTED": str(folder / "submitted.sh")}


def test_the_array_is_submitted_to_slurm_with_its_options(corpus, reference, tmp_path):
    flags = ("--slurm.partition", "cpu", "--slurm.timeout_min", 30, "--slurm.sbatch", "account=speech", "qos=long")
    arguments = by_array(corpus, tmp_path / "out", 3, *flags, cluster="slurm")
    done = subprocess.run(arguments, env=cluster(tmp_path, SBATCH), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    submitted = (tmp_path / "submitted.sh").read_text().splitlines()
    options = {line for line in submitted if line.startswith("#SBATCH")}
    asked = ("array=0-2%3", "partition=cpu", "time=30", "cpus-per-task=1", "account=speech", "qos=long")
    assert {f"#SBATCH --{option}" for option in asked} <= options
    assert folder_bytes(tmp_path / "out") == reference


def test_what_sbatch_refuses_is_one_line(corpus, tmp_path):
    environment = cluster(tmp_path, "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    arguments = by_array(corpus, tmp_path / "out", 3, cluster="slurm")
    failed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "sbatch refused the array: sbatch: error: invalid partition; change --slurm.*" in failed.stderr


def test_a_machine_without_slurm_is_named(corpus, tmp_path):
    nothing = os.environ | {"PATH": str(tmp_path)}
    arguments = by_array(corpus, tmp_path / "out", 2, cluster="slurm")
    failed = subprocess.run(arguments, env=nothing, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "try it with --slurm.cluster local" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slurm.partition", "cpu"], "--slurm.*: these flags say how --slurm_array is submitted; give it too"),
        (["--slurm_array", "0"], "--slurm_array 0: expected 1 or more"),
        (["--slurm_array", "2", "--task", "0/2"], "--task and --slurm_array: the array's tasks find their shares"),
        (
            ["--slurm_array", "2", "--skip_bad"],
            "--skip_bad reads the whole corpus first, so it does not go with --slurm",
        ),
        (["--slurm_array", "2", "--slurm.timeout_min", "0"], "--slurm.timeout_min 0: expected 1 or more"),
        (["--slurm_array", "2", "--slurm.mem_gb", "nan"], "--slurm.mem_gb nan: expected more than 0"),
        (["--slurm_array", "2", "--slurm.sbatch", "qos"], "--slurm.sbatch qos: expected NAME=VALUE, such as qos=long"),
    ],
)
def test_flags_that_do_not_go_together_are_used_wrongly(monkeypatch, capsys, arguments, message):
    from spkid_dist.commands import cli

    monkeypatch.setattr(sys, "argv", ["spkid", "shard", "--out", "out", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_without_submitit_the_command_that_installs_it_is_named(corpus, tmp_path):
    arguments = by_array(corpus, tmp_path / "out", 2)
    arguments[2] = f"import sys; sys.modules['submitit'] = None; {arguments[2]}"
    failed = subprocess.run(arguments, capture_output=True, text=True)
    assert failed.returncode == 2
    assert f"and --slurm_array needs it: run {sys.executable} -m pip install 'submitit>=1.5'" in failed.stderr


def test_neither_sharding_nor_submitit_imports_torch():
    code = "import sys, submitit, submitit.core._submit, spkid_dist.commands.shard; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
