"""Paths that users may give: with characters of patterns, line breaks, bytes that are no UTF-8, and with several names."""

import os

import pytest
from conftest import make_corpus

from shards import FmatrixSource, read_list
from shards.layout import MANIFEST_NAME
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.ranks.sharded_once import ListedCorpus, cached_shards
from spkid_dist.scoring.trainedon import _cached

NOT_UTF8 = os.fsdecode(b"caf\xe9")
NAMES = ["a**b", "**", "a[b", "[a-z]*?", "a\nb", "{x}", "a b", "-x", NOT_UTF8, "é"]


@pytest.fixture
def folder(tmp_path):
    return make_corpus(tmp_path / "c", [3, 4, 5]).folder


def words_of(folder, listed, out, *more):
    paths = ("--db_path", folder / "mcp", f"--list={listed}", "--spk2idx", folder / "cfg/spk2idx.json")
    return ("shard", *paths, f"--out={out}", *more)


@pytest.mark.parametrize("name", NAMES)
def test_lists_and_folders_of_any_name_are_taken(spkid, folder, name):
    listed, out = folder / name, folder / f"out{name}"
    listed.write_bytes((folder / "cfg/all.train").read_bytes())
    assert spkid(*words_of(folder, listed, out, "--task", "0/1", "--block_frames", 4))[::2] == (0, "")
    assert (out / MANIFEST_NAME).exists()
    for command in ("verify", "info", "merge", "index"):
        assert spkid(command, out)[::2] == (0, "")
    (folder / f"{name}.list").write_text("X/spk0/utt000\nnone\n")
    code, _, error = spkid(*words_of(folder, folder / f"{name}.list", folder / "other"))
    assert code == 1
    assert error.count("\n") == 1
    assert "utterance 'none' has no component 2" in error


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_any_name_is_sharded_on_the_way_to_training(folder, name):
    listed = folder / name
    listed.write_bytes((folder / "cfg/all.train").read_bytes())
    corpus = ListedCorpus(
        list_path=listed, utterances=read_list(listed), source=FmatrixSource(folder / "mcp"), speakers=["spk0", "spk1"]
    )
    said = []
    made = []
    for _ in range(2):
        use = cached_shards(corpus, folder / "cache", 10**9, makes_it=True, say=said.append, progress=lambda *_: None)
        made.append(use.folder)
        use.close()
    assert made[0] == made[1]
    assert "using the shards in" in said[-1]
    assert list(_cached({"cache_dir": folder / "cache", "tr_list_file": listed})) == [made[0]]


@pytest.mark.parametrize("flag", ["--ext", "--speaker_regex"])
def test_a_flag_that_the_dataset_keeps_must_be_utf8(spkid, folder, flag):
    code, _, error = spkid(*words_of(folder, folder / "cfg/all.train", folder / "out", flag, NOT_UTF8))
    assert (code, error) == (2, f"spkid: error: {flag} caf\\udce9: is not UTF-8; give it in UTF-8\n")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "name", ["X/./spk0/utt000", "X//spk0/utt000", "./X/spk0/utt000", "X/spk0/utt000/", "X/spk0/./utt000"]
)
def test_a_file_can_not_be_listed_under_two_names(spkid, folder, name):
    (folder / "list").write_text(f"X/spk0/utt000\n{name}\n")
    code, _, error = spkid(*words_of(folder, folder / "list", folder / "out"))
    assert (code, error) == (
        1,
        f"spkid: error: {folder}/list:2: utterance '{name}' has a component that is empty or '.'; a file may be listed under "
        "one name only: write 'X/spk0/utt000'\n",
    )


def test_a_name_of_the_components_that_may_be_is_taken(spkid, folder):
    write_fmatrix(folder / "mcp/X/spk0/...mcp", read_of(folder))
    write_fmatrix(folder / "mcp/X/spk0/.a.mcp", read_of(folder))
    (folder / "list").write_text("X/spk0/..\nX/spk0/.a\n")
    assert "leaves the feature folder" in spkid(*words_of(folder, folder / "list", folder / "out"))[2]
    (folder / "list").write_text("X/spk0/.a\n")
    assert spkid(*words_of(folder, folder / "list", folder / "out"))[0] == 0


def read_of(folder):
    from shards.sources.fmatrix import read_fmatrix

    return read_fmatrix(str(folder / "mcp/X/spk0/utt000.mcp"))


def test_an_utterance_longer_than_the_flag_says_stops_or_is_skipped(spkid, folder):
    words = words_of(folder, folder / "cfg/all.train", folder / "out", "--max_frames", 4)
    code, _, error = spkid(*words)
    assert code == 1
    assert error == (
        f"spkid: error: {folder}/mcp/X/spk0/utt002.mcp: 5 frames; expected at most 4: cut it into shorter utterances, leave it "
        "out, or give --max_frames 5\n"
    )
    code, printed, error = spkid(*words, "--skip_bad")
    assert (code, error) == (0, "")
    assert "skipped X/spk0/utt002: " in printed
    assert '"skipped": 1' in printed
    assert spkid(*words_of(folder, folder / "cfg/all.train", folder / "out2", "--max_frames", 5))[0] == 0
