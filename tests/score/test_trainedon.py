"""Utterances that were trained on are refused for calibration, as far as anybody can know."""

import numpy as np
import pytest

from shards import FmatrixSource, InputError, Layout, ShardDataset, Utterance, convert, make_plan
from shards.layout import key_hash, key_sum
from spkid_dist import Selection, WindowDataset
from spkid_dist.scoring.trainedon import check_held_out, trained_on

pytestmark = pytest.mark.fast


def hashes_of(keys):
    return np.array([key_hash(key) for key in keys], np.uint64)


def sum_of(keys):
    return key_sum([hashes_of(keys)])


UNCHECKED = ", so nobody checked whether these utterances were trained on"


def keys_of(folder, name):
    return (folder / "cfg" / f"all.{name}").read_text().split()


def check(options, keys, fingerprint=None, force=False):
    said = []
    check_held_out(options, hashes_of(keys), fingerprint, said.append, force=force)
    return said


def test_the_training_set_itself_is_refused_by_its_fingerprint():
    options = {"tr_fingerprint": "f00", "tr_shards": "gone"}
    with pytest.raises(
        InputError,
        match=r"the model was trained on this dataset, so its confidences there are too high; .*held out, or give --force",
    ):
        check(options, ["a/b/c"], "f00")
    assert check(options, ["a/b/c"], "f00", force=True) == [
        "the model was trained on this dataset, so confidences will be too high for other utterances"
    ]


def test_utterances_of_the_training_set_are_refused_by_their_keys(shards, synthetic):
    dataset = ShardDataset(shards["tr_shards"])
    options = {"tr_shards": str(shards["tr_shards"]), "tr_fingerprint": dataset.fingerprint}
    trained, held_out = keys_of(synthetic, "train"), keys_of(synthetic, "test")
    assert check(options, held_out, "another") == []
    with pytest.raises(InputError, match=r"the model was trained on 1 of these 11 utterances"):
        check(options, [*held_out, trained[0]])
    many = [*(f"other/{number}" for number in range(99)), trained[0]]
    assert check(options, many) == ["the model was trained on 1 of these 100 utterances; so few change little"]


def test_utterances_of_the_training_list_are_refused(synthetic):
    path = str(synthetic / "cfg/all.train")
    options = {"tr_shards": None, "tr_list_file": path, "tr_keys": sum_of(keys_of(synthetic, "train"))}
    assert check(options, keys_of(synthetic, "test")) == []
    with pytest.raises(InputError, match=r"trained on 30 of these 30 utterances"):
        check(options, keys_of(synthetic, "train"))
    with pytest.raises(InputError, match=r"trained on 10 of these 10 utterances"):
        check(options, keys_of(synthetic, "train")[:10])
    with pytest.raises(InputError, match=r"trained on 30 of these 30 utterances"):
        check(options | {"tr_list_file": "gone"}, keys_of(synthetic, "train"))  # whose sum tells
    assert check(options | {"tr_list_file": "gone"}, keys_of(synthetic, "train")[:10]) == [
        f"the training's list gone can't be read any more{UNCHECKED}"
    ]


def test_a_part_of_the_training_set_that_was_left_out_may_be_calibrated_on(shards, synthetic, tmp_path):
    dataset = ShardDataset(shards["tr_shards"])
    keys = keys_of(synthetic, "train")
    options = {"tr_shards": str(shards["tr_shards"]), "tr_fingerprint": dataset.fingerprint}
    (tmp_path / "part").write_text("\n".join(keys[::2]))
    listed = options | {"tr_utterances": str(tmp_path / "part"), "tr_keys": sum_of(keys[::2])}
    assert check(listed, keys[1::2], dataset.fingerprint) == []
    with pytest.raises(InputError, match=r"trained on 15 of these 30 utterances"):
        check(listed, keys, dataset.fingerprint)
    some = options | {"tr_speakers": ["spk0001", "spk0003"]}
    assert check(some, [key for key in keys if "spk0002" in key], dataset.fingerprint) == []
    with pytest.raises(InputError, match=r"trained on 12 of these 30 utterances"):
        check(some, keys, dataset.fingerprint)


def test_speakers_that_a_table_named_are_those_of_the_dataset(synthetic, tmp_path):
    """The keys' components say other names, by which nothing would be trained on."""
    keys = keys_of(synthetic, "train")
    utterances = [Utterance(key, f"person{int(key.split('/')[1][3:]) % 2}") for key in keys]
    source = FmatrixSource(synthetic / "mcp", "mcp")
    convert(make_plan(utterances, ["person0", "person1"], source, Layout()), source, tmp_path / "data")
    (tmp_path / "list").write_text("\n".join(keys[::2]))
    trained = [one.key for one in utterances[::2] if one.speaker == "person1"]
    options = {
        "tr_shards": str(tmp_path / "data"),
        "tr_fingerprint": ShardDataset(tmp_path / "data").fingerprint,
        "tr_utterances": str(tmp_path / "list"),
        "tr_speakers": ["person1"],
        "tr_keys": sum_of(trained),
        "source": source.describe() | {"speaker_rule": {"by": "utt2spk"}},
    }
    assert check(options, keys[1::2]) == []
    with pytest.raises(InputError, match=rf"trained on {len(trained)} of these {len(trained) + 1} utterances"):
        check(options, [*trained, "another"])
    assert check(options | {"tr_shards": "gone"}, [*trained, "another"]) == [
        f"the training set gone can't be read any more and {tmp_path}/list does not list what was trained on, or not any "
        f"more{UNCHECKED}"
    ]


def test_a_list_that_was_replaced_tells_nothing_of_the_training(shards, synthetic, tmp_path, monkeypatch):
    """As one of the same name that stands in the folder in which the command runs."""
    trained, others = keys_of(synthetic, "train")[:20], keys_of(synthetic, "train")[20:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg/all.train").write_text("\n".join(others))
    options = {"tr_list_file": "cfg/all.train", "tr_keys": sum_of(trained)}
    said = [f"cfg/all.train does not list what was trained on, or not any more{UNCHECKED}"]
    assert check(options, trained[:10]) == said
    with pytest.raises(InputError, match=r"trained on 10 of these 10 utterances"):
        check(options, others)  # to the best of what is known
    assert check({"tr_list_file": "cfg/all.train"}, trained) == [
        f"the training kept nothing to compare its list cfg/all.train with{UNCHECKED}"
    ]
    # The cache of the training has what was trained on.
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/all.train-0123").symlink_to(shards["tr_shards"])
    cached = options | {"cache_dir": "cache", "tr_fingerprint": ShardDataset(shards["tr_shards"]).fingerprint}
    with pytest.raises(InputError, match=r"trained on 10 of these 10 utterances"):
        check(cached, trained[:10])
    assert check(cached, keys_of(synthetic, "test")) == []
    listed = {"tr_shards": str(shards["tr_shards"]), "tr_utterances": "cfg/all.train", "tr_keys": sum_of(trained)}
    listed |= {"tr_fingerprint": cached["tr_fingerprint"]}
    assert check(listed, trained[:10]) == said
    assert check(listed, keys_of(synthetic, "test")) == []  # nothing of the dataset, whatever was chosen of it


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "train.opts names no training set"),
        ({"tr_shards": "gone"}, "the training set gone can't be read any more"),
        ({"tr_shards": "s3://bucket/train"}, "the training set s3://bucket/train is not on this machine"),
        ({"tr_list_file": "gone"}, "the training's list gone can't be read any more"),
        (
            {"tr_shards": "far", "tr_utterances": "gone"},
            "the training set far can't be read any more and the training's list gone can't be read any more",
        ),
    ],
)
def test_what_can_not_be_found_out_is_said(options, why):
    assert trained_on(options, hashes_of(["a/b/c"]), None).doubt == why
    assert check(options, ["a/b/c"], "some") == [why + UNCHECKED]


def test_a_dataset_that_is_another_now_tells_nothing_of_the_training(shards, synthetic):
    options = {"tr_shards": str(shards["tr_shards"]), "tr_fingerprint": "older"}
    said = [f"the training set {shards['tr_shards']} is another dataset now{UNCHECKED}"]
    assert check(options, keys_of(synthetic, "train")) == said


def test_the_sum_of_keys_is_that_of_the_chosen_utterances(shards, synthetic):
    keys = keys_of(synthetic, "train")
    for selection, chosen in (
        (None, keys[::-1]),
        (Selection(utterances=keys[::3]), keys[::3]),
        (Selection(speakers=["spk0001"], balance=True), [key for key in keys if "spk0001" in key]),
    ):
        assert WindowDataset(shards["tr_shards"], in_frames=3, selection=selection).windows.key_sum() == sum_of(chosen)
