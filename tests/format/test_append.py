"""Appending: the old shards keep every byte, and the dataset is whole before, during and after."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shards import FmatrixSource, InputError, Layout, ShardDataset, UsageError, make_plan, merge, read_list
from shards.conversion import appending as appending_module
from shards.conversion import plan as plan_module
from shards.conversion.appending import extend_map, extended_speakers
from shards.conversion.assembly import assembling
from shards.conversion.claiming import claim_folder
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_shard, convert_tasks
from shards.conversion.merging import JOB_NAME
from shards.conversion.record import ShardRecord, record_name
from shards.corpus import read_speakers
from shards.layout import MANIFEST_NAME, key_hash, shard_name
from shards.sources.fmatrix import read_fmatrix, write_fmatrix
from shards.verification.index import rebuild_index
from shards.verification.verify import verify_dataset
from spkid_dist.commands.check import verify
from spkid_dist.commands.info import info
from spkid_dist.commands.shard import shard
from spkid_dist.config import InfoConfig, ShardConfig, VerifyConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.measure.synthetic import SyntheticCorpus

LAYOUT = {"block_frames": 256, "shard_bytes": 40_000}
LISTS = ("first", "second", "third")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Feature files and three lists: of speakers 0 to 4, of 3 to 8, of 0."""
    folder = tmp_path_factory.mktemp("append")
    SyntheticCorpus(num_speakers=9, train_utterances=10, mean_frames=60, num_features=8).write(folder)
    keys = (folder / "cfg/all.train").read_text().split()
    listed = {
        "first": keys[:35] + keys[40:45],
        "second": keys[35:40] + keys[45:],
        "third": (folder / "cfg/all.test").read_text().split()[:4],
    }
    for name, chosen in listed.items():
        (folder / name).write_text("".join(f"{key}\n" for key in chosen))
    return folder


def options(corpus, list_name, out, **more):
    paths = {"db_path": corpus / "mcp", "list_file": corpus / list_name, "spk2idx": Path(f"{out}.json")}
    return ShardConfig(**(paths | {"out": str(out), "append": list_name != "first"} | LAYOUT | more))


def command(corpus, list_name, out, *arguments):
    config = options(corpus, list_name, out)
    flags = ["--db_path", config.db_path, "--list", config.list_file, "--spk2idx", config.spk2idx, "--out", out]
    layout = [f"--{name}={value}" for name, value in LAYOUT.items()]
    program = [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()", "shard"]
    return [*map(str, [*program, *flags, *layout, *arguments])] + ["--append"] * config.append


def append(corpus, list_name, out, **more):
    """Append with the speakers' map left out: new speakers come after the old."""
    Path(f"{out}.json").unlink(missing_ok=True)
    return shard(options(corpus, list_name, out, **more))


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def grown(corpus, tmp_path_factory):
    """The dataset after each of the three lists; not to be changed."""
    folders, before = [], None
    for name in LISTS:
        folders.append(tmp_path_factory.mktemp("grown") / "out")
        if before is not None:
            shutil.copytree(before, folders[-1])
        append(corpus, name, folders[-1])
        before = folders[-1]
    return dict(zip(LISTS, folders, strict=True))


@pytest.fixture
def out(grown, tmp_path):
    """A copy of the dataset of the first list, to append to."""
    return Path(shutil.copytree(grown["first"], tmp_path / "out"))


def frames_of(folder):
    """Key -> (speaker's name, frames), of all blocks."""
    data, found = ShardDataset(folder), {}
    for number in range(len(data.blocks)):
        block = data.read_block(number)
        parts = np.split(block.frames, np.cumsum(block.lengths)[:-1])
        for key, label, frames in zip(data.keys(number, data.read_block(number)), block.labels, parts, strict=True):
            assert key not in found
            found[key] = (data.manifest.speakers[label], frames)
    return found


def check_holds(corpus, folder, lists):
    keys = [key for name in lists for key in (corpus / name).read_text().split()]
    found = frames_of(folder)
    assert sorted(found) == sorted(keys)
    for key, (speaker, frames) in found.items():
        assert speaker == key.split("/")[1]
        np.testing.assert_array_equal(frames, read_fmatrix(f"{corpus}/mcp/{key}.mcp"))


@pytest.mark.parametrize("number", [1, 2])
def test_an_append_changes_no_byte_of_the_old_shards_and_holds_all(corpus, grown, number):
    before, after = (folder_bytes(grown[name]) for name in LISTS[number - 1 : number + 1])
    old = [name for name in before if name.endswith(".tar")]
    assert len(old) > 1
    assert all(before[name] == after[name] for name in old)
    folder = grown[LISTS[number]]
    assert sorted(set(after) - {shard_name(s) for s in range(len(after) - 3)}) == [
        f"blocks-000{number}.npy",
        "manifest.json",
        f"utterances-000{number}.npy",
    ]
    check_holds(corpus, folder, LISTS[: number + 1])
    assert verify_dataset(folder).defects == []
    assert verify_dataset(folder, quick=True).defects == []


def test_speakers_keep_their_classes_and_new_ones_follow(grown):
    first, second, third = (ShardDataset(grown[name]).manifest for name in LISTS)
    assert first.speakers == [f"spk{n:04d}" for n in range(5)]
    assert second.speakers == third.speakers == [f"spk{n:04d}" for n in range(9)]
    assert [job.num_speakers for job in third.jobs] == [5, 9, 9]
    assert len({manifest.fingerprint for manifest in (first, second, third)}) == 3


def test_mean_and_deviation_are_those_of_all_frames(grown):
    manifest = ShardDataset(grown["third"]).manifest
    frames = np.concatenate([frames for _, frames in frames_of(grown["third"]).values()]).astype(np.float64)
    np.testing.assert_allclose(manifest.mean, frames.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(manifest.std, frames.std(axis=0), rtol=1e-10)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_index_of_an_appended_dataset_is_rebuilt_byte_for_byte(grown, tmp_path, workers):
    for name in LISTS[1:]:
        tars = tmp_path / name
        shutil.copytree(grown[name], tars, ignore=shutil.ignore_patterns("*.npy", "*.json"))
        rebuild_index(tars, workers=workers)
        assert folder_bytes(tars) == folder_bytes(grown[name])


def test_shards_missing_at_the_end_of_any_job_are_noticed(grown, tmp_path):
    tars = shutil.copytree(grown["third"], tmp_path / "t", ignore=shutil.ignore_patterns("*.npy", "*.json"))
    manifest = ShardDataset(grown["second"]).manifest
    for last in (len(manifest.shards) - 1, manifest.jobs[0].shards - 1):
        shutil.copy(tars / shard_name(last - 1), tars / "kept")
        for number in range(last, len(list(tars.glob("*.tar")))):
            (tars / shard_name(number)).rename(tars / f"{number}.gone")
        with pytest.raises(InputError, match="shards are missing at the end, or were exchanged"):
            rebuild_index(tars)
        assert list(tars.glob("*.npy*")) == []


def test_info_counts_the_shards_of_each_job(grown, capsys):
    info(InfoConfig(folder=grown["third"], json=True))
    facts = json.loads(capsys.readouterr().out)
    assert facts["utterances"] == 94
    assert len(facts["shards_by_job"]) == 3
    assert sum(facts["shards_by_job"]) == facts["shards"]


def test_every_window_of_an_appended_dataset_is_seen_once(grown):
    dataset = WindowDataset(grown["third"], in_frames=3, batch_size=500, num_streams=4, shuffle_windows=1200)
    rows = np.concatenate([x.numpy()[:, 8:16] for x, _ in dataset])
    expected = np.concatenate([frames[1:-1] for _, frames in frames_of(grown["third"]).values()])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))


def test_workers_append_the_same_bytes(corpus, out, grown):
    append(corpus, "second", out, workers=2)
    assert folder_bytes(out) == folder_bytes(grown["second"])


def test_tasks_of_several_machines_append_the_same_bytes(corpus, out, grown):
    for task in ("1/3", "0/3"):
        append(corpus, "second", out, task=task)
    with pytest.raises(InputError, match=r"shards are not done: shard-00"):
        merge(LocalFolder(out))
    check_holds(corpus, out, ["first"])
    append(corpus, "second", out, task="2/3")
    merge(LocalFolder(out))
    assert folder_bytes(out) == folder_bytes(grown["second"])
    merge(LocalFolder(out))
    assert folder_bytes(out) == folder_bytes(grown["second"])


def test_finished_commands_are_not_done_again(corpus, grown, tmp_path, capsys):
    folder = shutil.copytree(grown["third"], tmp_path / "out")
    for name in LISTS:
        append(corpus, name, folder)
        assert "finished already; nothing was read or written" in capsys.readouterr().out
    map_of_all = mapped(ShardDataset(folder).manifest.speakers)(corpus, folder, None)
    assert append(corpus, "first", folder, **map_of_all).num_utterances == 94
    assert folder_bytes(folder) == folder_bytes(grown["third"])


def test_an_append_killed_at_any_moment_leaves_the_old_dataset_and_is_completed(corpus, grown, tmp_path, request):
    draw = random.Random(1)
    out = tmp_path / "out"
    expected = folder_bytes(grown["second"])
    limit = 4.0
    for number in range(request.config.getoption("--kills")):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(grown["first"], out)
        Path(f"{out}.json").unlink(missing_ok=True)
        began = time.monotonic()
        arguments = command(corpus, "second", out, "--workers", 1 + number % 2)
        job = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        try:
            job.wait(draw.uniform(0.3 * limit, limit))
            limit = time.monotonic() - began
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()
        check_holds(corpus, out, LISTS[: len(ShardDataset(out).manifest.jobs)])
        rerun = subprocess.run(arguments, capture_output=True, text=True)
        assert rerun.returncode == 0, rerun.stderr
        assert folder_bytes(out) == expected


def plan_of(corpus, list_name, out):
    source, dataset = FmatrixSource(corpus / "mcp", "mcp"), ShardDataset(out)
    utterances = read_list(corpus / list_name)
    speakers = extended_speakers(dataset, utterances, Path("no map"))
    return make_plan(utterances, speakers, source, Layout(**LAYOUT), dataset), source


def test_the_dataset_is_readable_at_every_stage_of_an_append(corpus, out, grown):
    opened = ShardDataset(out)
    plan, source = plan_of(corpus, "second", out)
    folder, job = LocalFolder(out), plan.job
    claim_folder(job, folder)
    convert_shard(plan.task(job.shards[1]), source, folder)
    check_holds(corpus, out, ["first"])
    convert_tasks(plan, source, folder, job.shards)
    unfinished = {path: path.read_bytes() for path in [out / JOB_NAME, *(out / "records").iterdir()]}
    old_tables = {path: path.read_bytes() for path in out.glob("*.npy")}
    with assembling(folder, 2) as assembly:
        assembly.begin_with(opened)
        for number in job.shards:
            data = (out / record_name(number)).read_bytes()
            assembly.add(ShardRecord.parse(data, "", job.identity), job.origin)
    assert (out / "blocks-0001.npy").exists()  # but the manifest is the old one
    check_holds(corpus, out, ["first"])
    append(corpus, "second", out)
    assert folder_bytes(out) == folder_bytes(grown["second"])
    for path, data in (unfinished | old_tables).items():  # as if it had been killed behind the manifest
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    check_holds(corpus, out, LISTS[:2])
    append(corpus, "second", out)
    assert folder_bytes(out) == folder_bytes(grown["second"])
    assert opened.manifest.num_utterances == len(opened.utterances) == 40
    assert [
        opened.keys(number, opened.read_block(number)) for number in range(len(opened.blocks))
    ]  # its tables are gone from the folder


def test_an_unfinished_append_is_no_damage_and_is_left_alone(corpus, out, grown, capsys):
    before = folder_bytes(out)
    append(corpus, "second", out, task="0/3")
    made = names_below(out)
    for quick in (False, True):
        report = verify_dataset(out, quick=quick)
        assert report.defects == []
        (remark,) = report.remarks
        assert re.fullmatch(
            rf"{out}: beside the dataset lies an unfinished append: \d of \d shards are done, begun by process {os.getpid()} "
            r"on .*; give its command again to finish it, or delete job\.json, records/ and the shards from shard-00000\d\.tar "
            r"on to give it up; readers see the dataset as it was",
            remark,
        )
    capsys.readouterr()
    verify(VerifyConfig(folder=out))  # raises nothing: the exit code is 0
    no_damage, said, summary = capsys.readouterr().out.splitlines()
    assert "no damage found" in no_damage
    assert said == remark
    assert (json.loads(summary)["defects"], json.loads(summary)["remarks"]) == (0, 1)
    info(InfoConfig(folder=out, json=True))
    assert "an unfinished append" in json.loads(capsys.readouterr().out)["unfinished"]
    check_holds(corpus, out, ["first"])
    assert names_below(out) == made
    assert {name: (out / name).read_bytes() for name in before} == before
    append(corpus, "second", out)
    assert folder_bytes(out) == folder_bytes(grown["second"])
    assert verify_dataset(out).remarks == ()


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_index_is_that_of_the_published_dataset_while_an_append_is_unfinished(corpus, out, grown):
    append(corpus, "second", out, task="0/3")
    plan, source = plan_of(corpus, "second", out)
    convert_tasks(plan, source, LocalFolder(out), plan.job.shards)
    assert (
        verify_dataset(out).remarks[0].endswith(f"it needs only spkid merge {out}; readers see the dataset as it was")
    )
    rebuild_index(out)
    (out / MANIFEST_NAME).unlink()
    assert "an unfinished append" in verify_dataset(out).remarks[0]
    rebuild_index(out)
    check_holds(corpus, out, ["first"])
    merge(LocalFolder(out))
    assert folder_bytes(out) == folder_bytes(grown["second"])


def test_damage_beside_an_unfinished_append_is_found(corpus, out):
    append(corpus, "second", out, task="0/3")
    (out / "shard-000099.tar").touch()
    with (out / shard_name(0)).open("ab") as file:
        file.write(b"1")
    assert [defect.file for defect in verify_dataset(out).defects] == [shard_name(0), "shard-000099.tar"]


def test_a_damaged_job_file_is_no_damage_of_the_dataset(out, capsys):
    (out / JOB_NAME).write_text("{")
    report = verify_dataset(out)
    assert report.defects == []
    assert "job.json: damaged" in report.remarks[0]
    info(InfoConfig(folder=out, json=True))
    assert "job.json: damaged" in json.loads(capsys.readouterr().out)["unfinished"]


def test_an_append_that_was_given_up_as_the_message_says_leaves_the_dataset_as_it_was(corpus, out):
    before = folder_bytes(out)
    append(corpus, "second", out, task="0/2")
    with pytest.raises(InputError, match="or, to give it up, delete") as error:
        append(corpus, "third", out)
    job, records, first = re.search(r"delete (\S+), (\S+) and the shards from (\S+) on", str(error.value)).groups()
    Path(job).unlink()
    shutil.rmtree(records)
    for path in out.glob("*.tar"):
        if path.name >= Path(first).name:
            path.unlink()
    assert folder_bytes(out) == before
    append(corpus, "third", out)
    check_holds(corpus, out, ["first", "third"])


def test_an_unfinished_append_is_not_taken_for_another(corpus, out, grown):
    append(corpus, "second", out, task="0/2")
    with pytest.raises(
        InputError, match=r"holds an unfinished job of another list.*finish that one by its own command"
    ):
        append(corpus, "third", out)
    append(corpus, "first", out)  # the command that made the dataset
    assert (out / JOB_NAME).exists()
    append(corpus, "second", out)
    assert folder_bytes(out) == folder_bytes(grown["second"])


def test_a_job_goes_with_the_dataset_that_it_was_planned_for(corpus, out):
    plan, _ = plan_of(corpus, "second", out)
    append(corpus, "third", out)
    with pytest.raises(InputError, match=r"the dataset is not the one that this job goes with"):
        claim_folder(plan.job, LocalFolder(out))
    (out / JOB_NAME).write_text(json.dumps(plan.job.to_json()))
    with pytest.raises(InputError, match=r"the dataset is not the one that this job goes with.*job\.json"):
        merge(LocalFolder(out))


@pytest.mark.parametrize("segment", [7, 1000])
def test_an_utterance_that_is_in_the_dataset_is_refused(corpus, out, tmp_path, monkeypatch, segment):
    keys = (corpus / "first").read_text().split()
    again = tmp_path / "again"
    again.write_text((corpus / "second").read_text() + f"{keys[17]}\n")
    monkeypatch.setattr(plan_module, "SEGMENT_UTTERANCES", segment)
    before = folder_bytes(out)
    with pytest.raises(InputError, match=rf"has utterance '{keys[17]}' already, in shard-00000\d\.tar; remove it"):
        append(corpus, again, out)
    after = folder_bytes(out) if segment == 1000 else {name: (out / name).read_bytes() for name in before}
    assert after == before


def test_an_utterance_of_an_equal_hash_is_not_taken_for_one_that_is_there(corpus, out, monkeypatch):
    strange = key_hash((corpus / "first").read_text().split()[3])
    monkeypatch.setattr(appending_module, "key_hash", lambda _key: strange)
    append(corpus, "third", out)
    check_holds(corpus, out, ["first", "third"])


def other_features(corpus, _out, tmp_path):
    for key in (corpus / "third").read_text().split():
        path = tmp_path / f"mcp/{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, np.ones((5, 9), np.float32))
    return {"db_path": tmp_path / "mcp"}


def mapped(names):
    def write(_corpus, out, _tmp_path):
        path = Path(f"{out}.map")
        path.write_text(json.dumps({name: index for index, name in enumerate(names)}))
        return {"spk2idx": path}

    return write


FIVE = [f"spk{n:04d}" for n in range(5)]
REFUSED = {
    "other D": (other_features, r"mcp: 9 features per frame, but the dataset .*out has 8"),
    "other dtype": (lambda *_: {"dtype": "float16"}, r"out: holds float32, not float16; append with --dtype float32"),
    "other source": (lambda *_: {"source": "npy"}, r"out: made with --source fmatrix, not npy; append alike"),
    "renumbered": (mapped(FIVE[::-1]), r"map: class 0 is 'spk0004', but 'spk0000' in .*speakers keep their classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_changes(corpus, out, tmp_path, name):
    make, message = REFUSED[name]
    list_name = "third" if name == "other D" else "second"
    before = folder_bytes(out)
    with pytest.raises(InputError, match=message):
        append(corpus, list_name, out, **make(corpus, out, tmp_path))
    assert folder_bytes(out) == before


def test_nothing_is_appended_to_a_folder_without_a_dataset(corpus, tmp_path):
    with pytest.raises(InputError, match=r"manifest.json: can't read the manifest.*that `spkid shard` has finished"):
        append(corpus, "second", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_map_may_number_more_speakers_after_the_old(corpus, out):
    names = [*FIVE, "spk0008", "nobody", "spk0005", "spk0007", "spk0006"]
    append(corpus, "second", out, **mapped(names)(corpus, out, None))
    assert ShardDataset(out).manifest.speakers == names
    check_holds(corpus, out, LISTS[:2])
    assert verify_dataset(out).defects == []


def test_new_speakers_extend_the_map_that_the_first_job_made(corpus, tmp_path, grown, capsys):
    out, path = tmp_path / "out", tmp_path / "map.json"
    for name in LISTS:
        shard(options(corpus, name, out, spk2idx=path))
    nine = [f"spk{n:04d}" for n in range(9)]
    assert ShardDataset(out).manifest.speakers == read_speakers(path) == nine
    assert folder_bytes(out) == folder_bytes(grown["third"])
    shown = capsys.readouterr()
    assert f"{path}: 4 new speakers, classes 5 and up: spk0005, spk0006" in shown.out + shown.err


def test_a_map_with_more_speakers_than_the_dataset_is_extended_behind_them(corpus, out):
    path = mapped([*FIVE, "nobody"])(corpus, out, None)["spk2idx"]
    append(corpus, "second", out, spk2idx=path)
    expected = [*FIVE, "nobody", *(f"spk{n:04d}" for n in range(5, 9))]
    assert ShardDataset(out).manifest.speakers == read_speakers(path) == expected


def test_an_append_that_fails_or_is_unfinished_leaves_the_map(corpus, out, tmp_path):
    path = mapped(FIVE)(corpus, out, None)["spk2idx"]
    with pytest.raises(InputError, match="can't read"):
        append(corpus, "second", out, spk2idx=path, db_path=tmp_path)
    append(corpus, "second", out, spk2idx=path, task="0/2")
    assert read_speakers(path) == FIVE
    append(corpus, "second", out, spk2idx=path)
    assert len(read_speakers(path)) == 9


def test_a_map_that_was_not_extended_is_extended_by_the_same_command(corpus, grown, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(grown["second"], out)
    path = mapped(FIVE)(corpus, out, None)["spk2idx"]
    append(corpus, "second", out, spk2idx=path)
    assert folder_bytes(out) == folder_bytes(grown["second"])
    assert len(read_speakers(path)) == 9


def test_a_map_that_was_changed_while_utterances_were_appended_is_not_written_over(tmp_path):
    path = mapped(["a", "x"])(None, tmp_path / "out", None)["spk2idx"]
    with pytest.raises(InputError, match=r"map: it was changed while utterances were appended.*delete it and run"):
        extend_map(path, ["a", "b", "c"])
    assert read_speakers(path) == ["a", "x"]


def test_a_list_is_not_sharded_into_a_dataset_of_another_by_mistake(corpus, out):
    with pytest.raises(InputError, match=r"holds a dataset of another list.*or add to it with --append"):
        append(corpus, "second", out, append=False)
    with pytest.raises(UsageError, match=r"--append --out s3://b/x: only a local folder"):
        options(corpus, "second", "s3://b/x", spk2idx="map.json")
    assert (out / MANIFEST_NAME).exists()
