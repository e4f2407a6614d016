"""Files that are whole or not there, whoever writes them and however little a write takes."""

import contextlib
import io
import json
import pickle
import resource
import tarfile

import numpy as np
import pytest
import torch
from torch import nn

from shards import InputError, files
from shards.files import atomic_writer, write_atomic, write_json
from spkid_dist.weights.file import save_weights

pytestmark = pytest.mark.fast

MOST_BYTES_A_WRITE = 1000


@pytest.fixture
def short_writes(monkeypatch):
    """A disk each of whose writes takes at most 1,000 bytes, as a real one takes at most 2,147,479,552."""
    writes = []

    def write(self, data):
        writes.append(io.FileIO.write(self, memoryview(data).cast("B")[:MOST_BYTES_A_WRITE]))
        return writes[-1]

    monkeypatch.setattr(files._RawFile, "write", write)
    return writes


def add_to_tar(file):
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("x")
        member.size = 50_000
        tar.addfile(member, io.BytesIO(bytes(range(250)) * 200))


def draw(file):
    from matplotlib.figure import Figure

    Figure().savefig(file, format="png")


LIBRARIES = {
    "torch.save": lambda file: torch.save({"a": torch.arange(20_000)}, file),
    "numpy.savez": lambda file: np.savez(file, a=np.arange(20_000)),
    "pickle": lambda file: pickle.dump(list(range(20_000)), file),
    "tarfile": add_to_tar,
    "bytes at once": lambda file: file.write(np.arange(20_000)),
    "matplotlib": draw,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_a_library_writes_is_whole_where_a_write_takes_a_part(library, short_writes, tmp_path):
    expected = tmp_path / "expected"
    with expected.open("wb") as file:
        LIBRARIES[library](file)
    with atomic_writer(tmp_path / "found") as file:
        LIBRARIES[library](file)
    assert (tmp_path / "found").read_bytes() == expected.read_bytes()
    assert len(short_writes) > 2
    assert max(short_writes) == MOST_BYTES_A_WRITE


def test_weights_are_whole_where_a_write_takes_a_part(short_writes, tmp_path):
    network = nn.Sequential(nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 3))
    save_weights(network, tmp_path / "weights")
    assert len(short_writes) > 20
    found = torch.load(tmp_path / "weights", weights_only=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor)


@pytest.mark.long
def test_weights_of_more_than_one_write_takes_are_whole(tmp_path):
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(2**29 + 1000), requires_grad=False)
    network.weight[-1000:] = torch.arange(1000)
    network.bias = nn.Parameter(torch.ones(7))
    save_weights(network, tmp_path / "weights")
    found = torch.load(tmp_path / "weights", weights_only=True, mmap=True)
    assert found["weight"].shape == (2**29 + 1000,)
    assert torch.equal(found["weight"][-1000:], torch.arange(1000.0))
    assert not found["weight"][:-1000].any()
    assert torch.equal(found["bias"], torch.ones(7))


@pytest.mark.long
def test_bytes_beyond_what_one_write_takes_are_whole(tmp_path):
    data = np.zeros(2**31 + 5000, np.uint8)
    data[-5000:] = 7
    write_atomic(tmp_path / "x", data)
    found = np.memmap(tmp_path / "x", np.uint8, mode="r")
    assert len(found) == len(data)
    assert (found[-5000:] == 7).all()
    assert not found[: 2**31].any()


@pytest.fixture
def no_room():
    """Files of this process can't grow beyond 50,000 bytes: the system fails the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hide_the_failure(file):
    with contextlib.suppress(OSError):
        file.write(bytes(100_000))


def raise_something_else(file):
    try:
        file.write(bytes(100_000))
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0") from None


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("library", [hide_the_failure, raise_something_else, LIBRARIES["torch.save"]])
def test_a_write_that_fails_is_an_error_whatever_the_library_makes_of_it(library, tmp_path):
    with (
        pytest.raises(InputError, match=r"x: can't be written: File too large; free room"),
        atomic_writer(tmp_path / "x") as file,
    ):
        library(file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_room")
def test_the_last_bytes_fail_too(tmp_path):
    with pytest.raises(InputError, match="File too large"), atomic_writer(tmp_path / "x") as file:
        for _ in range(500):
            file.write(bytes(101))  # the last of them wait in the buffer
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_writer_stays_its_own(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_writer(tmp_path / "x") as file:
        file.write(b"1")
        json.dumps(1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_what_json_does_not_know_is_null(tmp_path):
    def refuse(name):
        raise AssertionError(name)

    value = {
        "a": [1.5, float("nan"), (float("inf"), 2)],
        "b": {"c": -float("inf"), "d": np.float64("nan"), "e": None, "f": "NaN"},
    }
    write_json(tmp_path / "x", value)
    found = json.loads((tmp_path / "x").read_text(), parse_constant=refuse)
    assert found == {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": None, "e": None, "f": "NaN"}}
