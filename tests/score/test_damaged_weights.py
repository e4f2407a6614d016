"""Weights files that are not what was written: whatever is accepted holds the very tensors that were written."""

import io
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from flippedbits import flipped, random_flips, with_random_bytes
from trained_folders import make_training

from shards import InputError
from spkid_dist.model import model_from_options
from spkid_dist.trained import load_trained
from spkid_dist.weights.file import METADATA_KEY, name_in_weights, read_weights, save_weights, state_digest

FLIPS = 300
OPTIONS = {"input_dim": 8, "in_frames": 6, "hsize": 16, "num_spks": 3, "batch_norm": True}


@pytest.fixture
def network():
    torch.manual_seed(1)
    return model_from_options(OPTIONS)


@pytest.fixture
def weights(tmp_path, network):
    save_weights(network, tmp_path / "w.ckpt", "a training")
    return tmp_path / "w.ckpt"


@pytest.fixture
def old_weights(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def same(found, expected):
    return list(found) == list(expected) and all(
        found[name].dtype == one.dtype and torch.equal(found[name], one) for name, one in expected.items()
    )


def accepted(path, data):
    """What is read of the file with these bytes; None where it is refused, in one line."""
    path.write_bytes(data)
    try:
        return read_weights(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(f"{path}: ")
        assert "; " in str(error)
        return None


def test_weights_come_back_with_their_training_and_their_digest(weights, network):
    found = read_weights(weights)
    assert same(found.state, network.state_dict())
    assert (found.training, found.has_digest) == ("a training", True)


@pytest.mark.parametrize("kind", ["weights", "old_weights"])
def test_no_flipped_bit_changes_a_tensor_that_is_accepted(kind, network, request):
    path = request.getfixturevalue(kind)
    data, expected = path.read_bytes(), network.state_dict()
    tensors = sum(one.numel() * one.element_size() for one in expected.values())
    refused = 0
    for at, changed in random_flips(data, FLIPS):
        found = accepted(path, changed)
        refused += found is None
        assert found is None or same(found.state, expected), at
    assert refused > 0.9 * FLIPS * tensors / len(data)


def test_every_bit_of_a_digest_and_of_the_training_s_name_counts(weights):
    data = weights.read_bytes()
    digest = torch.load(weights, weights_only=True)._metadata[METADATA_KEY]["xxh3_128"]
    for text in (digest, "a training", METADATA_KEY, "xxh3_128", "training_id"):
        start = data.index(text.encode())
        for at in range(start, start + len(text)):
            assert accepted(weights, flipped(data, at, at % 8)) is None, text


@pytest.mark.parametrize("kind", ["weights", "old_weights"])
def test_fifty_random_bytes_are_noticed(kind, request):
    path = request.getfixturevalue(kind)
    data = path.read_bytes()
    for seed in range(20):
        assert accepted(path, with_random_bytes(data, 50, seed)) is None


@pytest.mark.parametrize("kind", ["weights", "old_weights"])
def test_a_truncated_file_is_refused(kind, request):
    path = request.getfixturevalue(kind)
    data = path.read_bytes()
    for size in (0, 1, 3, 100, len(data) // 2, len(data) - 100, len(data) - 1):
        assert accepted(path, data[:size]) is None, size


def test_the_digest_tells_names_types_and_shapes_apart():
    states = [{"a": torch.zeros(6)}, {"b": torch.zeros(6)}, {"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}]
    states += [{"a": torch.zeros(6, dtype=torch.int32)}, {"a": torch.zeros(3), "b": torch.zeros(3)}, {}]
    states += [{"a": torch.zeros(3), "": torch.zeros(3)}, {"a": torch.tensor(-0.0).repeat(6)}]
    assert len({state_digest(state) for state in states}) == len(states)


def test_old_weights_are_loaded_and_said_to_have_no_digest(old_weights, tmp_path):
    (tmp_path / "train.opts").write_text(json.dumps(OPTIONS | {"speakers": ["a", "b", "c"]}))
    (remark,) = load_trained(old_weights, tmp_path / "train.opts", None).remarks
    assert "old.ckpt: has no digest of its weights" in remark
    save_weights(load_trained(old_weights, tmp_path / "train.opts", None).network, tmp_path / "w.ckpt")
    assert load_trained(tmp_path / "w.ckpt", tmp_path / "train.opts", None).remarks == ()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(data, change=None, compression=zipfile.ZIP_STORED):
    """The zip archive of torch.save's bytes, written again, with another pickle."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if change and name.endswith("data.pkl") else content)
    return target.getvalue()


class Executes:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def state(**changes):
    torch.manual_seed(1)
    return model_from_options(OPTIONS).state_dict() | changes


def older_format():
    buffer = io.BytesIO()
    torch.save(state(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


W = "0.weight"
STRANGE = {
    "empty": lambda: b"",
    "text": lambda: b"no weights\n",
    "a pickle": lambda: pickle.dumps({W: [1.0]}),
    "a pickle that runs a program": lambda: pickle.dumps(Executes()),
    "an archive that runs a program": lambda: archive(saved(state()), lambda _: pickle.dumps(Executes(), 2)),
    "an older format": lambda: older_format(),
    "a zip archive of something else": lambda: archive(saved([1]), lambda _: b"nothing"),
    "compressed": lambda: archive(saved(state()), compression=zipfile.ZIP_DEFLATED),
    "a list": lambda: saved([1]),
    "nothing": lambda: saved(None),
    "deep": lambda: archive(saved([1]), lambda _: b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."),
    "a tensor": lambda: saved(torch.ones(3)),
    "other keys": lambda: saved({"a": torch.ones(1)}),
    "keys that are numbers": lambda: saved(dict(enumerate(state().values()))),
    "a number for a tensor": lambda: saved(state() | {W: 1.0}),
    "a list for a tensor": lambda: saved(state() | {W: [[1.0]]}),
    "a meta tensor": lambda: saved(state(**{W: torch.ones(16, 48, device="meta")})),
    "a sparse tensor": lambda: saved(state(**{W: torch.ones(16, 48).to_sparse()})),
    "a compressed sparse tensor": lambda: saved(state(**{W: torch.ones(16, 48).to_sparse_csr()})),
    "a quantized tensor": lambda: saved(
        state(**{W: torch.quantize_per_tensor(torch.ones(16, 48), 0.1, 0, torch.qint8)})
    ),
    "a nested tensor": lambda: saved(state(**{W: torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])})),
    "a complex tensor": lambda: saved(state(**{W: torch.ones(16, 48, dtype=torch.complex64)})),
    "whole numbers": lambda: saved(state(**{W: torch.ones(16, 48, dtype=torch.int64)})),
    "another shape": lambda: saved(state(**{W: torch.ones(48, 16)})),
    "a scalar": lambda: saved(state(**{W: torch.ones(())})),
    "one value that is expanded": lambda: saved(state(**{W: torch.ones(1).expand(2**40)})),
    "NaN": lambda: saved(state(**{W: torch.full((16, 48), torch.nan)})),
    "infinite": lambda: saved(state(**{"7.bias": torch.tensor([0.0, torch.inf, 0.0])})),
    "counts that are no whole numbers": lambda: saved(state(**{"1.num_batches_tracked": torch.tensor(1.5)})),
    "a storage that is larger than its record": lambda: archive(
        saved(OrderedDict(a=torch.zeros(4))),
        lambda text: text.replace(b"K\x04tq", b"J\x00\x00\x10\x00tq").replace(b"K\x04\x85", b"J\x00\x00\x10\x00\x85"),
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_are_no_such_weights_is_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, opts = tmp_path / "w.ckpt", tmp_path / "train.opts"
    opts.write_text(json.dumps(OPTIONS | {"speakers": ["a", "b", "c"]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of tensors that torch has not finished
        place.write_bytes(STRANGE[kind]())
    with pytest.raises(InputError, match=r"w\.ckpt: .*; ") as raised:
        load_trained(place, opts, None)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    name_in_weights(place)
    assert not (tmp_path / "EXECUTED").exists()


def test_a_record_that_is_said_to_be_huge_is_not_allocated(weights):
    data = bytearray(weights.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = b"\xf0\xff\xff\x7f" * 2  # both sizes, in the directory at the end
    with pytest.raises(InputError, match=r"its records are said to have 2147\d{6} bytes, but the file has \d+"):
        weights.write_bytes(data)
        read_weights(weights)


def test_a_pipe_or_a_device_is_no_weights_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="can't read these weights"):
            read_weights(path)
    assert name_in_weights(tmp_path / "pipe") is None


@pytest.mark.parametrize("name", ["hsize", "num_spks", "in_frames", "input_dim"])
@pytest.mark.parametrize("value", [2**20, 2**31 - 1, 2**31, 2**40, 10**30])
def test_options_of_a_huge_network_are_refused_before_memory_is_taken(tmp_path, name, value):
    place = make_training(tmp_path / "ckpt")
    options = json.loads((place / "train.opts").read_text()) | {name: value}
    options.pop("speakers")
    (place / "train.opts").write_text(json.dumps(options))
    (tmp_path / "map.json").write_text(json.dumps({"a": 0, "b": 1, "c": 2}))
    said = r"but the options make it|expected a whole number|parameters, expected|there are 3 speaker names"
    with pytest.raises(InputError, match=said):
        load_trained(place / "bestval_e0_weights.ckpt", place / "train.opts", tmp_path / "map.json")
