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
        ("soundfile", "audio", "'kaldi-native-fbank>=1.23' 'soundfile>=0.13'"),
        ("kaldi_native_fbank", "audio", "'kaldi-native-fbank>=1.23' 'soundfile>=0.13'"),
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
