"""Kernels are compiled for whoever runs them, also where nothing can be kept on disk."""

import os
import pickle
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import xxhash

from shards.compiled import compiled
from shards.kernelfiles import others_may_write

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
    as_other = []
    if os.geteuid() == 0:  # whom no permission stops
        os.chown(folder, OTHER_USER, OTHER_USER)
        as_other = ["setpriv", "--reuid", str(OTHER_USER), "--regid", str(OTHER_USER), "--clear-groups"]
        for path in (tmp_path, *tmp_path.parents[:3]):  # a worker of xdist has a folder of its own
            if path.name.startswith(("pytest-", "popen-")) or path == tmp_path:  # and not /tmp itself
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


KERNEL = "def add(a, b):\n    return a + b + %d\n"


@pytest.fixture
def kernel_in(tmp_path):
    """Import a module of one function from a folder of its own, and compile it; as often as one likes."""

    def compile_it(added=0):
        source = tmp_path / "code" / "kernel_of_a_test.py"
        source.parent.mkdir(exist_ok=True)
        source.write_text(KERNEL % added)
        module = types.ModuleType(source.stem)
        exec(compile(source.read_text(), str(source), "exec"), module.__dict__)  # noqa: S102 - each time a new function
        return compiled(module.add)

    return compile_it, tmp_path / "code" / "__pycache__"


def counts(kernel):
    return sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values())


def test_a_compiled_kernel_is_kept_and_used_again(kernel_in):
    compile_it, folder = kernel_in
    first, second = compile_it(), compile_it()
    assert (first(1, 2), counts(first)) == (3, (0, 1))
    (kept,) = folder.glob("*.kernel")
    assert (second(1, 2), counts(second)) == (3, (1, 0))
    assert (second(1.5, 2), counts(second)) == (3.5, (1, 1))
    assert len(list(folder.iterdir())) == 2
    changed = compile_it(added=1)
    assert (changed(1, 2), counts(changed)) == (4, (0, 1))  # not what was kept of other sources
    assert kept.exists()
    changed._cache.flush()
    assert list(folder.iterdir()) == []


DAMAGES = {
    "empty, as a power cut leaves it": lambda _: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "cut within the digest": lambda data: data[:7],
    "garbage": lambda _: bytes(range(256)) * 4,
    "one flipped bit of the code": lambda data: data[:-100] + bytes([data[-100] ^ 4]) + data[-99:],
    "something that unpickles": lambda _: pickle.dumps(("another", "thing")),
    "of another kernel": lambda data: digest(data[16:24] + b"x" + data[25:]) + data[16:24] + b"x" + data[25:],
    "a sound file with other contents": lambda data: digest(other := data[:300][16:] + pickle.dumps(3)) + other,
}


def digest(content):
    return xxhash.xxh3_128_digest(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_kernel_is_replaced(kernel_in, damage, capfd):
    compile_it, folder = kernel_in
    assert compile_it()(1, 2) == 3
    (kept,) = folder.iterdir()
    sound = kept.read_bytes()
    kept.write_bytes(DAMAGES[damage](sound))
    again = compile_it()
    assert (again(1, 2), counts(again)) == (3, (0, 1))
    assert list(folder.iterdir()) == [kept]
    last = compile_it()
    assert (last(1, 2), counts(last)) == (3, (1, 0))
    assert capfd.readouterr() == ("", "")


def test_any_flipped_bit_of_a_kept_kernel_is_noticed(kernel_in):
    compile_it, folder = kernel_in
    kernel = compile_it()
    assert kernel(1, 2) == 3
    files = kernel._cache._cache_file
    (kept,) = folder.iterdir()
    sound = kept.read_bytes()
    key = kernel._cache._index_key(kernel.signatures[0], kernel.targetctx.codegen())
    assert files.load(key) is not None
    for at in random.Random(0).sample(range(8 * len(sound)), 200):
        changed = bytearray(sound)
        changed[at // 8] ^= 1 << at % 8
        kept.write_bytes(changed)
        assert files.load(key) is None
        assert not kept.exists()


def test_a_kernel_runs_where_its_file_is_a_folder(kernel_in):
    compile_it, folder = kernel_in
    assert compile_it()(1, 2) == 3
    (kept,) = folder.iterdir()
    kept.unlink()
    kept.mkdir()
    again = compile_it()
    assert (again(1, 2), counts(again)) == (3, (0, 1))
    assert list(folder.iterdir()) == [kept]


def test_a_folder_that_others_may_write_is_not_used(tmp_path):
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    assert not others_may_write(folder)
    for place, mode, expected in ((folder, 0o777, True), (folder.parent, 0o777, True), (folder.parent, 0o1777, False)):
        place.chmod(mode)
        others_may_write.cache_clear()
        assert others_may_write(folder) is expected
        place.chmod(0o755)
    others_may_write.cache_clear()
    assert others_may_write(tmp_path / "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_another_user_is_not_used(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHER_USER, OTHER_USER)
    assert others_may_write(tmp_path / "theirs")
