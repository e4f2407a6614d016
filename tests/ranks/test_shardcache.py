"""What lies in the cache of sharded features is judged before it is used, and removed where it takes too much."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from test_cache import cached, corpus, used  # noqa: F401 - corpus is a fixture

from shards import InputError, ShardDataset
from shards.layout import BLOCKS_NAME, MANIFEST_NAME, shard_name
from spkid_dist.config import TrainConfig
from spkid_dist.ranks import shardcache
from spkid_dist.ranks.shardcache import DAMAGED_NAME, USED_NAME, hold, judge, make_room, remove_unused
from spkid_dist.train import train_model

pytestmark = pytest.mark.fast

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
SHARD = shard_name(0)


def flip(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: No such file or directory"),
        (lambda folder: os.truncate(folder / SHARD, 700), rf"{SHARD} has 700 bytes, expected \d+"),
        (lambda folder: flip(folder / BLOCKS_NAME), f"{BLOCKS_NAME}: damaged"),
        (lambda folder: flip(folder / MANIFEST_NAME, 200), f"{MANIFEST_NAME}: damaged"),
        (lambda folder: (folder / MANIFEST_NAME).unlink(), f"{MANIFEST_NAME}: can't read the manifest"),
        (lambda folder: (folder / DAMAGED_NAME).write_text("block 3"), "an earlier run found damage: block 3"),
        (lambda folder: (folder / DAMAGED_NAME).mkdir(), f"{DAMAGED_NAME} can't be read"),
    ],
)
def test_a_damaged_dataset_of_this_user_is_made_anew_with_one_line(corpus, damage, said):
    folder = cached(corpus, corpus / "cache")
    fingerprint = ShardDataset(folder).fingerprint
    damage(folder)
    lines = []
    assert cached(corpus, corpus / "cache", said=lines) == folder
    assert len(lines) == 1
    assert f"the shards in {folder} are not used: " in lines[0]
    assert re.search(said, lines[0])
    assert lines[0].endswith("sharding 4 utterances again")
    assert ShardDataset(folder).fingerprint == fingerprint
    assert [path.name for path in (corpus / "cache").iterdir()] == [folder.name]


def test_another_dataset_under_the_expected_name_is_not_used(corpus, tmp_path):
    folder = cached(corpus, corpus / "cache")
    fingerprint = ShardDataset(folder).fingerprint
    keys = (corpus / "list").read_text().split()
    (corpus / "list").write_text("\n".join(keys[:3]) + "\n")
    other = cached(corpus, tmp_path / "other")
    (corpus / "list").write_text("\n".join(keys) + "\n")
    shutil.rmtree(folder)
    other.rename(folder)
    lines = []
    assert ShardDataset(cached(corpus, corpus / "cache", said=lines)).fingerprint == fingerprint
    assert "it is the dataset of another list, other speakers or other options" in lines[0]


@as_root
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: os.chown(folder, 65534, 65534), "it belongs to user 65534, not to this one"),
        (lambda folder: folder.chmod(0o777), "every user may write there"),
    ],
)
def test_a_folder_that_others_own_or_write_is_left_alone(corpus, change, said):
    folder = cached(corpus, corpus / "cache")
    change(folder)
    before = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}
    lines = []
    own = cached(corpus, corpus / "cache", said=lines)
    assert own.name == f"{folder.name}-u{os.geteuid()}"
    assert said in lines[0]
    assert {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    change(own)
    with pytest.raises(InputError, match=rf"{own.name}: {said}.*; set --cache_dir to a folder of your own"):
        cached(corpus, corpus / "cache")


def test_a_link_in_the_place_of_the_dataset_is_not_followed(corpus, tmp_path):
    folder = cached(corpus, corpus / "cache")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert cached(corpus, corpus / "cache").name.endswith(f"-u{os.geteuid()}")
    assert folder.is_symlink()


def test_damage_found_while_training_is_made_good_by_the_next_run(synthetic, tmp_path, capsys):
    places = {"db_path": synthetic / "mcp", "tr_list_file": synthetic / "cfg/all.train"}
    places |= {
        "va_list_file": synthetic / "cfg/all.test",
        "cache_dir": tmp_path / "cache",
        "save_path": tmp_path / "ckpt",
    }
    config = {**places, "spk2idx": synthetic / "cfg/spk2idx.json", "epoch": 1, "batch_size": 200, "overwrite": True}
    first = train_model(TrainConfig(**config))
    folder = next((tmp_path / "cache").glob("all.train-*"))
    flip(folder / SHARD, 1000)
    with pytest.raises(InputError, match=r"not what was written.*this dataset is a cache: the next run makes it anew"):
        train_model(TrainConfig(**config))
    capsys.readouterr()
    again = train_model(TrainConfig(**config))
    assert "an earlier run found damage" in capsys.readouterr().out
    assert again.va_loss == first.va_loss


def many(corpus, count):
    """Datasets of the cache, the first of them unused for the longest time."""
    folder = cached(corpus, corpus / "cache")
    others = [folder.with_name(f"list{number}-{number:016x}") for number in range(count)]
    for number, other in enumerate(others):
        shutil.copytree(folder, other)
        os.utime(other / USED_NAME, (1_000_000 + number, 1_000_000 + number))
    shutil.rmtree(folder)
    return others, sum(path.stat().st_size for path in others[0].iterdir())


def test_the_dataset_goes_first_that_was_not_used_for_longest_and_none_that_is_in_use(corpus):
    others, size = many(corpus, 4)
    used_one = hold(others[0])
    os.utime(others[0] / USED_NAME, (0, 0))
    assert used_one is not None
    assert used_one.is_held
    lines = []
    make_room(corpus / "cache", 3 * size, size, lines.append)
    assert [folder.exists() for folder in others] == [True, False, False, True]
    assert [line.partition(":")[0] for line in lines] == [str(others[1]), str(others[2])]
    assert all("last used on 1970-01-12" in line for line in lines)
    used_one.close()
    make_room(corpus / "cache", size, size, lines.append)
    assert list((corpus / "cache").iterdir()) == []


def test_what_is_no_dataset_of_the_cache_stays(corpus):
    folder = cached(corpus, corpus / "cache")
    mine = corpus / "cache" / "mine-0123456789abcdef"
    shutil.copytree(folder, mine)
    (mine / USED_NAME).unlink()
    (corpus / "cache" / "notes").mkdir()
    lines = []
    make_room(corpus / "cache", 1, 1, lines.append)
    assert sorted(path.name for path in (corpus / "cache").iterdir()) == [mine.name, "notes"]
    assert lines[0].startswith(str(folder))


def test_more_than_the_limit_in_use_is_said(corpus):
    lines = []
    with contextlib.closing(used(corpus, corpus / "cache", 10, lines)) as use:
        make_room(corpus / "cache", 10, 0, lines.append)
        assert use.folder.exists()
    assert "the datasets in use take 0.000 GB, more than the 0.000 GB of --cache_bytes" in lines[-1]


HOLD = """
import sys
from pathlib import Path
from spkid_dist.ranks.shardcache import hold
use = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_dataset_that_another_process_uses_is_not_removed_until_that_is_killed(corpus):
    (folder,), _ = many(corpus, 1)
    command = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert not remove_unused(folder)
        process.kill()
    assert remove_unused(folder)
    assert hold(folder) is None


def test_a_dataset_that_another_host_took_lately_counts_as_in_use(corpus, monkeypatch):
    (folder,), _ = many(corpus, 1)
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    hold(folder).close()
    monkeypatch.undo()
    assert not remove_unused(folder)
    past = time.time() - shardcache.LEASE_SECONDS - 1
    os.utime(folder / USED_NAME, (past, past))
    assert remove_unused(folder)


def test_a_dataset_is_judged_by_the_job_alone_where_it_is_right(corpus):
    folder = cached(corpus, corpus / "cache")
    job = ShardDataset(folder).manifest.jobs[0].job
    assert judge(folder, job).state is shardcache.State.RIGHT
    assert judge(folder, "other").state is shardcache.State.WRONG
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
