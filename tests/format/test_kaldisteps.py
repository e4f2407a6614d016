"""cmvn.scp and vad.scp of Kaldi folders."""

import json
import pickle
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
from source_checks import error_of, kaldi_folder, utterance

from shards import InputError, KaldiSource, ShardDataset, UsageError, source_from_description
from shards.sources import source_of_task
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig

pytestmark = pytest.mark.fast


def with_statistics(folder: Path, by: str = "speaker", text: bool = False) -> dict[str, np.ndarray]:
    """A folder with cmvn.scp and vad.scp; its frames, far from 0 so that sums of squares need float64."""
    kaldi_folder(folder)
    generator = np.random.default_rng(5)
    frames = {f"spk{i % 2}-utt{i}": (generator.standard_normal((9 + i, 4)) + 300).astype("f4") for i in range(3)}
    kaldiio.save_ark(str(folder / "feats.ark"), frames, scp=str(folder / "feats.scp"))
    sums: dict[str, np.ndarray] = {}
    for key, value in frames.items():
        exact = value.astype(np.float64)
        stats = np.zeros((2, 5))
        stats[:, :4] = exact.sum(axis=0), (exact**2).sum(axis=0)
        stats[0, 4] = len(value)
        name = key[:4] if by == "speaker" else key
        sums[name] = sums.get(name, np.zeros((2, 5))) + stats
    kaldiio.save_ark(str(folder / "cmvn.ark"), sums, scp=str(folder / "cmvn.scp"), text=text)
    voiced = {key: (np.arange(len(value)) % 3 != 0).astype("f4") for key, value in frames.items()}
    kaldiio.save_ark(str(folder / "vad.ark"), voiced, scp=str(folder / "vad.scp"), text=text)
    return frames


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_the_mean_of_a_speaker_becomes_0(tmp_path: Path, text: bool) -> None:
    frames = with_statistics(tmp_path, text=text)
    source = KaldiSource.open(tmp_path, cmvn="mean")
    mean = np.concatenate([frames["spk0-utt0"], frames["spk0-utt2"]]).astype(np.float64).mean(axis=0)
    found = source.load(utterance("spk0-utt0"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, frames["spk0-utt0"] - mean, atol=5e-5)


def test_the_deviation_of_an_utterance_becomes_1(tmp_path: Path) -> None:
    frames = with_statistics(tmp_path, by="utterance")
    source = KaldiSource.open(tmp_path, cmvn="variance")
    for key, value in frames.items():
        exact = value.astype(np.float64)
        found = source.load(utterance(key))
        np.testing.assert_allclose(found, (exact - exact.mean(axis=0)) / exact.std(axis=0), atol=1e-4)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_voiced_frames_alone_are_kept(tmp_path: Path, text: bool) -> None:
    frames = with_statistics(tmp_path, text=text)
    found = KaldiSource.open(tmp_path, vad=True).load(utterance("spk0-utt2"))
    np.testing.assert_array_equal(found, frames["spk0-utt2"][np.arange(11) % 3 != 0])


def test_vectors_of_kaldi_are_read(tmp_path: Path) -> None:
    kaldi_native_io = pytest.importorskip("kaldi_native_io", reason="kaldi_native_io is not installed")
    frames = with_statistics(tmp_path)
    with kaldi_native_io.FloatVectorWriter(f"ark,scp:{tmp_path}/v.ark,{tmp_path}/vad.scp") as writer:
        for key, value in frames.items():
            writer.write(key, (np.arange(len(value)) < 4).astype("f4"))
    with kaldi_native_io.DoubleMatrixWriter(f"ark,scp:{tmp_path}/c.ark,{tmp_path}/cmvn.scp") as writer:
        writer.write("spk0", np.array([[2.0, 4, 6, 8, 2], [9, 9, 9, 99, 0]]))
    found = KaldiSource.open(tmp_path, vad=True, cmvn="mean").load(utterance("spk0-utt0"))
    np.testing.assert_allclose(found, frames["spk0-utt0"][:4] - np.float32([1, 2, 3, 4]))


def test_a_task_is_sent_what_its_steps_need(tmp_path: Path) -> None:
    with_statistics(tmp_path)
    source = KaldiSource.open(tmp_path, cmvn="mean", vad=True)
    part = pickle.loads(pickle.dumps(source_of_task(source, [utterance("spk0-utt2")])))  # noqa: S301 - pickled here
    assert (list(part.steps.statistics), list(part.steps.voiced)) == (["spk0"], ["spk0-utt2"])
    np.testing.assert_array_equal(part.load(utterance("spk0-utt2")), source.load(utterance("spk0-utt2")))


def shard_folder(folder: Path, out: str, **flags: Any) -> ShardDataset:
    path = folder / out
    shard(ShardConfig(source="kaldi", db_path=folder / "data", out=str(path), spk2idx=folder / "map.json", **flags))
    return ShardDataset(path)


def test_the_dataset_keeps_the_steps_and_is_not_mixed_with_others(tmp_path: Path) -> None:
    with_statistics(tmp_path / "data")
    assert shard_folder(tmp_path, "plain").manifest.source == {"kind": "kaldi"}
    manifest = shard_folder(tmp_path, "steps", kaldi_cmvn="mean", kaldi_vad=True).manifest
    assert manifest.source == {"kind": "kaldi", "features": {"cmvn": "mean", "vad": True}}
    assert manifest.num_frames == 6 + 6 + 7
    source = source_from_description(json.loads(json.dumps(manifest.source)), tmp_path / "data")
    assert source == KaldiSource.open(tmp_path / "data", cmvn="mean", vad=True)
    with pytest.raises(InputError, match="append alike"):
        shard_folder(tmp_path, "plain", kaldi_vad=True, append=True)


def test_what_a_step_lacks_is_an_error(tmp_path: Path) -> None:
    with_statistics(tmp_path)
    cmvn, vad = tmp_path / "cmvn.scp", tmp_path / "vad.scp"
    first = vad.read_text().splitlines(keepends=True)
    vad.write_text("".join(first[1:]))
    assert error_of(KaldiSource.open(tmp_path, vad=True).load, utterance("spk0-utt0")) == (
        f"{vad}: it has no line of 'spk0-utt0'; compute it again, or leave the utterance out"
    )
    vad.write_text(first[0].replace("spk0-utt0", "spk1-utt1"))
    assert "9 decisions on voice, but " in error_of(KaldiSource.open(tmp_path, vad=True).load, utterance("spk1-utt1"))
    cmvn.write_text(cmvn.read_text().replace("spk0 ", "other "))
    assert "it has no line of 'spk0'" in error_of(KaldiSource.open(tmp_path, cmvn="mean").load, utterance("spk0-utt0"))
    cmvn.unlink()
    assert error_of(lambda: KaldiSource.open(tmp_path, cmvn="mean")).endswith("or leave --kaldi_cmvn out")


@pytest.mark.parametrize("features", [{"cmvn": "x"}, {"vad": 1}, {"tempo": 2}])
def test_a_damaged_description_of_steps_is_an_error(tmp_path: Path, features: Any) -> None:
    with_statistics(tmp_path)
    text = error_of(source_from_description, {"kind": "kaldi", "features": features}, tmp_path)
    assert text.startswith("the Kaldi features in train.opts or the manifest are ")


def test_statistics_of_other_features_are_an_error(tmp_path: Path) -> None:
    with_statistics(tmp_path)
    kaldiio.save_ark(str(tmp_path / "c.ark"), {"spk0": np.ones((2, 4))}, scp=str(tmp_path / "cmvn.scp"))
    assert "statistics of 2 x 4 values; expected 2 x 5 for 4 features" in error_of(
        KaldiSource.open(tmp_path, cmvn="mean").load, utterance("spk0-utt0")
    )


def test_the_flags_are_for_kaldi_folders() -> None:
    with pytest.raises(
        UsageError, match=r"^--source npy: the flags --kaldi_\* are for --source kaldi; leave them out$"
    ):
        ShardConfig(out="o", source="npy", kaldi_vad=True)
