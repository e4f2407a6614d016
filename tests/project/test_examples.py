"""Each example runs as its README says, on the small corpus of real speech."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shards import ShardDataset

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FIGURES = re.compile(r"validation loss ([\d.]+), frame accuracy ([\d.]+)")
NUMBER = re.compile(r"[\d.,]*\d")


def run(*command):
    """Run a command in the repository's folder, on CPUs; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PATH": path}
    words = [*map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def own_shards(digits, tmp_path_factory):
    """The folder in which `own_source.py` has made two datasets, and what it printed."""
    out = tmp_path_factory.mktemp("own")
    lists = (digits / "cfg/all.train", digits / "cfg/all.test")
    return out, run(sys.executable, EXAMPLES / "own_source.py", digits / "wav", *lists, out)


def test_a_source_of_ones_own_is_sharded_by_worker_processes(own_shards):
    out, printed = own_shards
    training, test = (ShardDataset(out / part).manifest for part in ("train", "test"))
    assert (training.num_utterances, test.num_utterances) == (180, 60)
    assert training.speakers == test.speakers
    assert len(training.shards) > 1  # so that both workers had something to do
    assert f"180 utterances, {training.num_frames} frames of 20 features, 6 speakers" in printed


def last_figures(printed):
    """The last validation loss and frame accuracy that a program printed."""
    loss, accuracy = FIGURES.findall(printed)[-1]
    return float(loss), float(accuracy)


def test_a_mixture_of_two_datasets_is_learnt(own_shards):
    out, _ = own_shards
    printed = run(sys.executable, EXAMPLES / "mixture.py", out / "train", out / "test")
    first, last = (float(loss) for loss in re.findall(r"mean loss ([\d.]+)", printed))
    assert last < first


@pytest.mark.long
def test_a_ddp_loop_learns_by_two_processes(own_shards):
    out, _ = own_shards
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    printed = run(*launch, EXAMPLES / "ddp_loop.py", out / "train", out / "test")
    loss, accuracy = last_figures(printed)
    assert printed.count("epoch") == 5
    assert loss < 0.5
    assert accuracy > 0.8


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_lightning_learns_what_the_ddp_loop_learns(own_shards, processes):
    if find_spec("pytorch_lightning") is None:
        pytest.skip("pytorch_lightning is not installed (make test-frameworks)")
    out, _ = own_shards
    sets = (out / "train", out / "test")
    printed = run(sys.executable, "-W", "ignore", EXAMPLES / "lightning_loop.py", *sets, "--processes", processes)
    alone = run(sys.executable, "-m", "torch.distributed.run", "--standalone", EXAMPLES / "ddp_loop.py", *sets)
    assert last_figures(printed) == pytest.approx(last_figures(alone), abs=0.02)


@pytest.mark.long
def test_recordings_become_an_onnx_file_that_names_the_same_speakers(tmp_path):
    printed = run("sh", EXAMPLES / "digits_end_to_end.sh", tmp_path / "out")
    assert "the ONNX file names the same speakers as spkid score" in printed
    lines = [line.split("\t") for line in (tmp_path / "out/onnx.tsv").read_text().splitlines()]
    wrong = sum(key.split("/")[1] != speaker for key, speaker, _ in lines)
    assert len(lines) == 60
    assert wrong <= 8


def code_cells():
    """The code of each cell of the notebook, and what it printed when it was stored."""
    notebook = json.loads((EXAMPLES / "first_look.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            streams = [output for output in cell["outputs"] if output["output_type"] == "stream"]
            assert all(output["output_type"] in ("stream", "display_data") for output in cell["outputs"])
            yield "".join(cell["source"]), "".join("".join(output["text"]) for output in streams)


def without_numbers(text):
    """The text with 0 for each number, and without the name of the temporary folder."""
    return NUMBER.sub("0", re.sub(r"\S*/first_look_\w+", "OUT", text))


def test_the_notebook_runs_and_its_stored_results_are_of_its_code(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names = {}
    with matplotlib.rc_context():
        for code, stored in code_cells():
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, "first_look.ipynb", "exec"), names)  # noqa: S102 - it is our own
            if "train_model(" not in code and "score_utterances(" not in code:
                assert without_numbers(printed.getvalue()) == without_numbers(stored)
        pyplot.close("all")
    assert names["trained"].va_acc > 0.9
    assert names["wrong"] <= 5


def test_readme_names_each_example():
    named = set(re.findall(r"^\| `(\S+)` \|", (EXAMPLES / "README.md").read_text(), re.M))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb")}
