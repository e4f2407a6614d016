"""Feature files sharded on the way to training, by one process while others wait for it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import FmatrixSource, InputError, Utterance
from shards.liveness import ProcessMark
from shards.sources.fmatrix import write_fmatrix
from shards.stores.cachedir import CacheFolder
from spkid_dist.config import TrainConfig
from spkid_dist.ranks.sharded_once import ListedCorpus, cached_shards, check_maker, maker_note

# A rank of a launch, its launcher being this test: argv are the corpus, whether it makes the shards, and how it ends.
RANK = """
import os, signal, sys
from pathlib import Path
from shards import FmatrixSource, SpkidError, find_speakers, read_list
from spkid_dist.ranks.sharded_once import ListedCorpus, cached_shards

corpus, makes_it, end = Path(sys.argv[1]), sys.argv[2] == "makes it", sys.argv[3]
utterances = read_list(corpus / "list")

def progress(*counts):
    if end == "killed":
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

try:
    source = FmatrixSource(corpus / "mcp", "mcp")
    listed = ListedCorpus(list_path=corpus / "list", utterances=utterances, source=source, speakers=["a", "b"])
    use = cached_shards(
        listed, corpus / "cache", 10**9, makes_it=makes_it, say=lambda line: None, progress=progress,
    )
    print(use.folder.name)
except SpkidError as error:
    print(f"error: {error}")
"""


@pytest.fixture
def corpus(tmp_path):
    keys = [f"b/{speaker}/u{i}" for speaker in "ab" for i in range(2)]
    for number, key in enumerate(keys):
        path = tmp_path / "mcp" / f"{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, np.full((5, 3), number, np.float32))
    (tmp_path / "list").write_text("\n".join(keys) + "\n")
    return tmp_path


LAUNCHER = """
"${@:2}" waits $1 >waits.out & "${@:2}" "makes it" $1 >makes.out & wait
"""


def ranks(corpus, end="whole"):
    """What a rank that makes the shards prints, and one that waits for them; each call is a launch of its own."""
    rank = (sys.executable, "-c", RANK, corpus)
    subprocess.run(["bash", "-c", LAUNCHER, "launcher", end, *rank], cwd=corpus, check=True, timeout=60)
    return [(corpus / name).read_text().strip() for name in ("makes.out", "waits.out")]


def test_who_waits_gets_the_folder_and_no_note_is_left(corpus):
    makes_it, waits = ranks(corpus)
    assert makes_it == waits
    assert [path.name for path in (corpus / "cache").iterdir()] == [waits]


def test_who_waits_is_told_why_it_failed(corpus):
    damaged = corpus / "mcp/b/a/u1.mcp"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    makes_it, waits = ranks(corpus)
    assert makes_it.startswith("error: ")
    assert "u1.mcp" in makes_it
    assert "the process that was to make it has failed: " in waits
    assert waits.endswith(makes_it.removeprefix("error: "))


def test_who_waits_notices_that_it_is_gone(corpus):
    makes_it, waits = ranks(corpus, "killed")
    assert makes_it == "killed"
    assert "is gone without a word" in waits
    again, waits = ranks(corpus)  # what is left disturbs nobody
    assert again == waits
    assert not list((corpus / "cache").glob(".*making*"))


def test_a_maker_in_another_container_is_not_taken_for_gone(tmp_path):
    with maker_note(tmp_path / "shards"):
        note = next(tmp_path.glob(".shards.making-*"))
        elsewhere = json.loads(note.read_text()) | {"namespace": 1, "process": 2**22 + 1}
        note.write_text(json.dumps(elsewhere))
        check_maker(tmp_path / "shards")
        note.write_text(json.dumps(vars(ProcessMark.of_this()) | {"process": 2**22 + 1}))
        with pytest.raises(InputError, match="is gone without a word"):
            check_maker(tmp_path / "shards")


def test_what_an_earlier_launch_left_means_nothing(tmp_path):
    folder = tmp_path / "shards"
    other = tmp_path / f".shards.making-{socket.gethostname()}-1"
    mine = vars(ProcessMark.of_this())
    gone = mine | {"started": mine["started"] - 1}  # its number is this process's by now
    other.write_text(json.dumps(gone | {"failed": "the disk is full"}))
    check_maker(folder)
    with maker_note(folder):
        assert not other.exists()
        check_maker(folder)
    other.write_text(json.dumps(gone))
    with pytest.raises(InputError, match="no such thing"), maker_note(folder):
        raise InputError("no such thing")
    with pytest.raises(InputError, match=f"{folder}: .* has failed: no such thing"):
        check_maker(folder)


@pytest.mark.parametrize(
    ("cache_home", "expected"),
    [("/big/cache", "/big/cache/spkid-dist"), ("", "~/.cache/spkid-dist"), ("relative", "~/.cache/spkid-dist")],
)
def test_the_cache_is_where_xdg_says(monkeypatch, cache_home, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    assert str(TrainConfig().cache_dir) == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(TrainConfig().cache_dir) == "~/.cache/spkid-dist"


def used(corpus, cache_dir, limit_bytes=10**9, said=None):
    """This process's use of the corpus in the cache, sharded where it is not there; `said` gets the lines."""
    utterances = [Utterance(key, key.split("/")[1]) for key in (corpus / "list").read_text().split()]
    source = FmatrixSource(corpus / "mcp", "mcp")
    listed = ListedCorpus(list_path=corpus / "list", utterances=utterances, source=source, speakers=["a", "b"])
    say = [].append if said is None else said.append
    return cached_shards(listed, cache_dir, limit_bytes, makes_it=True, say=say, progress=lambda *_: None)


def cached(corpus, cache_dir, limit_bytes=10**9, said=None):
    """The folder of the corpus in the cache."""
    with contextlib.closing(used(corpus, cache_dir, limit_bytes, said)) as use:
        return use.folder


def test_the_default_cache_is_in_the_home_folder(corpus, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(corpus / "home"))
    assert cached(corpus, TrainConfig().cache_dir).parent == corpus / "home/.cache/spkid-dist"


def test_a_user_without_a_home_is_told_what_to_set(corpus, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does where it knows no home
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(
        InputError, match=r"--cache_dir ~/.cache/spkid-dist: this user has no home folder, .* set --cache_dir"
    ):
        cached(corpus, TrainConfig().cache_dir)
    with pytest.raises(InputError, match="--shard_cache ~/shards: this user has no home folder"):
        CacheFolder(Path("~/shards"), 1)


def test_a_home_that_cannot_be_written_is_told_what_to_set(corpus, monkeypatch):
    (corpus / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(corpus / "file"))
    with pytest.raises(InputError, match=r"file/\.cache/spkid-dist.*--cache_dir"):
        cached(corpus, TrainConfig().cache_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_folder_of_another_user_is_told_what_to_set(corpus):
    (corpus / "cache").mkdir(mode=0o500)
    with pytest.raises(InputError, match="--cache_dir"):
        cached(corpus, corpus / "cache")
