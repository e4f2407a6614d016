"""Unfinished files tell whether their maker lives: what a living one makes stays, what a dead one left goes."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards import InputError, liveness, unfinished
from shards.conversion.folder import LocalFolder
from shards.files import atomic_writer, fsync_folder, staging_folder, write_atomic, write_new
from shards.liveness import ProcessMark, process_lives
from shards.unfinished import is_unfinished, maker_lives, remove_left_behind

# A process that makes a file and a folder, says so, and ends with its standard input.
MAKER = """
import sys
from pathlib import Path
from shards.files import atomic_writer, staging_folder
folder = Path(sys.argv[1])
with atomic_writer(folder / "file") as file, staging_folder(folder / "made") as staging:
    file.write(b"1")
    (staging / "part").write_text("2")
    print("made", flush=True)
    sys.stdin.read()
    staging.rename(folder / "made")
"""
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
ONE_HOST = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


def make(folder, launcher=()):
    """A process that is making a file and a folder."""
    command = [*launcher, sys.executable, "-c", MAKER, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "made\n", process.stderr.read()
    return process


def end(process):
    process.kill()
    process.communicate()


def unfinished_in(folder):
    return sorted(path.name.partition(".tmp-")[0] for path in folder.iterdir() if is_unfinished(path.name))


def needs_namespaces(launcher):
    if os.geteuid() != 0 or subprocess.run([*launcher, "true"], capture_output=True).returncode != 0:
        pytest.skip("another namespace needs root, and that it is permitted")


def test_what_a_living_process_makes_stays_and_appears(tmp_path):
    process = make(tmp_path)
    remove_left_behind(tmp_path)
    assert unfinished_in(tmp_path) == [".made", "file"]
    process.communicate()
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_writes_there(tmp_path):
    end(make(tmp_path))
    assert unfinished_in(tmp_path) == [".made", "file"]
    write = (
        "import sys; from pathlib import Path; from shards.files import write_atomic as w; w(Path(sys.argv[1]), b'')"
    )
    subprocess.run([sys.executable, "-c", write, tmp_path / "another"], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another"]


@pytest.mark.parametrize("launcher", [CONTAINER, ONE_HOST])
def test_containers_of_one_host_name_remove_nothing_of_each_other(launcher, tmp_path):
    needs_namespaces(launcher)
    process = make(tmp_path, launcher)
    remove_left_behind(tmp_path)
    clean = "import sys; from pathlib import Path; from shards.unfinished import remove_left_behind as r; r(Path(sys.argv[1]))"
    subprocess.run([*launcher, sys.executable, "-c", clean, tmp_path], check=True)
    assert unfinished_in(tmp_path) == [".made", "file"]
    process.communicate()
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "made"]


def test_what_a_killed_container_left_is_removed_under_the_same_kernel(tmp_path):
    needs_namespaces(CONTAINER)
    end(make(tmp_path, CONTAINER))
    until = time.monotonic() + 10  # the kernel ends the namespace's processes after its first one
    while unfinished_in(tmp_path):
        assert time.monotonic() < until
        remove_left_behind(tmp_path)


def test_without_proc_of_its_own_a_container_takes_nobody_for_dead(tmp_path):
    """Where /proc is that of the machine, the numbers in it are those of other processes."""
    launcher = ("unshare", "--pid", "--fork", "--kill-child")
    needs_namespaces(launcher)
    process = make(tmp_path, launcher)
    clean = "import sys; from pathlib import Path; from shards.unfinished import remove_left_behind as r; r(Path(sys.argv[1]))"
    inside = f"mount -t proc proc /proc; {sys.executable} -c '{clean}' {tmp_path}"
    number = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(["nsenter", "--target", number, "--pid", "unshare", "--mount", "bash", "-c", inside], check=True)
    assert unfinished_in(tmp_path) == [".made", "file"]
    process.communicate()
    assert process.returncode == 0


def forged(folder, name="shard.tar", **changes):
    """The unfinished file of a process like this one, but for some fields of its mark."""
    mark = dataclasses.replace(ProcessMark.of_this(), **changes)
    maker = f"{mark.kernel_digest}.{mark.place_digest}.{mark.process}.{mark.started}-0a1b2c3d"
    path = folder / f"{name}.tmp-{maker}"
    path.write_bytes(b"unfinished")
    return path


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_number_that_another_process_has_by_now_is_no_maker(tmp_path):
    mine = ProcessMark.of_this()
    assert maker_lives(forged(tmp_path, started=mine.started - 1)) is False
    assert maker_lives(forged(tmp_path)) is True


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("changes", [{"boot": "other"}, {"namespace": 7}, {"clock": 7}, {"boot": ""}])
def test_without_locks_what_another_host_or_container_makes_stays(changes, tmp_path, dead):
    path = forged(tmp_path, process=dead, **changes)
    assert maker_lives(path) is None
    remove_left_behind(tmp_path)
    assert path.exists()
    assert maker_lives(forged(tmp_path, process=dead)) is False


def test_two_hosts_of_one_name_and_one_namespace_number_are_told_apart(tmp_path, dead):
    """The first namespace of process numbers is 4026531836 on every host."""
    path = forged(tmp_path, process=dead, boot="of a clone")
    remove_left_behind(tmp_path)
    assert path.exists()


def test_a_process_without_a_known_start_is_dead_only_if_nobody_has_its_number(dead):
    assert process_lives(dead, 0) is False
    assert process_lives(os.getpid(), 0) is None
    assert process_lives(os.getpid(), ProcessMark.of_this().started) is True


def test_a_process_that_is_only_waited_for_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    started = int(liveness._stat(process.pid)[liveness.STARTED_FIELD])
    assert process_lives(process.pid, started) is True
    process.stdin.close()
    while liveness._stat(process.pid)[liveness.STATE_FIELD] != b"Z":
        time.sleep(0.001)
    assert process_lives(process.pid, started) is False
    process.wait()


def test_who_can_not_see_a_process_does_not_take_it_for_dead(monkeypatch):
    """As where /proc is mounted with hidepid, and for another user's process."""
    monkeypatch.setattr(liveness, "_stat", lambda _process: [])
    assert process_lives(os.getpid(), ProcessMark.of_this().started) is None

    def not_permitted(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_permitted)
    assert process_lives(os.getpid(), 1) is None


def test_no_setting_of_the_clock_moves_a_mark(monkeypatch):
    mark = ProcessMark.of_this()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert ProcessMark.of_this() == mark
    assert mark.lives is True


def test_a_namespace_of_times_of_its_own_takes_nobody_for_dead(tmp_path):
    """There the kernel counts ticks from another moment, so a start is another number."""
    launcher = ("unshare", "--time", "--boottime", "1000000", "--fork")
    needs_namespaces(launcher)
    process = make(tmp_path)
    clean = "import sys; from pathlib import Path; from shards.unfinished import remove_left_behind as r; r(Path(sys.argv[1]))"
    subprocess.run([*launcher, sys.executable, "-c", clean, tmp_path], check=True)
    assert unfinished_in(tmp_path) == [".made", "file"]
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["x.tmp-host-4026531836.77-0a1b2c3d", "000001-epoch1.tmp-0a1b2c3d"])
def test_names_of_an_earlier_version_and_of_other_hosts_go_by_their_age(name, tmp_path):
    old, elsewhere = tmp_path / name, forged(tmp_path, boot="other")
    old.write_bytes(b"")
    remove_left_behind(tmp_path)
    assert old.exists()
    long_ago = time.time() - unfinished.ABANDONED_SECONDS - 60
    for path in (old, elsewhere, forged(tmp_path, "mine")):
        os.utime(path, (long_ago, long_ago))
    remove_left_behind(tmp_path)
    assert unfinished_in(tmp_path) == ["mine"]


@pytest.mark.parametrize("name", ["x.tmp-", "x.tmp-mine", "notes.tmp-2024-05-01", "x.tmp-0a1b.old", "x.tmp"])
def test_files_of_others_are_never_touched(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / name, (0, 0))
    remove_left_behind(tmp_path)
    assert (tmp_path / name).exists()


def test_a_link_under_such_a_name_is_removed_and_not_followed(tmp_path, dead):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    name = forged(tmp_path, process=dead).name
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "kept")
    remove_left_behind(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_a_maker_whose_new_file_was_removed_takes_another_name(tmp_path, monkeypatch):
    removed, flock = [], fcntl.flock

    def lock_after_removal(descriptor, how):
        if not removed:
            removed.extend(path for path in tmp_path.iterdir())
            removed[0].unlink()
        return flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_after_removal)
    write_atomic(tmp_path / "x", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert len(removed) == 1


def test_a_dataset_gives_back_what_dead_makers_left_in_its_subfolders_too(tmp_path, dead):
    (tmp_path / "records").mkdir()
    paths = [forged(folder, process=dead) for folder in (tmp_path, tmp_path / "records")]
    living = [forged(folder) for folder in (tmp_path, tmp_path / "records")]
    folder = LocalFolder(tmp_path)
    assert folder.sizes() == {}
    folder.remove_unfinished()
    assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in living)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EBADF])
def test_a_file_system_that_does_not_flush_folders_is_used_all_the_same(code, tmp_path, monkeypatch):
    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "x", b"1")
    assert write_new(tmp_path / "y", b"2")
    fsync_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_file_that_can_not_be_flushed_is_an_error(tmp_path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"x: can't be written: Input/output error"):
        write_atomic(tmp_path / "x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_is_reported_as_that(tmp_path):
    expected = rf"^{tmp_path}/none: No such file or directory, while {tmp_path}/x was being"
    with pytest.raises(InputError, match=expected), atomic_writer(tmp_path / "x") as file:
        file.write(b"1")
        (tmp_path / "none").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_of_many_who_make_a_new_file_one_does_with_and_without_hard_links(tmp_path, monkeypatch):
    assert write_new(tmp_path / "a", b"1")
    assert not write_new(tmp_path / "a", b"2")

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    assert write_new(tmp_path / "b", b"1")
    monkeypatch.setattr(os.path, "lexists", lambda _path: False)  # it appears between the look and the making
    assert not write_new(tmp_path / "b", b"2")
    assert (tmp_path / "b").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_staging_folder_that_was_not_renamed_is_gone(tmp_path):
    with contextlib.suppress(ZeroDivisionError), staging_folder(tmp_path / "new/made") as staging:
        assert re.fullmatch(r"\.made\.tmp-[0-9a-f.]+-[0-9a-f]{8}", staging.name)
        (staging / "part").touch()
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []
