"""The packages are found whatever folders the user has, however they are installed, and where they are not."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import make_corpus

ROOT = Path(__file__).parents[2]
PACKAGES = ("shards", "spkid_dist")
SPKID = ("-c", "from spkid_dist.commands.cli import main; main()")  # what the console command is
ACCELERATE = (
    "-m",
    "accelerate.commands.launch",
    "--num_processes",
    "1",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
)
README_IMPORTS = "from shards import FmatrixSource, Layout, convert, find_speakers, make_plan, read_list"
TOY = ("--frames", "500", "--speakers", "2", "--mean_frames", "50", "--repeats", "1", "--buffer_bytes", "100000")


def python(*arguments, cwd, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONDONTWRITEBYTECODE": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: the datasets lie in `shards/`, and something in `spkid_dist/`."""
    folder = tmp_path_factory.mktemp("users")
    corpus = make_corpus(folder / "corpus", [9, 12, 7, 9])
    shutil.copytree(corpus.dataset.folder, folder / "shards" / "train")
    (folder / "spkid_dist").mkdir()
    (folder / "spkid_dist" / "notes.txt").touch()
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what is installed, in which a build may leave files."""
    copy = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_nothing.py").touch()
    return copy


def build(kind, sources, out):
    """The wheel that pip makes of the sources and installs: `kind` is "wheel", or "editable"."""
    program = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    done = python("-W", "ignore", "-c", program, out, cwd=sources)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_an_editable_install_is_a_folder_to_search_and_no_import_hook(sources, tmp_path):
    with build("editable", sources, tmp_path) as wheel:
        outside = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert [Path(name).suffix for name in outside] == [".pth"]
        assert wheel.read(outside[0]).decode().strip() == str(sources)


def test_a_wheel_holds_the_packages_alone_and_is_found_before_folders(sources, folder, tmp_path):
    with build("wheel", sources, tmp_path) as wheel:
        assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == set(PACKAGES)
        wheel.extractall(tmp_path / "site")
    program = f"{README_IMPORTS}; import shards, spkid_dist; print(shards.__file__, spkid_dist.__file__)"
    done = python("-c", program, cwd=folder, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout.split() == [f"{tmp_path}/site/{name}/__init__.py" for name in PACKAGES], done.stderr


@pytest.mark.parametrize(
    "entry",
    [
        (*SPKID, "info", "shards/train"),
        (*SPKID, "shard", "--db_path", "corpus/mcp", "--list", "corpus/cfg/all.train", "--spk2idx", "corpus/cfg/spk2idx.json",
         "--shard_bytes", "1", "--workers", "2", "--out", "shards/again"),
        ("-m", "spkid_dist.train", "--help"),
        pytest.param(("-m", "spkid_dist.score", "--help"), marks=pytest.mark.long),
        pytest.param(("-m", "spkid_dist", "doctor", "--shards", "shards/train"), marks=pytest.mark.long),
        ("-m", "spkid_dist", "bench", "limits", *TOY),
        pytest.param(("-m", "spkid_dist.bench.first_batch", "shards/train", "start", "3", "2"), marks=pytest.mark.long),
        pytest.param((*ACCELERATE, "-m", "spkid_dist.train", "--help"), marks=pytest.mark.long),
        ("-c", README_IMPORTS),
        ("-c", "from spkid_dist import ScoreConfig, TrainConfig, WindowDataset, score_utterances, train_model"),
    ],
    ids=lambda entry: " ".join(word for word in entry if len(word) < 40)[:60],
)  # fmt: skip
def test_folders_named_like_the_packages_hide_nothing(entry, folder):
    done = python(*entry, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("what", ["a folder", "a module"])
def test_a_package_of_the_user_that_hides_ours_is_named_in_one_line(what, tmp_path):
    other = tmp_path / ("shards/__init__.py" if what == "a folder" else "shards.py")
    other.parent.mkdir(exist_ok=True)
    other.touch()
    done = python("-m", "spkid_dist.train", "--help", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"Python finds {other} first; rename that, or start from another folder" in done.stderr


@pytest.mark.long
def test_a_wheel_installs_in_a_fresh_environment_and_works_from_another_folder(
    sources, folder, not_installed, tmp_path
):
    build("wheel", sources, tmp_path).close()
    (wheel,) = tmp_path.glob("*.whl")
    assert python("-m", "venv", "--without-pip", tmp_path / "fresh", cwd=tmp_path).returncode == 0
    (site,) = (tmp_path / "fresh/lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(not_installed["PYTHONPATH"] + "\n")
    pip = ("-m", "pip", "--python", tmp_path / "fresh/bin/python", "install", "--quiet", "--no-deps", "--no-index")
    done = python(*pip, wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lists = ("--list", "corpus/cfg/all.train", "--spk2idx", "corpus/cfg/spk2idx.json")
    for words in (
        ("version",),
        ("help", "train"),
        ("shard", "--db_path", "corpus/mcp", *lists, "--out", tmp_path / "data"),
        ("train", "--tr_shards", tmp_path / "data", "--va_shards", tmp_path / "data", "--in_frames", "3", "--epoch", "1",
         "--batch_size", "8", "--save_path", tmp_path / "ckpt"),
    ):  # fmt: skip
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        command = [tmp_path / "fresh/bin/spkid", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ckpt/train.opts").exists()


@pytest.fixture(scope="module")
def not_installed(tmp_path_factory):
    """Variables of a Python that has all that is installed here, but not this project."""
    site = tmp_path_factory.mktemp("site")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"spkid_dist|__editable__", path.name):
            (site / path.name).symlink_to(path)
    return {"PYTHONPATH": str(site)}


@pytest.mark.parametrize(
    "words", [pytest.param(("doctor",), marks=pytest.mark.long), ("bench", "limits", *TOY)], ids=lambda words: words[0]
)
def test_sources_run_without_an_installation(words, not_installed, tmp_path):
    done = python("-S", "-m", "spkid_dist", *words, cwd=ROOT, TMPDIR=str(tmp_path), **not_installed)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    versions = found["ranks"][0]["versions"] if "ranks" in found else found["machine"]
    assert versions["spkid-dist"] == "not installed"
    assert re.match(r"\d+\.\d+", versions["torch"])


def test_ci_and_the_makefile_take_the_promised_versions_of_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [word.rpartition(" ")[2] for word in project["classifiers"] if re.search(r"Python :: 3\.", word)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert f"Python {', '.join(promised[:-1])} or {promised[-1]} is needed" in (ROOT / "Makefile").read_text()
    first, last = promised[0], promised[-1]
    assert project["requires-python"] == f">={first},<3.{int(last.partition('.')[2]) + 1}"
