"""Checkpoints: a training that goes on from any of them ends as the one that was never interrupted."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from training import OPTIONS, checkpoints, command, environment, make_shards, result, run, statistics

from shards import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.train import train_model
from spkid_dist.training.checkpoint import CheckpointFolder


@pytest.fixture
def options(shards, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return OPTIONS | shards | {"save_path": tmp_path / "ckpt"}


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """A training without an interruption, and all its checkpoints."""
    folder = tmp_path_factory.mktemp("straight") / "ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_model(TrainConfig(**OPTIONS, **shards, save_path=folder, checkpoint_steps=6, keep_checkpoints=100))
    return folder


@pytest.fixture
def copy(straight, tmp_path):
    """A copy of that training's folder."""
    shutil.copytree(straight, tmp_path / "ckpt")
    return tmp_path / "ckpt"


def where(checkpoint):
    """Epoch, position, and epochs that are validated."""
    values = json.loads((checkpoint / "training.json").read_text())
    return values["stream"]["epoch"], values["stream"]["position"], len(values["statistics"]["va_loss"])


def test_going_on_from_any_checkpoint_ends_as_the_straight_run(straight, options, tmp_path):
    places = [where(path) for path in checkpoints(straight)]
    assert places == sorted(places)
    # Within the first epoch, between log lines; all of the second trained, but not validated; at its end.
    for place in ((0, 600, 0), (2, 0, 1), (2, 0, 2)):
        number = places.index(place)
        save_path = tmp_path / f"{number}"
        train_model(TrainConfig(**(options | {"save_path": save_path, "resume": str(checkpoints(straight)[number])})))
        found, expected = result(save_path), result(straight)
        assert f"e{OPTIONS['epoch'] - 1}_weights.ckpt" in " ".join(found)
        assert "train_stats.json" in found
        assert found == {name: expected[name] for name in found}


@pytest.mark.parametrize("changed", [{"optimizer": "sgd", "momentum": 0.9, "lr": 0.1}, {"edge": "zero"}])
def test_what_the_optimiser_and_the_stream_hold_is_carried(changed, options, tmp_path):
    straight = tmp_path / "straight"
    train_model(TrainConfig(**(options | changed | {"save_path": straight, "checkpoint_steps": 7, "epoch": 1})))
    before = checkpoints(straight)[0]
    assert where(before)[0] == 0
    train_model(TrainConfig(**(options | changed | {"epoch": 1, "resume": str(before)})))
    assert result(options["save_path"]) == result(straight)


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        at = len(data) // 2
        path.write_bytes(data[:at] if how == "truncated" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("name", ["state.pt", "training.json", "manifest.json"])
def test_before_a_damaged_checkpoint_the_one_before_it_is_used(copy, name, how):
    *_, before, last = checkpoints(copy)
    damage(last / name, how)
    said = []
    found = CheckpointFolder(copy / "checkpoints", 2).newest(said.append)
    assert found.path == before
    assert len(said) == 1
    assert str(last) in said[0]
    assert "looking at the one before it" in said[0]


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_without_the_list_of_checkpoints_the_last_one_is_found(copy, how):
    path = copy / "checkpoints/checkpoints.json"
    damage(path, how)
    found = CheckpointFolder(copy / "checkpoints", 2).newest([].append)
    assert found.path == checkpoints(copy)[-1]


def test_after_a_damaged_checkpoint_the_training_ends_as_the_straight_run(copy, straight, options, capsys):
    for path in checkpoints(copy)[-3:]:
        damage(path / "state.pt", "flipped")
    train_model(TrainConfig(**options, resume="auto"))
    assert "looking at the one before it" in capsys.readouterr().out
    assert result(copy) == result(straight)
    assert len(checkpoints(copy)) <= 3


def test_where_all_checkpoints_are_damaged_the_user_is_asked(copy, options):
    for path in checkpoints(copy):
        damage(path / "state.pt", "truncated")
    with pytest.raises(InputError, match=r"checkpoints: none of its \d+ checkpoints is whole.*--overwrite"):
        train_model(TrainConfig(**options, resume="auto"))


CRASHES = """
import os, signal, sys
from pathlib import Path
from spkid_dist.training.checkpoint import CheckpointFolder

folder, state = Path(sys.argv[1]), b"x" * 300
left = None
def count(event, arguments):
    global left
    if left is not None and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)

def save(checkpoints, number):
    checkpoints.save(number, {"number": number}, state, best=number == 1)

moment = finished = 0
while not finished:
    where = folder / f"{moment}"
    child = os.fork()
    if not child:
        checkpoints = CheckpointFolder(where, 1)
        save(checkpoints, 1); save(checkpoints, 2)
        left = moment
        save(checkpoints, 3)
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    checkpoints, said = CheckpointFolder(where, 1), []
    number = checkpoints.newest(said.append).values["number"]
    assert not said and number in ((3,) if finished else (2, 3)), (moment, number, said)
    save(checkpoints, 4)  # removes what the crash has left
    names = sorted(path.name for path in where.iterdir())
    assert len(names) == 3 and names[0].endswith("-epoch1") and names[1].endswith("-epoch4"), (moment, names)
    moment += 1
print(moment)
"""


def test_a_crash_at_any_moment_of_writing_leaves_a_whole_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", CRASHES, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for epoch in range(6):
        folder.save(epoch, {}, b"", best=epoch == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000002-epoch1", "000005-epoch4", "000006-epoch5", "checkpoints.json",
    ]  # fmt: skip


def test_a_finished_training_is_left_as_it_is(copy, options, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.ckpt")}
    found = train_model(TrainConfig(**options, resume="auto"))
    assert "this training is finished: nothing to do" in capsys.readouterr().out
    assert found.epochs == OPTIONS["epoch"]
    assert found.best_weights in before
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.ckpt")} == before


def test_a_finished_training_goes_on_to_more_epochs(copy, options, tmp_path):
    train_model(TrainConfig(**(options | {"epoch": 4, "resume": "auto"})))
    train_model(TrainConfig(**(options | {"epoch": 4, "save_path": tmp_path / "whole"})))
    assert result(copy) == result(tmp_path / "whole")


def test_auto_begins_where_there_is_no_checkpoint(options, straight, capsys):
    train_model(TrainConfig(**options, resume="auto"))
    assert "no checkpoint yet, training from the start" in capsys.readouterr().out
    assert result(options["save_path"]) == result(straight)


def test_a_checkpoint_of_other_options_is_refused(copy, options):
    opts = (copy / "train.opts").read_bytes()
    for changed, text in (
        ({"lr": 0.5}, r"--lr 0.5: the checkpoint \S+ was trained with 0.001; .*--overwrite instead of --resume"),
        ({"hsize": 17}, r"--hsize 17: .*with 16"),
        ({"epoch": 2}, r"--epoch 2: the checkpoint \S+ has 3 epochs behind it; give 3 or more"),
    ):
        with pytest.raises(UsageError, match=text):
            train_model(TrainConfig(**(options | changed), resume="auto"))
    assert (copy / "train.opts").read_bytes() == opts


@pytest.mark.usefixtures("copy")
def test_a_checkpoint_of_other_data_is_refused(options, tmp_path):
    other = make_shards(tmp_path / "other", seed=1)
    for name, what in (("tr_shards", "training set"), ("va_shards", "validation set")):
        with pytest.raises(
            InputError,
            match=rf"its {what} \(\S+\) has the fingerprint \w+, this one \(\S+\) \w+; continue with the same",
        ):
            train_model(TrainConfig(**(options | {name: other[name]}), resume="auto"))


@pytest.mark.long
def test_a_training_on_chosen_speakers_goes_on(options):
    chosen = options | {"tr_speakers": ("spk0001", "spk0002")}
    train_model(TrainConfig(**chosen | {"epoch": 1}))
    assert train_model(TrainConfig(**chosen | {"epoch": 2, "resume": "auto"})).epochs == 2


def test_a_resume_of_nothing_is_refused(options, tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=rf"--resume {path}: there is no checkpoint"):
            train_model(TrainConfig(**options, resume=str(path)))


def test_a_checkpoint_is_written_after_minutes_too(options):
    train_model(TrainConfig(**(options | {"epoch": 1}), checkpoint_minutes=1e-9, keep_checkpoints=100))
    assert len([path for path in checkpoints(options["save_path"]) if where(path)[0] == 0]) >= 3


def test_the_machine_s_options_may_change(straight, options):
    changed = {
        "log_freq": 1,
        "accumulation": 3,
        "patience": 3,
        "checkpoint_steps": 3,
        "resume": str(checkpoints(straight)[1]),
    }
    train_model(TrainConfig(**(options | changed)))
    np.testing.assert_allclose(statistics(options["save_path"])["va_loss"], statistics(straight)["va_loss"], rtol=1e-4)


def tmpfs(folder, flags):
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_on_a_full_disk_the_last_good_checkpoint_stays(options, tmp_path):
    disk = tmp_path / "disk"
    tmpfs(disk, "size=1m")
    try:
        config = options | {"save_path": disk / "ckpt", "hsize": 64, "checkpoint_steps": 1, "keep_checkpoints": 100}
        with pytest.raises(
            InputError, match=r"disk/ckpt/checkpoints/.*can't be written: No space left on device; free room"
        ):
            train_model(TrainConfig(**config))
        left = checkpoints(disk / "ckpt")
        assert CheckpointFolder(disk / "ckpt/checkpoints", 2).newest(pytest.fail).path == left[-1]
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        train_model(TrainConfig(**config, resume="auto"))
        train_model(TrainConfig(**(config | {"save_path": tmp_path / "whole", "keep_checkpoints": 1})))
        assert result(disk / "ckpt") == result(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.long  # test_whatever_finds_no_room_is_one_line_and_the_training_goes_on_when_there_is
def test_weights_that_find_no_room_are_one_line(options, tmp_path):
    disk = tmp_path / "disk"
    tmpfs(disk, "size=1m")
    try:
        done = run(options | {"save_path": disk / "ckpt", "hsize": 700, "epoch": 1})
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "bestval_e0_weights.ckpt: can't be written: No space left on device; free room" in done.stderr
        assert not list((disk / "ckpt").glob("*.ckpt*"))
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_whatever_finds_no_room_is_one_line_and_the_training_goes_on_when_there_is(options, straight, tmp_path):
    disk, messages = tmp_path / "disk", set()
    for pages in range(2, 50, 6):  # of 4,096 bytes: each writer in turn is the first without room
        tmpfs(disk, f"size={4 * pages}k")
        try:
            config = options | {"save_path": disk / "ckpt"}
            try:
                train_model(TrainConfig(**config, profile=1))
            except InputError as error:
                messages.add(str(error).partition(": ")[0].rpartition("/")[2].partition("-")[0])
                assert "No space left on device" in str(error) or "torch wrote no file" in str(error)
                assert "\n" not in str(error)
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            train_model(TrainConfig(**config, resume="auto"))
            assert result(disk / "ckpt") == result(straight)
        finally:
            subprocess.run(["umount", disk], check=True)
    assert len(messages) > 2, messages


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_save_path_that_can_not_be_written_is_one_line(options, tmp_path):
    disk = tmp_path / "disk"
    tmpfs(disk, "size=1m,ro")
    try:
        with pytest.raises(InputError, match=r"ckpt: can't create this folder: Read-only file system"):
            train_model(TrainConfig(**(options | {"save_path": disk / "ckpt"})))
        with pytest.raises(
            InputError, match=r"disk: can't be written: Read-only file system; give another --save_path"
        ):
            train_model(TrainConfig(**(options | {"save_path": disk})))
    finally:
        subprocess.run(["umount", disk], check=True)


def kill_at_line(options, processes, number):
    """Start a training, and kill all its processes when it has printed `number` lines."""
    job = subprocess.Popen(
        command(options, processes), env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in zip(range(number), job.stdout, strict=False):
        pass
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    job.stdout.close()


def test_a_training_killed_at_any_moment_goes_on_as_if_nothing_had_been(shards, straight, tmp_path, request):
    draw = random.Random(0)
    for number in range(request.config.getoption("--kills")):
        save_path, before, after = tmp_path / f"{number}", 2 if number % 4 == 3 else 1, 1 + number % 2
        options = OPTIONS | shards | {"save_path": save_path, "checkpoint_steps": draw.randint(1, 9), "resume": "auto"}
        kill_at_line(options, before, draw.randint(8, 60))
        again = run(options, after)
        assert again.returncode == 0, again.stderr[-3000:]
        if before == after == 1:
            assert result(save_path) == result(straight)
        for name in ("tr_loss", "va_loss"):
            np.testing.assert_allclose(statistics(save_path)[name], statistics(straight)[name], rtol=1e-4)


def test_the_index_of_checkpoints_names_the_best(straight):
    chain = json.loads((straight / "checkpoints/checkpoints.json").read_text())
    best = int(np.argmin(statistics(straight)["va_loss"]))
    assert where(straight / "checkpoints" / chain["best"]) == (best + 1, 0, best + 1)
