"""Utterances that were trained on are refused for calibration, as far as anybody can know."""

import numpy as np
import pytest

from shards import InputError, ShardDataset
from shards.layout import key_hash
from spkid_dist.scoring.trainedon import check_held_out, trained_hashes

pytestmark = pytest.mark.fast


def hashes_of(keys):
    return np.array([key_hash(key) for key in keys], np.uint64)


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
    options = {"tr_shards": None, "tr_list_file": str(synthetic / "cfg/all.train"), "speaker_component": 2}
    assert check(options, keys_of(synthetic, "test")) == []
    with pytest.raises(InputError, match=r"trained on 30 of these 30 utterances"):
        check(options, keys_of(synthetic, "train"))


def test_a_part_of_the_training_set_that_was_left_out_may_be_calibrated_on(shards, synthetic, tmp_path):
    dataset = ShardDataset(shards["tr_shards"])
    keys = keys_of(synthetic, "train")
    options = {"tr_shards": str(shards["tr_shards"]), "tr_fingerprint": dataset.fingerprint}
    (tmp_path / "part").write_text("\n".join(keys[::2]))
    listed = options | {"tr_utterances": str(tmp_path / "part")}
    assert check(listed, keys[1::2], dataset.fingerprint) == []
    with pytest.raises(InputError, match=r"trained on 15 of these 30 utterances"):
        check(listed, keys, dataset.fingerprint)
    some = options | {"tr_speakers": ["spk0001", "spk0003"]}
    assert check(some, [key for key in keys if "spk0002" in key], dataset.fingerprint) == []
    with pytest.raises(InputError, match=r"trained on 12 of these 30 utterances"):
        check(some, keys, dataset.fingerprint)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tr_shards": "gone"},
        {"tr_shards": "s3://bucket/train"},
        {"tr_list_file": "gone"},
        {"tr_utterances": "gone"},
    ],
)
def test_what_can_not_be_found_out_is_said(options):
    assert trained_hashes(options) is None
    assert check(options, ["a/b/c"], "some") == [
        "the training's utterances can't be read any more, so nobody checked whether these were trained on"
    ]


def test_a_dataset_that_is_another_now_tells_nothing_of_the_training(shards):
    assert trained_hashes({"tr_shards": str(shards["tr_shards"]), "tr_fingerprint": "older"}) is None
