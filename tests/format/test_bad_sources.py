"""Sources that can't be sharded: one line, the documented exit code, and no dataset."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_corpus
from source_checks import RATE, kaldi_folder, samples, write_audio

from shards.layout import FORMAT_VERSION, MANIFEST_NAME


def stereo(path):
    write_audio(path, samples(channels=2))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_rate(path):
    import soundfile

    soundfile.write(path, samples(), 2 * RATE)


def short_data(path):
    data = bytearray(path.read_bytes())
    data[40:44] = (1000).to_bytes(4, "little")
    path.write_bytes(data)


def cut_as(kind):
    def damage(path):
        write_audio(path, format=kind)
        path.write_bytes(path.read_bytes()[:-700])

    return damage


BAD_AUDIO = {
    "too few samples named": (short_data, r"7000 bytes behind its samples are no chunk"),
    "half of an mp3": (cut_as("MP3"), r"truncated: \d+ of \d+ bytes"),
    "half of a SPHERE file": (cut_as("NIST"), r"truncated: 7300 of 8000 bytes of samples"),
    "an m4a": (
        lambda path: path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99)),
        r".*seems to be an m4a.*give --ffmpeg",
    ),
    "corrupt": (lambda path: path.write_bytes(b"RIFF" + bytes(40)), r"can't decode this audio file"),
    "truncated": (cut, r"truncated: \d+ of \d+ bytes of samples"),
    "empty": (lambda path: path.write_bytes(b""), r"the file is empty"),
    "no samples": (lambda path: write_audio(path, np.zeros(0, np.float32)), r"0 samples; expected audio"),
    "stereo": (stereo, r"it has 2 channels, expected one: choose one with --features\.channel"),
    "mixed sample rates": (other_rate, rf"its sample rate is {2 * RATE} Hz, expected {RATE} Hz"),
}


def audio_arguments(folder):
    """Two audio files in `folder`, and the command that shards them."""
    for name in ("X-ada-1", "X-bob-2"):
        write_audio(folder / f"{name}.wav")
    (folder / "list").write_text("X-ada-1\nX-bob-2\n")
    flags = ("--source", "audio", "--features.sample_rate", RATE, "--features.num_bins", 8)
    paths = ("--db_path", folder, "--list", folder / "list", "--spk2idx", folder / "spk2idx.json")
    return ("shard", *flags, *paths, "--speaker_regex", "-(.+)-", "--out", folder / "out")


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_ends_in_one_line_and_can_be_skipped(spkid, tmp_path, case):
    import re

    damage, message = BAD_AUDIO[case]
    arguments = audio_arguments(tmp_path)
    damage(tmp_path / "X-bob-2.wav")
    code, _, error = spkid(*arguments)
    assert code == 1
    assert re.search(rf"X-bob-2\.wav: {message}", error), error
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    code, printed, error = spkid(*arguments, "--skip_bad")
    assert (code, error) == (0, "")
    assert re.search(rf"skipped X-bob-2: .*{message}", printed), printed
    assert json.loads(next(line for line in printed.splitlines() if line.startswith("{")))["skipped"] == 1


def test_an_scp_that_points_past_its_archive_ends_in_one_line(spkid, tmp_path):
    folder = tmp_path / "data"
    kaldi_folder(folder)
    lines = (folder / "feats.scp").read_text().splitlines()
    lines[-1] = lines[-1].rpartition(":")[0] + ":999999"  # the matrices before it are sound
    (folder / "feats.scp").write_text("\n".join(lines))
    flags = ("--source", "kaldi", "--db_path", folder, "--spk2idx", tmp_path / "spk2idx.json")
    code, _, error = spkid("shard", *flags, "--out", tmp_path / "out")
    assert code == 1
    assert "the offset is past the end of the archive" in error
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def arguments_of(folder, out, *more):
    """The command that shards the corpus of `make_corpus` in `folder`."""
    paths = ("--db_path", folder / "mcp", "--list", folder / "cfg/all.train", "--spk2idx", folder / "cfg/spk2idx.json")
    return ("shard", *paths, "--ext", "mcp", "--out", out, *more)


def test_a_table_of_speakers_with_wrong_columns_ends_in_one_line(spkid, tmp_path):
    folder = make_corpus(tmp_path / "c", [3, 4]).folder
    (folder / "speakers.tsv").write_text("X/spk0/utt000\tspk0\nX/spk1/utt001\tspk1\tfemale\n")
    code, _, error = spkid(*arguments_of(folder, tmp_path / "out", "--speaker_tsv", folder / "speakers.tsv"))
    assert code == 1
    assert "speakers.tsv:2: 3 columns" in error
    assert not (tmp_path / "out").exists()


def test_a_task_that_can_not_be_ends_in_one_line_of_usage(spkid, tmp_path):
    folder = make_corpus(tmp_path / "c", [3, 4]).folder
    code, _, error = spkid(*arguments_of(folder, tmp_path / "out", "--task", "5/3"))
    assert code == 2
    assert error.count("\n") == 1
    assert "--task 5/3: task 5 of 3: expected i from 0 to 2" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["features", "dtype"])
def test_shards_of_two_corpora_are_not_merged(spkid, tmp_path, change):
    folders = [make_corpus(tmp_path / f"c{number}", [3, 4, 5, 6], 3 + number).folder for number in (0, 1)]
    small = ("--block_frames", 4, "--shard_bytes")
    half = (folders[0], *small, 50, "--dtype", "float16")  # as many shards
    folder, *options = half if change == "dtype" else (folders[1], *small, 100)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    assert spkid(*arguments_of(folders[0], mine, *small, 100, "--task", "0/2"))[0] == 0
    assert spkid(*arguments_of(folder, theirs, *options, "--task", "1/2"))[0] == 0
    shutil.copytree(theirs, mine, dirs_exist_ok=True, ignore=shutil.ignore_patterns("job.json"))
    code, _, error = spkid("merge", mine)
    assert code == 1
    expected = "4 features per frame, but the job's have 3" if change == "features" else "a record of job"
    assert expected in error
    assert "delete it and run its task again" in error
    assert not (mine / MANIFEST_NAME).exists()


@pytest.mark.parametrize("command", ["shard", "merge", "verify", "info"])
def test_a_dataset_of_a_newer_version_is_left_alone(spkid, tmp_path, command):
    corpus = make_corpus(tmp_path / "c", [3, 4])
    path = corpus.folder / "shards" / MANIFEST_NAME
    newer = json.dumps(json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1})
    path.write_text(newer)
    arguments = arguments_of(corpus.folder, path.parent) if command == "shard" else (command, path.parent)
    code, printed, error = spkid(*arguments)
    assert code == 1
    assert f"format version {FORMAT_VERSION + 1}, but this program reads version {FORMAT_VERSION}" in printed + error
    assert path.read_text() == newer
