"""Conversion: stock tools read the shards, the same input gives the same bytes, a cut-short job leaves no dataset."""

import gc
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import make_corpus, shard_folder

from shards import FmatrixSource, InputError, Layout, ShardDataset, convert, make_plan, read_list
from shards.conversion.claiming import claim_folder
from shards.conversion.folder import LocalFolder
from shards.conversion.job import convert_shard
from shards.layout import MANIFEST_NAME, key_hash

LENGTHS = [5, 9, 2, 14, 7, 30, 1, 8]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("convert") / "c", LENGTHS, block_frames=16, shard_bytes=500)


def shard_paths(corpus):
    return sorted(str(path) for path in corpus.dataset.folder.glob("*.tar"))


def utterances_of(samples):
    """Key -> frames of decoded blocks."""
    found = {}
    for sample in samples:
        parts = np.split(sample["frames.npy"], np.cumsum(sample["lengths.npy"])[:-1])
        keys = sample["json"]["keys"]
        for key, speaker, label, frames in zip(
            keys, sample["json"]["speakers"], sample["labels.npy"], parts, strict=True
        ):
            assert speaker == f"spk{label}"
            assert key not in found
            found[key] = frames
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files to the collector
def test_webdataset_reads_the_shards(corpus):
    dataset = webdataset.WebDataset(shard_paths(corpus), shardshuffle=False, empty_check=False).decode()
    found = utterances_of(dataset)
    assert found.keys() == corpus.frames.keys()
    for key, frames in corpus.frames.items():
        np.testing.assert_array_equal(found[key], frames)
    gc.collect()  # webdataset's open files, while their warning is ignored


def test_tar_reads_the_shards(corpus, tmp_path):
    names = []
    for path in shard_paths(corpus):
        names += subprocess.run(["tar", "tf", path], check=True, capture_output=True, text=True).stdout.split()
        subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    frames = sum(len(np.load(path)) for path in tmp_path.glob("*.frames.npy"))
    assert frames == sum(LENGTHS)


def test_payloads_start_where_the_table_says(corpus):
    for record in corpus.dataset.blocks:
        path = shard_paths(corpus)[record["shard"]]
        assert record["payload_offset"] % 512 == 0
        with Path(path).open("rb") as file:
            file.seek(record["payload_offset"])
            frames = np.load(io.BytesIO(file.read(record["extent_bytes"])))
        assert frames.shape == (record["frames"], 3)
        with tarfile.open(path) as tar:
            assert record["payload_offset"] in [member.offset_data for member in tar if "frames" in member.name]


def test_the_utterance_table_describes_each_utterance(corpus):
    table = {int(row["key_hash"]): row for row in corpus.dataset.utterances}
    for key, frames in corpus.frames.items():
        row = table[key_hash(key)]
        assert row["frames"] == len(frames)
        assert corpus.speakers[row["speaker"]] == key.split("/")[1]


def test_mean_and_deviation_are_those_of_all_frames(corpus):
    frames = np.concatenate(list(corpus.frames.values())).astype(np.float64)
    np.testing.assert_allclose(corpus.dataset.manifest.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(corpus.dataset.manifest.std, frames.std(axis=0), rtol=1e-12)


def test_utterances_are_shuffled_before_they_are_dealt_into_blocks(corpus):
    stored = [int(row["key_hash"]) for row in corpus.dataset.utterances]
    listed = [key_hash(key) for key in corpus.frames]
    assert sorted(stored) == sorted(listed)
    assert stored != listed


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_input_gives_the_same_bytes_however_the_list_is_sorted(corpus, tmp_path):
    backwards = tmp_path / "all.train"
    backwards.write_text("".join(f"{key}\n" for key in reversed(corpus.frames)))
    layout = Layout(block_frames=16, shard_bytes=500)
    shard_folder(corpus.folder, backwards, tmp_path / "out", layout)
    assert folder_bytes(tmp_path / "out") == folder_bytes(corpus.dataset.folder)


def test_another_seed_gives_another_order(corpus, tmp_path):
    layout = Layout(block_frames=16, shard_bytes=500, seed=1)
    other = shard_folder(corpus.folder, corpus.folder / "cfg/all.train", tmp_path / "out", layout)
    assert other.fingerprint != corpus.dataset.fingerprint
    assert other.manifest.num_frames == corpus.dataset.manifest.num_frames


def plan_of(corpus):
    source = FmatrixSource(corpus.folder / "mcp", "mcp")
    utterances = read_list(corpus.folder / "cfg/all.train")
    return make_plan(utterances, corpus.speakers, source, Layout(block_frames=16, shard_bytes=500)), source


def test_an_unfinished_job_is_continued(corpus, tmp_path):
    plan, source = plan_of(corpus)
    claim_folder(plan.job, LocalFolder(tmp_path / "out"))
    convert_shard(plan.task(0), source, LocalFolder(tmp_path / "out"))
    with pytest.raises(InputError, match=r"manifest\.json: can't read the manifest"):
        ShardDataset(tmp_path / "out")
    done = []
    convert(plan, source, tmp_path / "out", lambda utterances, _frames: done.append(utterances))
    assert sum(done) == len(LENGTHS) - len(plan.share(0))
    assert folder_bytes(tmp_path / "out") == folder_bytes(corpus.dataset.folder)


def test_a_finished_job_is_not_done_again(corpus):
    plan, source = plan_of(corpus)
    done = []
    convert(plan, source, corpus.dataset.folder, lambda utterances, _frames: done.append(utterances))
    assert done == []


def test_an_output_folder_of_another_job_is_refused(corpus, tmp_path):
    plan, source = plan_of(corpus)
    (tmp_path / "job.json").write_text(json.dumps(plan.job.to_json() | {"identity": "other"}))
    with pytest.raises(InputError, match=r"holds an unfinished job of another list.*choose another --out"):
        convert(plan, source, tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_sharding_imports_no_torch():
    code = "import sys, shards; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_in_a_clear_error_and_a_rerun_on_a_larger_one_completes(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    plan, source = plan_of(corpus)
    try:
        with pytest.raises(InputError, match=r"can't be written: No space left on device; free room"):
            convert(plan, source, disk / "out")
        assert not (disk / "out" / MANIFEST_NAME).exists()
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        convert(plan, source, disk / "out")
        assert folder_bytes(disk / "out") == folder_bytes(corpus.dataset.folder)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_large_block_frames_take_no_memory_that_the_corpus_does_not_need(tmp_path, monkeypatch):
    small = make_corpus(tmp_path / "c", [7, 9, 4, 6], block_frames=2**24)
    assert len(small.dataset.blocks) == 1
    monkeypatch.setattr("shards.conversion.blocks.FIRST_BUFFER_FRAMES", 8)
    again = make_corpus(tmp_path / "d", [7, 9, 4, 6], block_frames=2**24)
    assert again.dataset.fingerprint == small.dataset.fingerprint
    monkeypatch.setattr("shards.conversion.blocks.memory_left", lambda: 300)
    with pytest.raises(
        InputError, match=r"--block_frames 16777216 .* buffer of \d+ bytes, but 300 bytes of memory are left"
    ):
        make_corpus(tmp_path / "e", [7, 9, 4, 6], block_frames=2**24)
