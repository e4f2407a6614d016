"""A training's folder: held by one training, refused where another has used it, and all that is in it is of one training."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections import OrderedDict

import pytest
import torch
import xxhash
from torch import nn
from training import OPTIONS, checkpoints, command, environment, make_shards, result, run, statistics

from shards import InputError, UsageError
from spkid_dist.config import TrainConfig
from spkid_dist.train import train_model
from spkid_dist.trained import load_trained, read_options
from spkid_dist.weights.file import name_in_weights


@pytest.fixture
def options(shards, tmp_path, monkeypatch):
    """A short training in this process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return OPTIONS | shards | {"save_path": tmp_path / "ckpt"}


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """A finished training, and a checkpoint of each of its epochs."""
    folder = tmp_path_factory.mktemp("finished") / "ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_model(TrainConfig(**OPTIONS, **shards, save_path=folder, keep_checkpoints=100))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "ckpt")
    return tmp_path / "ckpt"


def contents(folder):
    """All files below a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options_in(folder):
    return read_options(folder / "train.opts")


# --- a used folder


def test_a_used_folder_is_refused_and_left_as_it_is(copy, options):
    before = contents(copy)
    for changed in ({}, {"lr": 0.5}):
        with pytest.raises(
            UsageError,
            match=r"ckpt: holds files of an earlier training \(.*_weights\.ckpt, .* and \d+ more\); give another "
            r"--save_path, --resume auto to continue that training, --overwrite to delete its files",
        ):
            train_model(TrainConfig(**(options | changed)))
    assert contents(copy) == before


@pytest.mark.parametrize(
    "name", ["train.opts", "bestval_e3_weights.ckpt", "e0_weights.ckpt", "checkpoints/000001-epoch0/state.pt",
             "train_stats.json", "summary.json", "log_plots.png", "profile-rank0.json", "tensorboard/events.out.tfevents.1.x",
             "bestval_e3_weights.calibration.json", "e0_weights+0123456789abcdef.calibration.open_set.png"],
)  # fmt: skip
def test_each_file_of_a_training_makes_a_folder_used(name, options):
    path = options["save_path"] / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="holds files of an earlier training"):
        train_model(TrainConfig(**options))


@pytest.mark.parametrize("name", [None, "STOP", "train.log", "notes.txt", "my_weights.ckpt"])
def test_a_folder_without_a_training_s_files_is_not_used(name, options, finished):
    options["save_path"].mkdir()
    if name:
        (options["save_path"] / name).write_text("mine\n")
    train_model(TrainConfig(**options))
    found = result(options["save_path"])
    found.pop("my_weights.ckpt", None)
    assert found == result(finished)
    if name in ("notes.txt", "my_weights.ckpt"):
        assert (options["save_path"] / name).read_text() == "mine\n"


def test_overwriting_leaves_what_a_fresh_training_leaves_and_all_that_is_of_others(copy, options, tmp_path):
    for name in (
        "bestval_e9_weights.ckpt",
        "e7_weights.ckpt",
        "profile-rank1.json",
        "tensorboard/events.out.tfevents.9",
        "bestval_e9_weights.calibration.json",
        "bestval_e9_weights.calibration.png",
        "e7_weights+0123456789abcdef.calibration.open_set.png",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"{}")
    (copy / "e1_weights.ckpt.tmp-host-1-ab").touch()
    foreign = {"notes.txt", "e0_weights.ckpt.bak", "checkpoints/mine.txt", "tensorboard/mine.txt", "final_weights.ckpt"}
    foreign |= {"final_weights.calibration.json", "e7_weights.calibration.txt"}
    for name in foreign:
        (copy / name).write_text("mine")
    train_model(TrainConfig(**(options | {"epoch": 1, "lr": 0.01}), overwrite=True))
    train_model(TrainConfig(**(options | {"epoch": 1, "lr": 0.01, "save_path": tmp_path / "fresh"})))
    assert set(contents(copy)) == set(contents(tmp_path / "fresh")) | foreign
    assert {name: data for name, data in result(copy).items() if name not in foreign} == result(tmp_path / "fresh")


def test_overwriting_deletes_nothing_before_the_training_is_sure_to_start(copy, options, tmp_path):
    before = contents(copy)
    for changed in (
        {"tr_shards": tmp_path / "missing"},
        {"mixed_precision": "fp16"},
        {"tr_speakers": ("nobody",)},
        {"resume": str(tmp_path / "missing")},
        {"engine": "graph", "dropout": 0.5},
    ):
        with pytest.raises((UsageError, InputError)):
            train_model(TrainConfig(**(options | changed), overwrite=True))
        after = contents(copy)
        after.pop("train.log")
        assert after == {name: data for name, data in before.items() if name != "train.log"}


@pytest.mark.parametrize("resume", ["auto", "{ckpt}", "{ckpt}/checkpoints"])
def test_to_overwrite_what_is_gone_on_from_is_refused(resume, copy, options):
    before = contents(copy)
    with pytest.raises(UsageError, match=r"--overwrite would delete the checkpoints that --resume continues from"):
        train_model(TrainConfig(**options, resume=resume.format(ckpt=copy), overwrite=True))
    assert contents(copy) == before


# --- options and weights belong together


def test_options_are_written_with_the_first_weights(options):
    with pytest.raises(InputError, match="diverged"):
        train_model(TrainConfig(**(options | {"optimizer": "sgd", "lr": 1e30})))
    assert {path.name for path in options["save_path"].iterdir()} == {"train.log"}


def test_weights_stay_a_plain_state_dict_for_all_others(finished):
    path = next(finished.glob("bestval_*"))
    state = torch.load(path, weights_only=True)
    assert type(state) is OrderedDict
    assert list(state) == [f"{layer}.{kind}" for layer in (0, 2, 4, 6) for kind in ("weight", "bias")]
    network = nn.Sequential(
        nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5),
        nn.LogSoftmax(dim=1),
    )  # fmt: skip
    network.load_state_dict(state, strict=True)
    network.load_state_dict(torch.load(path, weights_only=True, mmap=True), strict=True, assign=True)


def test_weights_options_and_checkpoints_name_one_training(finished):
    name = options_in(finished)["training_id"]
    assert len(name) == 32
    assert {name_in_weights(path) for path in finished.glob("*_weights.ckpt")} == {name}
    values = [json.loads((path / "training.json").read_text()) for path in checkpoints(finished)]
    assert {value["training_id"] for value in values} == {name}


def short(options, **changed):
    """The name of a training of one epoch with some options changed."""
    folder = options["save_path"].with_name("short")
    train_model(TrainConfig(**(options | {"epoch": 1, "save_path": folder} | changed), overwrite=True))
    return options_in(folder)["training_id"]


@pytest.mark.long
def test_the_name_is_that_of_the_data_and_of_what_changes_the_result(finished, options, tmp_path):
    name = options_in(finished)["training_id"]
    assert short(options) == name
    assert short(options, log_freq=1, engine="eager", patience=2, checkpoint_steps=5, accumulation=2) == name
    for changed in ({"lr": 0.01}, {"normalize": "utterance"}):
        assert short(options, **changed) != name
    chosen = tmp_path / "chosen"
    keys = [f"SYN/spk000{speaker}/spk000{speaker}_000{number}\n" for speaker in range(5) for number in range(3)]
    names = set()
    for lines in (keys, keys[1:], keys):  # one path, two choices
        chosen.write_text("".join(lines))
        names.add(short(options, tr_utterances=chosen))
    assert len(names - {name}) == 2
    chosen.rename(tmp_path / "moved")
    assert short(options, tr_utterances=tmp_path / "moved") in names
    other = make_shards(tmp_path / "other", seed=1)
    assert short(options, tr_shards=other["tr_shards"]) != name
    assert short(options, va_shards=other["va_shards"]) != name


def test_a_training_that_goes_on_keeps_its_name(copy, options):
    name = options_in(copy)["training_id"]
    train_model(TrainConfig(**(options | {"epoch": 4, "log_freq": 2}), resume="auto"))
    assert options_in(copy)["training_id"] == name
    assert options_in(copy)["epoch"] == 4
    assert {name_in_weights(path) for path in copy.glob("*_weights.ckpt")} == {name}


def test_weights_with_the_options_of_another_training_are_refused(copy, options, tmp_path):
    other = train_model(
        TrainConfig(**(options | {"epoch": 1, "edge": "zero", "save_path": tmp_path / "other"}))
    ).best_weights
    mine = next(copy.glob("bestval_*"))
    load_trained(mine, copy / "train.opts", None)
    load_trained(other, other.with_name("train.opts"), None)
    for weights, opts in ((mine, other.with_name("train.opts")), (other, copy / "train.opts")):
        with pytest.raises(InputError) as error_info:
            load_trained(weights, opts, None)
        text = str(error_info.value)
        assert text.startswith(f"{weights}: these weights are of another training than the options in {opts}")
        assert "\n" not in text


def test_weights_and_options_of_other_programs_are_taken_as_they_are(copy, tmp_path):
    mine = next(copy.glob("bestval_*"))
    plain = {name: tensor.clone() for name, tensor in torch.load(mine, weights_only=True).items()}
    torch.save(plain, tmp_path / "plain.ckpt")
    opts = options_in(copy)
    del opts["training_id"]
    (tmp_path / "train.opts").write_text(json.dumps(opts))
    for weights in (mine, tmp_path / "plain.ckpt"):
        for options in (copy / "train.opts", tmp_path / "train.opts"):
            load_trained(weights, options, None)


# --- going on elsewhere, and going back


def test_a_finished_training_brings_all_its_files_into_a_clean_folder(finished, options, tmp_path):
    target = tmp_path / "target"
    for _ in range(2):  # there it is finished too
        train_model(
            TrainConfig(**(options | {"save_path": target}), resume="auto" if target.exists() else str(finished))
        )
        assert result(target) == result(finished)
        names = {"train.opts", "train_stats.json", "log_plots.png", "summary.json", "train.log", "checkpoints"}
        assert {path.name for path in target.iterdir()} == names | {path.name for path in finished.glob("*.ckpt")}
        before, after = (json.loads((folder / "summary.json").read_text()) for folder in (finished, target))
        assert after == before | {"save_path": str(target)}
        assert options_in(target)["training_id"] == options_in(finished)["training_id"]
        assert len(checkpoints(target)) == 1
    train_model(TrainConfig(**(options | {"save_path": target, "epoch": 4}), resume="auto"))
    assert statistics(target)["va_loss"][:3] == statistics(finished)["va_loss"]


def test_a_training_does_not_go_on_in_a_folder_that_another_has_used(copy, finished, options):
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(copy / "checkpoints")
    before = contents(copy)
    with pytest.raises(UsageError, match=r"holds files of an earlier training .*--overwrite"):
        train_model(TrainConfig(**options, resume=str(finished)))
    assert contents(copy) == before


def test_going_on_elsewhere_with_overwrite_leaves_nothing_of_what_was_there(options, finished, tmp_path):
    target = tmp_path / "target"
    train_model(TrainConfig(**(options | {"lr": 0.5, "epoch": 5, "patience": 5, "save_path": target, "profile": 1})))
    train_model(TrainConfig(**(options | {"save_path": target}), resume=str(finished), overwrite=True))
    assert result(target) == result(finished)
    clean = tmp_path / "clean"
    train_model(TrainConfig(**(options | {"save_path": clean}), resume=str(finished)))
    assert set(contents(target)) == set(contents(clean))


@pytest.mark.long
def test_going_back_in_a_folder_leaves_nothing_of_the_epochs_after(copy, options, tmp_path):
    second = checkpoints(copy)[1]
    train_model(TrainConfig(**(options | {"epoch": 2}), resume=str(second)))
    train_model(TrainConfig(**(options | {"epoch": 2, "save_path": tmp_path / "straight"})))
    assert result(copy) == result(tmp_path / "straight")
    assert json.loads((copy / "summary.json").read_text())["epochs"] == 2
    assert [path.name for path in checkpoints(copy)] == ["000001-epoch1", "000002-epoch2"]
    chain = json.loads((copy / "checkpoints/checkpoints.json").read_text())
    assert chain["checkpoints"] == ["000001-epoch1", "000002-epoch2"]
    train_model(TrainConfig(**options, resume="auto"))
    train_model(TrainConfig(**(options | {"save_path": tmp_path / "straight"}), resume="auto"))
    assert result(copy) == result(tmp_path / "straight")


def test_weights_that_are_trained_again_lose_their_calibrations(copy, options):
    for weights in copy.glob("*_weights.ckpt"):
        (copy / f"{weights.stem}.calibration.json").write_text("{}")
    train_model(
        TrainConfig(**options, resume=str(checkpoints(copy)[1]))
    )  # after epoch 1, so that epoch 2 is trained again
    assert {p.name.split("_w")[0] for p in copy.glob("*.calibration.json")} == {"bestval_e0", "bestval_e1"}


def test_the_folder_of_a_checkpoint_is_known_by_any_of_its_paths(copy, options, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    first = checkpoints(copy)[0].name
    train_model(TrainConfig(**(options | {"epoch": 1}), resume=f"{tmp_path}/link/../ckpt/checkpoints/{first}"))
    assert sorted(result(copy)) == ["averaged_e0_weights.ckpt", "bestval_e0_weights.ckpt", "train_stats.json"]


def test_auto_without_a_checkpoint_begins_anew_only_in_a_folder_of_the_same_training(copy, options, finished):
    shutil.rmtree(copy / "checkpoints")
    before = contents(copy)
    with pytest.raises(
        UsageError, match=r"files of another training .*no checkpoint that --resume auto could continue from"
    ):
        train_model(TrainConfig(**(options | {"lr": 0.5}), resume="auto"))
    after = contents(copy)
    after["train.log"] = before["train.log"]
    assert after == before
    (copy / "e8_weights.ckpt").write_bytes((next(copy.glob("bestval_*"))).read_bytes())
    train_model(TrainConfig(**options, resume="auto"))
    assert result(copy) == result(finished)


def test_auto_begins_after_a_run_that_ended_before_its_first_checkpoint(options, finished):
    events = options["save_path"] / "tensorboard/events.out.tfevents.1"
    events.parent.mkdir(parents=True)
    events.touch()
    train_model(TrainConfig(**options, resume="auto"))
    assert result(options["save_path"]) == result(finished)
    assert not events.parent.exists()


def test_checkpoints_of_before_names_go_on(copy, options):
    for path in checkpoints(copy):
        values = json.loads((path / "training.json").read_text())
        del values["training_id"]
        (path / "training.json").write_text(json.dumps(values))
        manifest = json.loads((path / "manifest.json").read_text())
        data = (path / "training.json").read_bytes()
        manifest["files"]["training.json"] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        (path / "manifest.json").write_text(json.dumps(manifest))
    for path in copy.glob("*_weights.ckpt"):
        torch.save(dict(torch.load(path, weights_only=True)), path)
    before = contents(copy)
    train_model(TrainConfig(**options, resume="auto"))
    weights = {name: data for name, data in contents(copy).items() if name.endswith("_weights.ckpt")}
    assert weights == {name: before[name] for name in weights}
    assert len(weights) == 4  # of three epochs, and their average


# --- two trainings at once


def started(options, *more):
    """A training in a process of its own that is in its steps."""
    flags = options | {"epoch": 10_000, "patience": 10_000, "checkpoint_steps": 3}
    job = subprocess.Popen(
        [*command(flags), *map(str, more)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in job.stdout:
        if line.startswith("checkpoint"):
            return job
    raise AssertionError(job.stderr.read())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_second_training_is_refused_in_one_line_while_the_first_lives(processes, options):
    job = started(options)
    try:
        done = run(options | {"resume": "auto"}, processes)
        lines = [line for line in done.stderr.splitlines() if line.startswith("spkid: error")]
        assert done.returncode == 1
        assert len(lines) == 1
        assert f"ckpt: in use by process {job.pid} on " in lines[0]
        assert "give another --save_path" in lines[0]
    finally:
        job.kill()
        job.communicate()


def test_a_killed_training_s_folder_is_taken_over_at_once(options):
    job = started(options)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    validated = (options["save_path"] / "train_stats.json").exists()
    epochs = len(statistics(options["save_path"])["va_loss"]) if validated else 0
    done = run(options | {"epoch": epochs + 2, "patience": 10_000, "resume": "auto"})
    assert done.returncode == 0, done.stderr
    assert f"was held by process {job.pid} on " in done.stdout
    assert "continuing in epoch" in done.stdout
    assert not list(options["save_path"].glob(".held*"))


def test_a_training_whose_folder_was_deleted_ends_with_one_line(options):
    job = started(options)
    while options["save_path"].exists():
        shutil.rmtree(options["save_path"], ignore_errors=True)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1
    assert error.count("\n") == 1
    assert "ckpt: no longer held by this process: the folder was deleted" in error
    assert not os.path.exists(options["save_path"])  # noqa: PTH110


def test_train_opts_with_another_value_are_refused_unless_their_digest_is_deleted(copy):
    path = copy / "train.opts"
    written = json.loads(path.read_text())
    assert "digest" not in read_options(path)
    for name, value in (("edge", "edge"), ("speakers", written["speakers"][::-1]), ("in_frames", 99)):
        path.write_text(json.dumps(written | {name: value}))
        message = r"train\.opts: the training options: its digest is not that of .*delete its field 'digest'; or give"
        with pytest.raises(InputError, match=message):
            read_options(path)
    del written["digest"]
    path.write_text(json.dumps(written | {"edge": "edge"}))
    assert read_options(path)["edge"] == "edge"
