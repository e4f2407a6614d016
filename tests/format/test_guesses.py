"""Messages that guess what was meant: what a file seems to be, why it is missing, and what to give instead of a folder."""

import gzip
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpora import small_corpus, write
from source_checks import error_of, kaldi_folder, utterance, write_audio

from shards import AudioSource, FmatrixSource, InputError, Layout, NpySource, ShardDataset, Utterance, make_plan
from shards.conversion.frames import check_not_transposed, check_shape
from shards.guesses import describe_difference, guess_content
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig, TrainConfig
from spkid_dist.model import model_from_options
from spkid_dist.train import train_model
from spkid_dist.trained import load_weights

HTK = struct.pack(">iihh", 3, 100_000, 8, 6) + bytes(24)


def contents(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Files that are no fmatrix files: name -> (bytes, what the message says of them)."""
    kaldi_folder(folder / "kaldi")
    np.save(folder / "a.npy", np.ones((3, 2), np.float32))
    np.savez(folder / "a.npz", np.ones((3, 2), np.float32))
    audio = {
        form: write_audio(folder / f"a.{form}", format=form.upper()).read_bytes()
        for form in ("wav", "flac", "ogg", "mp3")
    }
    said = {
        form: f"seems to be {'an' if form in ('ogg', 'mp3') else 'a'} {form} file: give --source audio"
        for form in audio
    }
    return {form: (audio[form], said[form]) for form in audio} | {
        "npy": ((folder / "a.npy").read_bytes(), "seems to be a .npy file: give --source npy"),
        "npz": ((folder / "a.npz").read_bytes(), "seems to be a .npz or another zip file: give --source npy"),
        "ark": (
            (folder / "kaldi/feats.ark").read_bytes(),
            "seems to be a Kaldi archive: give --source kaldi, and --db_path the folder that holds its feats.scp",
        ),
        "matrix": ((folder / "kaldi/feats.ark").read_bytes()[10:], "seems to be a Kaldi matrix: give --source kaldi"),
        "htk": (HTK, "seems to be an HTK parameter file: give --source htk"),
        "gz": (gzip.compress(b"x" * 99), "seems to be a file packed by gzip: unpack it"),
        "txt": (b"1.5 2.5\n3.5 4.5\n", "seems to be text: save it as one of the kinds of --source"),
        "pickle": (pickle.dumps([1.0] * 9, protocol=4), "seems to be a Python pickle"),
    }


KINDS = ["wav", "flac", "ogg", "mp3", "npy", "npz", "ark", "matrix", "htk", "gz", "txt", "pickle"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_recognised(tmp_path: Path, kind: str) -> None:
    """By each source that can't read it."""
    data, said = contents(tmp_path)[kind]
    (tmp_path / "x.feat").write_bytes(data)
    sources: dict[str, Any] = {"fmatrix": FmatrixSource, "npy": NpySource, "audio": AudioSource}
    reads = {"wav": "audio", "flac": "audio", "ogg": "audio", "mp3": "audio", "npy": "npy", "npz": "npy"}.get(kind)
    for name, source in sources.items():
        if name != reads and not (name == "npy" and kind == "npz"):
            text = error_of(source(tmp_path, "feat").load, utterance("x"))
            assert text.startswith(f"{tmp_path}/x.feat: ") and said in text, name


def test_an_fmatrix_file_of_any_numbers_is_not_taken_for_another_kind(tmp_path: Path) -> None:
    """Nor is one that is cut short, unless its numbers begin as another kind does."""
    for frames in (1, 13, 500):
        write_fmatrix(tmp_path / "x.mcp", np.zeros((frames, 20), np.float32))
        data = (tmp_path / "x.mcp").read_bytes()
        assert guess_content(data, "fmatrix") is None
        (tmp_path / "x.mcp").write_bytes(data[:-1])
        assert "truncated" in error_of(FmatrixSource(tmp_path).load, utterance("x"))


def test_list_lines_that_end_in_the_extension_are_named(tmp_path: Path) -> None:
    small_corpus(tmp_path, ["x/ada/1"])
    text = error_of(FmatrixSource(tmp_path / "mcp").load, utterance("x/ada/1.mcp"))
    assert text == (
        f"{tmp_path}/mcp/x/ada/1.mcp.mcp: can't read this feature file: No such file or directory; there is "
        f"{tmp_path}/mcp/x/ada/1.mcp: the list's lines have the extension already; remove .mcp from them"
    )
    write_audio(tmp_path / "y.wav")
    assert "there is" in (text := error_of(AudioSource(tmp_path).load, utterance("y.wav")))
    assert text.endswith("remove .wav from them")


def test_what_lies_where_a_file_is_missing_is_named(tmp_path: Path) -> None:
    write_audio(tmp_path / "y.wav")
    text = error_of(FmatrixSource(tmp_path).load, utterance("y"))
    assert text.endswith("; there is y.wav in its folder: give --ext wav and --source audio")
    write_fmatrix(tmp_path / "z.fea", np.ones((2, 2), np.float32))
    text = error_of(FmatrixSource(tmp_path).load, utterance("z"))
    assert text.endswith("; there is z.fea in its folder: give --ext fea")
    text = error_of(FmatrixSource(tmp_path).load, utterance("none/z"))
    assert text.endswith(
        f"; the folder {tmp_path}/none does not exist; give the folder of the files by --db_path, or correct the list"
    )
    text = error_of(FmatrixSource(tmp_path).load, utterance("nothing"))
    assert text.endswith("; check the list, --db_path and --ext")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder with two datasets of two speakers below it: shards/train, shards/test."""
    listed = small_corpus(tmp_path, [f"x/{name}/{take}" for name in ("ada", "bob") for take in range(2)])
    for name in ("train", "test"):
        out = str(tmp_path / "shards" / name)
        flags: dict[str, Any] = {"db_path": tmp_path / "mcp", "list_file": listed, "spk2idx": tmp_path / "map.json"}
        shard(ShardConfig(**flags, out=out))
    return tmp_path / "shards"


def test_the_datasets_below_a_folder_are_named(sharded: Path) -> None:
    for folder in (sharded, sharded.parent):
        assert error_of(ShardDataset, folder) == (
            f"{folder}/manifest.json: can't read the manifest: No such file or directory; there are datasets below it, give "
            f"one of them: {sharded}/test, {sharded}/train"
        )


def test_shards_that_are_not_joined_yet_are_told_from_shards_without_a_manifest(tmp_path: Path) -> None:
    listed = small_corpus(tmp_path, [f"x/{name}/{take}" for name in ("ada", "bob") for take in range(2)])
    flags: dict[str, Any] = {"db_path": tmp_path / "mcp", "list_file": listed, "spk2idx": tmp_path / "map.json"}
    out = tmp_path / "out"
    shard(ShardConfig(**flags, out=str(out), task="0/2", shard_bytes=100))
    assert error_of(ShardDataset, out).endswith(
        "; it is an unfinished job of `spkid shard`: run its command, or its tasks, to their end; where all tasks are done: "
        f"spkid merge {out}"
    )
    (out / "job.json").unlink()
    assert error_of(ShardDataset, out).endswith(f"; it holds shards without a manifest; make one: spkid index {out}")
    tar = next(out.glob("*.tar"))
    assert error_of(ShardDataset, tar).endswith(
        f"it is a file; give the folder that `spkid shard` has finished, perhaps {out}"
    )
    shutil.rmtree(out)
    assert error_of(ShardDataset, out).endswith("; give a folder that `spkid shard` has finished")


def test_datasets_that_do_not_fit_together_are_told_apart_by_their_numbers(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def refused(other: Path) -> str:
        config = TrainConfig(
            tr_shards=str(sharded / "train"), va_shards=str(other), save_path=tmp_path / "ckpt", in_frames=3
        )
        return error_of(train_model, config)

    wide = tmp_path / "wide/mcp"
    (wide / "x/ada").mkdir(parents=True)
    write_fmatrix(wide / "x/ada/0.mcp", np.ones((6, 5), np.float32))
    flags: dict[str, Any] = {"list_file": write(tmp_path / "one", "x/ada/0\n")}
    shard(ShardConfig(**flags, db_path=wide, spk2idx=tmp_path / "map.json", out=str(tmp_path / "wide/out")))
    assert refused(tmp_path / "wide/out") == (
        f"{tmp_path}/wide/out: its features per frame are 5, those of the training set {sharded}/train are 3; shard both with "
        "the same features"
    )
    shard(ShardConfig(**flags, db_path=tmp_path / "mcp", spk2idx=tmp_path / "2.json", out=str(tmp_path / "few")))
    assert refused(tmp_path / "few") == (
        f"{tmp_path}/few: its speakers are 1, those of the training set {sharded}/train are 2 (class 1 is 'bob'); shard both "
        "with the same --spk2idx"
    )


def test_of_two_values_what_differs_is_described() -> None:
    assert describe_difference({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ("b 2, c None", "b 3, c 4")
    assert describe_difference(["x", "y"], ["x", "z"]) == ("2 (class 1 is 'y')", "2 (class 1 is 'z')")
    assert describe_difference(None, {"a": 1}) == ("none", "{'a': 1}")
    assert describe_difference(20, 40) == ("20", "40")


@pytest.mark.parametrize(
    ("weights", "options", "said"),
    [
        ({"normalize": "global"}, {}, "with --normalize global, the options of one without"),
        ({}, {"normalize": "global"}, "without --normalize global, the options of one with"),
        ({"batch_norm": True}, {}, "with --batch_norm, the options of one without"),
        ({"num_layers": 2}, {}, "give weights of this kind of network"),
    ],
)
def test_weights_of_other_options_are_told_by_the_option(
    tmp_path: Path, weights: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    shared = {"input_dim": 3, "in_frames": 2, "hsize": 4, "num_spks": 2}
    torch.save(model_from_options(shared | weights).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=said):
        load_weights(model_from_options(shared | options), tmp_path / "w.ckpt", tmp_path / "train.opts", None)


def test_transposed_arrays_are_named_so(tmp_path: Path) -> None:
    for number, length in enumerate((30, 31, 45)):
        np.save(tmp_path / f"{number}.npy", np.ones((20, length), np.float32))
    source, listed = NpySource(tmp_path), [Utterance(str(number), "s") for number in range(3)]
    with pytest.raises(
        InputError, match=r"2 other .* have 20 frames each, but 30 to 45 features .*transposed.*save array.T"
    ):
        make_plan(listed, ["s"], source, Layout())
    with pytest.raises(InputError, match=r"^x: 7 features per frame, but the others have 3; it seems to be transposed"):
        check_shape(np.ones((3, 7), np.float32), 3, "the others have", "x")
    with pytest.raises(InputError, match=r"compute them again alike$"):
        check_shape(np.ones((4, 7), np.float32), 3, "the others have", "x")
    check_not_transposed([np.ones((4, 7)), np.ones((4, 7))], "x")
    check_not_transposed([np.ones((4, 7)), np.ones((5, 8))], "x")


def test_a_file_of_torch_is_named_so(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 2), tmp_path / "a.npy")
    for source in (NpySource(tmp_path), FmatrixSource(tmp_path, "npy")):
        with pytest.raises(
            InputError, match=r"seems to be a file of torch.save: save the tensor by numpy.save\(path, tensor"
        ):
            source.load(Utterance("a", "s"))


def test_an_fmatrix_file_of_the_other_byte_order_is_named_so_and_read_once_swapped(tmp_path: Path) -> None:
    frames = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = tmp_path / "a.mcp"
    write_fmatrix(path, frames)
    np.fromfile(path, "<i4").astype(">i4").tofile(path)
    source = FmatrixSource(tmp_path, "mcp")
    with pytest.raises(
        InputError, match=r"it seems to be a big-endian file: swap the bytes, by numpy.fromfile\(path, '>i4'"
    ):
        source.load(Utterance("a", "s"))
    np.fromfile(path, ">i4").astype("<i4").tofile(path)
    assert np.array_equal(source.load(Utterance("a", "s")), frames)


def test_arrays_of_whole_numbers_and_objects_are_refused_by_their_type(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.ones((3, 2), np.int16))
    np.save(tmp_path / "o.npy", np.array([[None, 1], [2, 3]], object), allow_pickle=True)
    for key, kind in (("i", "<i2"), ("o", r"\|O")):
        with pytest.raises(InputError, match=rf"type is '{kind}', expected floating numbers .*save array.astype"):
            NpySource(tmp_path).load(Utterance(key, "s"))
