"""All sources: the registry, and the commands that use them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_checks import FRAMES, RATE, error_of, kaldi_folder, options, write_audio

from shards import (
    AudioSource,
    FmatrixSource,
    HtkSource,
    KaldiSource,
    NpySource,
    ShardDataset,
    Source,
    UsageError,
    Utterance,
    source_from_description,
)
from shards.sources.htk import HtkParameters
from shards.sources.limits import UtteranceLimit
from shards.sources.registry import SOURCES
from spkid_dist.commands.shard import shard
from spkid_dist.config import ScoreConfig, ShardConfig, TrainConfig
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model


def test_every_source_is_rebuilt_from_its_description(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    sources: list[Source] = [
        FmatrixSource(tmp_path, "mfc"),
        NpySource(tmp_path, "npz"),
        KaldiSource.open(tmp_path),
        AudioSource(tmp_path, "flac", options(kind="mfcc", num_ceps=12, channel=2, shift_ms=12.5)),
        HtkSource(tmp_path, "htk", HtkParameters("PLP_0", 12.5)),
    ]
    assert [source.describe()["kind"] for source in sources] == list(SOURCES)
    for source in (*sources, FmatrixSource(tmp_path, "mgc", num_features=25), HtkSource(tmp_path)):
        description = json.loads(json.dumps(source.describe()))
        assert source_from_description(description, tmp_path) == source


def test_description_of_no_known_source_is_an_error() -> None:
    for kind in ("sphinx", None, []):
        assert error_of(source_from_description, {"kind": kind}, Path()) == (
            f"the source in train.opts or the manifest is of kind {kind!r}, expected one of fmatrix, npy, kaldi, "
            "audio, htk; install the package that registers it, or use the program's version that wrote it"
        )


@pytest.mark.parametrize("features", [None, {"tempo": 1}, {"num_bins": "x"}, {"num_bins": -1}])
def test_damaged_description_of_features_is_an_error(features: Any) -> None:
    text = error_of(source_from_description, {"kind": "audio", "features": features}, Path())
    assert text.startswith("the audio features in train.opts or the manifest are damaged: ")
    assert text.endswith("; expected what `spkid shard` wrote: shard and train again")


@pytest.mark.parametrize(
    ("module", "kind", "packages"),
    [
        ("kaldiio", "kaldi", "'kaldiio>=2.18'"),
        ("soundfile", "audio", "'kaldi-native-fbank>=1.23' 'soundfile>=0.13' 'soxr>=0.5'"),
        ("kaldi_native_fbank", "audio", "'kaldi-native-fbank>=1.23' 'soundfile>=0.13' 'soxr>=0.5'"),
    ],
)
def test_missing_library_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, kind: str, packages: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as raised:
        source_from_description({"kind": kind, "features": {}}, Path())
    assert str(raised.value) == (
        f"{module} can't be imported (import of {module} halted; None in sys.modules), and this source needs it: run "
        f"{sys.executable} -m pip install {packages}"
    )


def test_importing_shards_imports_neither_torch_nor_what_only_some_sources_need() -> None:
    program = "import sys, shards; print({'torch', 'kaldiio', 'soundfile', 'kaldi_native_fbank'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "set()"


def frames_of(folder: Path) -> dict[str, int]:
    """Frames of all utterances of a dataset, by speaker."""
    dataset = ShardDataset(folder)
    totals = dict.fromkeys(dataset.manifest.speakers, 0)
    for record in dataset.utterances:
        totals[dataset.manifest.speakers[record["speaker"]]] += int(record["frames"])
    return totals


def shard_in(folder: Path, **flags: Any) -> ShardDataset:
    shard(ShardConfig(out=folder / "shards", spk2idx=folder / "spk2idx.json", **flags))
    return ShardDataset(folder / "shards")


def test_kaldi_folder_is_sharded_without_a_list(tmp_path: Path) -> None:
    kaldi_folder(tmp_path / "data")
    dataset = shard_in(tmp_path, source="kaldi", db_path=tmp_path / "data")
    assert dataset.manifest.source == {"kind": "kaldi"}
    assert frames_of(tmp_path / "shards") == {"spk0": 20, "spk1": 10}


def test_kaldi_folder_is_sharded_by_a_list_with_the_speakers_of_its_utt2spk(tmp_path: Path) -> None:
    kaldi_folder(tmp_path / "data")
    (tmp_path / "list").write_text("spk0-utt2\n")
    shard_in(tmp_path, source="kaldi", db_path=tmp_path / "data", list_file=tmp_path / "list")
    assert frames_of(tmp_path / "shards") == {"spk0": 11}


def test_npy_files_are_sharded_with_a_table_of_speakers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", FRAMES)
    (tmp_path / "list").write_text("a\nb\n")
    (tmp_path / "table").write_text("a\tada\nb\tbob\n")
    dataset = shard_in(
        tmp_path, source="npy", db_path=tmp_path, list_file=tmp_path / "list", speaker_tsv=tmp_path / "table"
    )
    assert dataset.manifest.source == {"kind": "npy", "ext": "npy", "speaker_rule": {"by": "speaker_tsv"}}
    assert frames_of(tmp_path / "shards") == {"ada": 13, "bob": 13}


def test_new_kind_of_source_needs_one_line_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RawSource(NpySource):
        @classmethod
        def from_description(cls, _description: dict[str, Any], db_path: Path, _limit: UtteranceLimit) -> "RawSource":
            return cls(db_path, "raw")

        def describe(self) -> dict[str, Any]:
            return {"kind": "raw"}

        def load(self, utterance: Utterance) -> np.ndarray:
            return np.fromfile(self.where(utterance), np.float32).reshape(-1, 5)

    monkeypatch.setitem(SOURCES, "raw", RawSource.from_description)
    FRAMES.tofile(tmp_path / "a.raw")
    (tmp_path / "list").write_text("a\n")
    dataset = shard_in(tmp_path, source="raw", db_path=tmp_path, list_file=tmp_path / "list", speaker_component=1)
    assert dataset.manifest.source == {"kind": "raw", "speaker_rule": {"by": "component", "value": 1}}
    assert frames_of(tmp_path / "shards") == {"a": 13}


def test_unknown_source_and_features_without_audio_are_used_wrongly() -> None:
    with pytest.raises(
        UsageError,
        match=r"^--source sphinx: expected one of fmatrix, .*audio, htk, or a class of your own as MODULE:CLASS$",
    ):
        ShardConfig(out=Path("o"), source="sphinx")
    with pytest.raises(UsageError) as raised:
        ShardConfig(out=Path("o"), source="npy", features=options())
    assert str(raised.value) == "--source npy: the flags --features.* are for --source audio; leave them out"


def train_and_score(folder: Path, db_path: Path, lists: dict[str, Path], **flags: Any) -> tuple[dict[str, Any], float]:
    """Shard audio, train, score it again from the audio; train.opts and the share of wrong utterances."""
    for name, list_file in lists.items():
        spk2idx = folder / "spk2idx.json"
        shard(
            ShardConfig(
                out=folder / name, source="audio", db_path=db_path, list_file=list_file, spk2idx=spk2idx, **flags
            )
        )
    result = train_model(
        TrainConfig(
            tr_shards=str(folder / "train"),
            va_shards=str(folder / "test"),
            save_path=folder / "ckpt",
            epoch=3,
            in_frames=11,
            batch_size=50,
            lr=0.003,
            normalize="global",
            cache_dir=folder,
        )
    )
    scores = score_utterances(
        ScoreConfig(
            db_path=db_path,
            te_list_file=lists["test"],
            weights_ckpt=result.best_weights,
            train_cfg=folder / "ckpt/train.opts",
            log_file=folder / "scores.log",
            speaker_regex=flags["speaker_regex"],
        )
    )
    train_options = json.loads((folder / "ckpt/train.opts").read_text())
    return train_options, float((scores.found != scores.true).mean())


def write_lists(folder: Path, train_keys: list[str], test_keys: list[str]) -> dict[str, Path]:
    lists = {"train": folder / "all.train", "test": folder / "all.test"}
    for path, keys in zip(lists.values(), (train_keys, test_keys), strict=True):
        path.write_text("".join(f"{key}\n" for key in keys))
    return lists


def test_scoring_audio_computes_the_features_of_the_training(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    keys = [f"{speaker}-{index}" for index in range(4) for speaker in ("low", "high")]
    for key in keys:
        time = np.arange(4000) / RATE
        tone = np.sin(2 * np.pi * (300 if key.startswith("low") else 2000) * time) * 0.3
        write_audio(tmp_path / f"{key}.flac", tone + generator.standard_normal(4000) * 0.01)
    lists = write_lists(tmp_path, keys[:6], keys[6:])
    features = options(kind="mfcc", num_ceps=9, shift_ms=8)
    saved, error_rate = train_and_score(
        tmp_path, tmp_path, lists, speaker_regex="^(.+)-", ext="flac", features=features
    )
    assert saved["input_dim"] == 9
    kept = {"by": "regex", "value": "^(.+)-"}
    assert saved["source"] == {"kind": "audio", "ext": "flac", "features": features.describe(), "speaker_rule": kept}
    assert error_rate == 0


def test_digits_are_sharded_trained_and_scored_from_their_recordings(digits: Path, tmp_path: Path) -> None:
    lists = {name: digits / f"cfg/all.{name}" for name in ("train", "test")}
    _, error_rate = train_and_score(
        tmp_path, digits / "wav", lists, speaker_regex="^FSDD/(.+)/", features=options(num_bins=20)
    )
    assert error_rate <= 0.15  # the worst of 8 seeds: 5 of 60
