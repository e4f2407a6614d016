"""Processes that `spkid bench` starts: their errors are shown, and none outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shards import InputError
from spkid_dist.bench.children import end_tree, last_error, run_alone

LAUNCHER = """\
spkid: error: data/manifest.json: can't read the manifest
E1127 04:00:00 torch/distributed/elastic/multiprocessing/api.py:988] failed (exitcode: 1)
Traceback (most recent call last):
  File "launch.py", line 1, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it printed no reason"),
        ("one\ntwo\n\n", "two"),
        ("Traceback\n  line\nImportError: cannot import name 'x'\n", "ImportError: cannot import name 'x'"),
        (LAUNCHER, "data/manifest.json: can't read the manifest"),
        (LAUNCHER.replace("spkid: error: data", "[rank1]: OSError: data"),
         "[rank1]: OSError: data/manifest.json: can't read the manifest"),
        (
            "ValueError: bad\nsubprocess.CalledProcessError: Command returned non-zero exit status 1.\n",
            "ValueError: bad",
        ),
    ],
)  # fmt: skip
def test_the_line_that_says_most_is_found(text, expected):
    assert last_error(text) == expected


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def module(tmp_path, text):
    """A module in a folder of the path."""
    (tmp_path / "path").mkdir(exist_ok=True)
    (tmp_path / "path" / "child_of_bench.py").write_text(text)
    return "child_of_bench", {"PYTHONPATH": str(tmp_path / "path")}


def test_what_a_process_prints_is_returned_whatever_it_says_beside(work, tmp_path):
    name, path = module(
        tmp_path, "import sys; print('one'); print('two' * 100_000, file=sys.stderr); print(sys.argv[1])"
    )
    assert run_alone(name, "x", work=work, **path) == "one\nx\n"


def test_an_error_is_shown_with_the_file_of_all_that_was_printed(work, tmp_path):
    name, path = module(tmp_path, "print('before')\nfrom shards import nothing")
    with pytest.raises(
        InputError, match=r"ended with exit code 1: ImportError: cannot import name 'nothing'"
    ) as caught:
        run_alone(name, work=work, **path)
    kept = Path(str(caught.value).rpartition(" ")[2])
    text = kept.read_text()
    assert "before" in text
    assert "Traceback" in text
    assert kept.parent == tmp_path  # where the work lies, which is removed


def test_a_process_that_is_killed_is_named(work, tmp_path):
    name, path = module(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(InputError, match="child_of_bench: its process was ended by SIGKILL: it printed no reason"):
        run_alone(name, work=work, **path)


def test_a_process_does_not_know_of_this_launch_and_finds_the_packages(work, tmp_path, monkeypatch):
    for name in ("shards", "spkid_dist"):
        (tmp_path / "users" / name).mkdir(parents=True)
        (tmp_path / "users" / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "users")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    name, path = module(
        tmp_path,
        "import os, shards.errors, spkid_dist.process.threads; print('RANK' in os.environ, os.environ['TMPDIR'])",
    )
    assert (
        run_alone(name, work=work, PYTHONPATH=path["PYTHONPATH"] + os.pathsep + str(Path(__file__).parent))
        == f"False {work}\n"
    )


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print("up", flush=True)
time.sleep(300)
"""


def test_a_tree_of_processes_is_ended_also_where_one_ignores_it(monkeypatch):
    from spkid_dist.bench import children

    monkeypatch.setattr(children, "ENDING_SECONDS", 0.5)
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) == 1
    began = time.monotonic()
    end_tree(process)
    assert process.returncode is not None
    assert not psutil.wait_procs(tree, 5)[1]
    assert time.monotonic() - began < 10
    process.stdout.close()
