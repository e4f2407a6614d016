"""Kernels are compiled for whoever runs them, also where nothing can be kept on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = "import numpy, shards.kernels as k; print(k.mix(numpy.uint64(1))); print(len(k.mix.stats.cache_path or ''))"
MIXED = "6238072747940578789"  # splitmix64's finaliser of 1
OTHER_USER = 54321  # of no account: its home is not known


@pytest.fixture
def reader(tmp_path):
    """Run a program by a user who may read the sources, and write into the current folder alone."""
    sources, folder = tmp_path / "sources", tmp_path / "mine"
    shutil.copytree(ROOT / "shards", sources / "shards", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir()
    folder.chmod(0o777)
    as_other = []
    if os.geteuid() == 0:  # whom no permission stops
        as_other = ["setpriv", "--reuid", str(OTHER_USER), "--regid", str(OTHER_USER), "--clear-groups"]
        for path in (tmp_path, *tmp_path.parents[:3]):  # a worker of xdist has a folder of its own
            path.chmod(0o755)
    else:
        (sources / "shards").chmod(0o500)

    def run(**home):
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
        }
        command = [*as_other, sys.executable, "-B", "-c", PROGRAM]
        environment = kept | {"PYTHONPATH": str(sources)} | home
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split(), sorted(path.name for path in folder.iterdir())

    return run, folder


def test_kernels_run_where_no_folder_can_be_written(reader):
    run, _ = reader
    assert run(HOME="/nonexistent") == ([MIXED, "0"], [])


@pytest.mark.skipif(os.geteuid() != 0, reason="this user has a home folder; root may become one without")
def test_a_user_without_a_home_gets_no_folder_in_its_place(reader):
    run, _ = reader
    assert run() == ([MIXED, "0"], [])


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_kernels_are_kept_where_the_user_says(reader, name):
    run, folder = reader
    (mixed, path_length), names = run(**{name: str(folder)})
    assert mixed == MIXED
    assert int(path_length) > 0
    assert len(names) == 1
