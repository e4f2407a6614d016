"""What is said of speakers before they are sharded or trained on: what can't be learnt, and what can't be measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shard_folder
from small_corpora import small_corpus, write

from shards import Layout, ShardDataset
from shards.files import write_json
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.commands.info import dataset_facts
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig
from spkid_dist.dataset import WindowDataset
from spkid_dist.streaming.selection import Selection
from spkid_dist.streaming.speakerlines import say_list_speakers, say_training_speakers

pytestmark = pytest.mark.fast

SPEAKERS = ["ada", "bob", "eve", "kim", "lee", "mia", "noa"]
RULES = "say what names the speakers: --speaker_component, --speaker_regex, --speaker_tsv or --utt2spk"


def dataset(folder: Path, names: dict[str, int], short: str = "") -> Path:
    """A dataset of so many utterances of each speaker, of the 7 that the map has: of 6 frames, or 3 of one that is `short`."""
    folder.mkdir()
    listed = small_corpus(folder, [f"x/{name}/{take}" for name, count in names.items() for take in range(count)])
    for path in folder.glob(f"mcp/x/{short}/*.mcp") if short else ():
        write_fmatrix(path, np.ones((3, 3), np.float32))
    write_json(folder / "cfg.json", {name: index for index, name in enumerate(SPEAKERS)})
    (folder / "cfg").mkdir()
    (folder / "cfg.json").rename(folder / "cfg/spk2idx.json")
    return Path(shard_folder(folder, listed, folder / "out", Layout()).folder)


def lines(training: Path, validation: Path, edge: str = "zero", **selection: Any) -> list[str]:
    options: dict[str, Any] = {"in_frames": 5, "edge": edge, "num_streams": 2}
    chosen = Selection(**selection)
    return say_training_speakers(
        WindowDataset(training, selection=chosen, **options), WindowDataset(validation, **options)
    )


ALL = dict.fromkeys(SPEAKERS, 2)


def test_speakers_that_are_all_trained_on_give_no_line(tmp_path: Path) -> None:
    path = dataset(tmp_path / "a", ALL)
    assert lines(path, path) == lines(path, path, "valid") == []


def test_speakers_without_a_training_utterance_are_named(tmp_path: Path) -> None:
    training, validation = dataset(tmp_path / "a", {"bob": 2}), dataset(tmp_path / "b", {"kim": 1, "bob": 2})
    assert lines(training, validation) == [
        "training: 6 of 7 speakers have no utterance that is trained on, so the model can't learn them: ada, eve, kim, "
        "lee, mia, ...",
        f"training: all utterances are of one speaker, 'bob', so there is nothing to tell apart; if that is not so, {RULES}",
        "validation: 1 of its 2 speakers are not trained on; their 1 of 3 utterances are always wrong: kim",
    ]


def test_a_validation_set_of_other_speakers_is_named(tmp_path: Path) -> None:
    training = dataset(tmp_path / "a", {"ada": 3, "bob": 3})
    validation = dataset(tmp_path / "b", {"kim": 1, "lee": 2})
    assert lines(training, validation)[-1] == (
        "validation: none of its 2 speakers is trained on, so its loss and accuracy tell nothing of what is learnt, nor "
        "which epoch is best; validate on other utterances of the training's speakers"
    )


@pytest.mark.parametrize("selection", [{"speakers": ["ada", "bob"]}, {"utterances": ["x/ada/0", "x/ada/1", "x/bob/1"]}])
def test_what_the_selection_leaves_out_is_counted(tmp_path: Path, selection: dict[str, Any]) -> None:
    path = dataset(tmp_path / "a", ALL)
    left_out = 14 - (4 if "speakers" in selection else 3)
    assert lines(path, path, **selection) == [
        f"training: {left_out} of its 14 utterances are left out by --tr_speakers or --tr_utterances",
        "training: 5 of 7 speakers have no utterance that is trained on, so the model can't learn them: eve, kim, lee, mia, "
        "noa",
        "validation: 5 of its 7 speakers are not trained on; their 10 of 14 utterances are always wrong: eve, kim, lee, mia, "
        "noa",
    ]
    assert lines(path, path, balance=True) == []


def test_a_speaker_whose_utterances_are_shorter_than_a_window_is_not_trained_on(tmp_path: Path) -> None:
    path = dataset(tmp_path / "a", ALL, short="kim")
    assert lines(path, path, "zero") == []
    assert lines(path, path, "valid") == [
        "training: 1 of 7 speakers have no utterance that is trained on, so the model can't learn them: kim"
    ]  # nor are they validated on


def test_one_utterance_of_each_speaker_is_named_with_all_four_rules(tmp_path: Path) -> None:
    path = dataset(tmp_path / "a", dict.fromkeys(SPEAKERS, 1))
    expected = "7 utterances of 7 speakers (ada, bob, eve, kim, lee, ...), so most speakers have only one"
    expected += f"; if that is not so, {RULES}"
    assert lines(path, path) == [f"training: {expected}"]
    assert say_list_speakers("l", SPEAKERS, 7, SPEAKERS) == [f"l: {expected}"]
    assert say_list_speakers("l", SPEAKERS, 11, SPEAKERS) == []
    assert say_list_speakers("l", SPEAKERS[:6], 20, SPEAKERS) == [
        "l: 1 of the 7 speakers of the map have no utterance in it: noa"
    ]


def test_sharding_says_so_before_it_reads_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A component that is no speaker: the first is a corpus's, the third an utterance's."""
    listed = small_corpus(tmp_path, [f"x/{name}/{name}{take}" for name in ("ada", "bob") for take in range(2)])
    for component, said in (
        (
            1,
            f"{listed}: all utterances are of one speaker, 'x', so there is nothing to tell apart; if that is not so, {RULES}",
        ),
        (
            3,
            f"{listed}: 4 utterances of 4 speakers (ada0, ada1, bob0, bob1), so most speakers have only one; if that is not so",
        ),
    ):
        flags: dict[str, Any] = {"db_path": tmp_path / "mcp", "list_file": listed, "speaker_component": component}
        shard(ShardConfig(**flags, spk2idx=tmp_path / f"{component}.json", out=str(tmp_path / f"out{component}")))
        assert said in capsys.readouterr().out
    shard(
        ShardConfig(db_path=tmp_path / "mcp", list_file=listed, spk2idx=tmp_path / "2.json", out=str(tmp_path / "out2"))
    )
    assert "speakers" not in capsys.readouterr().out.replace("made from the speakers of", "")


def test_info_counts_empty_speakers(tmp_path: Path) -> None:
    path = dataset(tmp_path / "a", {"bob": 1, "kim": 2})
    facts = dataset_facts(ShardDataset(path), 10.0, "assumed")
    assert (facts["speakers"], facts["empty_speakers"]) == (7, 5)


def test_files_of_a_kaldi_folder_that_are_not_used_are_named(tmp_path: Path) -> None:
    from source_checks import kaldi_folder

    from shards.sources.kaldidir import say_unused

    kaldi_folder(tmp_path)
    assert say_unused(tmp_path) == []
    for name in ("cmvn.scp", "segments", "text", "spk2utt", "utt2num_frames"):
        write(tmp_path / name, "")
    assert say_unused(tmp_path) == [
        f"{tmp_path}/cmvn.scp: not used; features are taken as they are: give --kaldi_cmvn to `spkid shard`, or train with "
        "--normalize utterance",
        f"{tmp_path}/segments: not used; a line of feats.scp is an utterance, whatever is cut here",
        f"{tmp_path}: not used: text, spk2utt",
    ]
    assert f"{tmp_path}/cmvn.scp" not in "".join(say_unused(tmp_path, ["cmvn.scp"]))
