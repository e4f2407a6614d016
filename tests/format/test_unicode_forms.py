"""One name in two Unicode forms, NFC and NFD: one speaker; files and keys are told apart, and it is said."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from shards import (
    FmatrixSource,
    InputError,
    Layout,
    ShardDataset,
    Utterance,
    convert,
    find_speakers,
    make_plan,
    read_list,
)
from shards.corpus import read_speakers
from shards.listing import ListFile
from shards.names import in_another_form
from shards.sources.fmatrix import write_fmatrix
from shards.speakers import speaker_by_component, speaker_by_regex, speaker_by_tsv, speaker_by_utt2spk
from shards.verification.index import rebuild_index
from shards.verification.verify import verify_dataset
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig
from spkid_dist.streaming.selection import Selection

pytestmark = pytest.mark.fast

NFC = "José"
NFD = unicodedata.normalize("NFD", NFC)


def corpus(folder: Path, *speakers: str) -> ShardConfig:
    """Three utterances of each speaker, their list, and the options that shard them."""
    keys = [f"X/{speaker}/utt{number}" for speaker in speakers for number in range(3)]
    for key in keys:
        path = folder / f"mcp/{key}.mcp"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_fmatrix(path, np.full((5, 2), len(key), np.float32))
    (folder / "list").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return ShardConfig(
        db_path=folder / "mcp", list_file=folder / "list", spk2idx=folder / "map.json", out=str(folder / "out")
    )


def write_map(path: Path, *speakers: str) -> None:
    path.write_text(json.dumps({name: index for index, name in enumerate(speakers)}), encoding="utf-8")


def test_these_are_two_strings() -> None:
    assert NFC != NFD and unicodedata.normalize("NFC", NFD) == NFC


@pytest.mark.parametrize("listed", [NFC, NFD])
@pytest.mark.parametrize("mapped", [NFC, NFD])
def test_a_list_and_a_map_that_differ_in_form_name_the_same_speaker(tmp_path: Path, listed: str, mapped: str) -> None:
    config = corpus(tmp_path, "ana", listed)
    write_map(config.spk2idx, mapped, "ana")
    shard(config)
    data = ShardDataset(config.out)
    assert data.manifest.speakers == [NFC, "ana"]
    assert sorted(np.array(data.utterances["speaker"]).tolist()) == [0, 0, 0, 1, 1, 1]
    assert f"X/{listed}/utt0" in data.keys(0, data.read_block(0))
    rebuild_index(Path(config.out))
    assert verify_dataset(Path(config.out)).defects == []
    assert ShardDataset(config.out).fingerprint == data.fingerprint


def test_a_speaker_in_two_forms_in_a_list_has_one_class(tmp_path: Path) -> None:
    config = corpus(tmp_path, "ana", NFC, NFD)
    shard(config)
    assert ShardDataset(config.out).manifest.speakers == [NFC, "ana"]
    assert read_speakers(config.spk2idx) == [NFC, "ana"]


def test_a_map_with_a_speaker_in_two_forms_is_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "map.json", NFC, "ana", NFD)
    with pytest.raises(
        InputError, match=r"map.json: the speakers of classes 0 and 2 are one name, 'José', in two Unicode"
    ):
        read_speakers(tmp_path / "map.json")


def test_all_rules_name_speakers_in_one_form(tmp_path: Path) -> None:
    (tmp_path / "tsv").write_text(f"k\t{NFD}\n", encoding="utf-8")
    (tmp_path / "utt2spk").write_text(f"k {NFD}\n", encoding="utf-8")
    assert speaker_by_component()(f"X/{NFD}/k") == NFC
    assert speaker_by_regex("_(.*)_")(f"x_{NFD}_y") == NFC
    assert speaker_by_tsv(tmp_path / "tsv")("k") == speaker_by_utt2spk(tmp_path / "utt2spk")("k") == NFC


def test_scanned_lists_and_lists_in_memory_are_the_same_utterances(tmp_path: Path) -> None:
    corpus(tmp_path, NFC, NFD, "ana")
    scanned = ListFile(tmp_path / "list", speaker_by_component(), 0)
    listed = read_list(tmp_path / "list")
    assert sorted(scanned.select(range(9)), key=str) == sorted(listed, key=str)
    assert len(scanned.examples) == 2
    plan = make_plan(listed, [NFC, "ana"], FmatrixSource(tmp_path / "mcp", "mcp"), Layout())
    assert plan.job.utterances == str(scanned.total)


def test_a_key_that_a_table_has_in_another_form_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "tsv").write_text(f"{NFD}\tana\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"not among the 1 of .*tsv; one of the same name in another Unicode form is"):
        speaker_by_tsv(tmp_path / "tsv")(NFC)


@pytest.mark.parametrize(("there", "asked"), [(NFC, NFD), (NFD, NFC)])
def test_a_file_that_is_there_in_another_form_is_named_with_its_characters(
    tmp_path: Path, there: str, asked: str
) -> None:
    corpus(tmp_path, there)
    source = FmatrixSource(tmp_path / "mcp", "mcp")
    with pytest.raises(
        InputError, match=r"No such file.*in another Unicode form is there.*line as its name, '.*Jos\\?"
    ):
        source.load(Utterance(f"X/{asked}/utt0", "ana"))
    with pytest.raises(InputError) as error:
        source.load(Utterance(f"X/{asked}/none", "ana"))
    assert "Unicode" not in str(error.value)


def older_dataset(folder: Path) -> ShardDataset:
    """A dataset whose speaker is spelled in the decomposed form, as it was made when forms were told apart."""
    corpus(folder, NFD, "ana")
    source, rule = FmatrixSource(folder / "mcp", "mcp"), speaker_by_component()
    utterances = [Utterance(one.key, one.speaker.replace(NFC, NFD)) for one in read_list(folder / "list")]
    convert(make_plan(utterances, [NFD, "ana"], source, Layout(), rule=rule), source, folder / "out")
    return ShardDataset(folder / "out")


def test_a_dataset_with_another_form_is_read_chosen_from_and_appended_to(tmp_path: Path) -> None:
    data = older_dataset(tmp_path)
    assert data.manifest.speakers == [NFD, "ana"]
    for name in (NFC, NFD):
        repeats = Selection(speakers=[name]).repeats(data, np.ones(6, np.int32))
        assert np.array_equal(repeats, data.utterances["speaker"] == 0)
    more = corpus(tmp_path / "more", NFC, "eva")
    grown = ShardConfig(
        db_path=more.db_path, list_file=more.list_file, spk2idx=more.spk2idx, out=str(tmp_path / "out"), append=True
    )
    with pytest.raises(InputError, match="has utterance"):  # its keys are the old ones in ASCII
        shard(
            ShardConfig(
                db_path=tmp_path / "mcp",
                list_file=tmp_path / "list",
                spk2idx=tmp_path / "none",
                out=grown.out,
                append=True,
            )
        )
    shard(grown)
    data = ShardDataset(grown.out)
    assert data.manifest.speakers == [NFD, "ana", "eva"]
    assert np.bincount(data.utterances["speaker"]).tolist() == [6, 3, 3]
    fingerprint = data.fingerprint
    rebuild_index(tmp_path / "out")
    assert verify_dataset(tmp_path / "out").defects == []
    assert ShardDataset(grown.out).fingerprint == fingerprint


def test_a_map_of_either_form_fits_utterances_of_the_other(tmp_path: Path) -> None:
    write_map(tmp_path / "map.json", NFD)
    for name in (NFC, NFD):
        assert find_speakers(tmp_path / "list", [Utterance("k", name)], tmp_path / "map.json") == [NFC]


def test_only_names_that_look_the_same_are_of_another_form() -> None:
    assert in_another_form(NFC, ["ana", "Jose", NFD]) == NFD
    assert in_another_form(NFC, ["ana", "Jose", NFC]) is None
    assert in_another_form("ana", [NFD]) is None
