"""Files of scores and embeddings that are said to be larger than they are, or are no files: one line, and no memory."""

import io
import json
import os
import resource
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import InputError
from spkid_dist.scoring.embeddingfile import read_embeddings
from spkid_dist.scoring.scorefile import read_scores, write_scores
from spkid_dist.scoring.scores import Scores

MOST_BYTES = 100_000_000

KEYS, ROWS = np.array(["a", "b"]), np.ones((2, 3), np.float32)


def npy(shape, descr="<f4", data=b"", version=b"\x01\x00"):
    """A .npy file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zeros(megabytes):
    """An archive of an array of zeros that is packed to a thousandth."""
    packed = npy((megabytes << 18, 1), data=bytes(megabytes << 20))
    return npz({"embeddings": packed, "keys": saved(KEYS)}, zipfile.ZIP_DEFLATED)


HUGE = [(2**40, 3), (2**62, 2**62), (0, 2**62), (-1, 3), (2**31,), (), (1.5, 2), ("a", 2), (10**30, 3)]
EMBEDDINGS = {f"embeddings of {shape}": npz({"keys": saved(KEYS), "embeddings": npy(shape)}) for shape in HUGE}
EMBEDDINGS |= {f"keys of {shape}": npz({"keys": npy(shape, "<U9"), "embeddings": saved(ROWS)}) for shape in HUGE}
EMBEDDINGS |= {
    "texts of no width": npz({"keys": npy((2**40,), "<U0"), "embeddings": saved(ROWS)}),
    "texts of a great width": npz({"keys": npy((2,), f"<U{2**40}"), "embeddings": saved(ROWS)}),
    "more keys than rows": npz({"keys": saved(np.array(["a"] * 1000)), "embeddings": saved(ROWS)}),
    "a header of a great version": npz({"keys": saved(KEYS), "embeddings": npy((2, 3), version=b"\x09\x00")}),
    "a header that is nested": npz({"keys": saved(KEYS), "embeddings": npy("(" * 3000 + ")" * 3000)}),
    "a header without an end": npz({"keys": saved(KEYS), "embeddings": b"\x93NUMPY\x02\x00\xff\xff\xff\xff"}),
    "a header that is a call": npz(
        {"keys": saved(KEYS), "embeddings": npy("__import__('os').system('touch EXECUTED')")}
    ),
    "records": npz({"keys": saved(KEYS), "embeddings": saved(np.zeros(2, [("a", "f4")]))}),
    "truncated": npz({"keys": saved(KEYS), "embeddings": saved(ROWS)[:-5]}),
    "too long": npz({"keys": saved(KEYS), "embeddings": saved(ROWS) + b"x"}),
    "no keys": npz({"embeddings": saved(ROWS)}),
    "no arrays": npz({}),
    "empty": b"",
    "text": b"embeddings\n",
    "an array": saved(ROWS),
}


def check_bounded(read, path):
    """What is read is refused in one line, and less memory was taken than MOST_BYTES."""
    tracemalloc.start()
    try:
        check_refused(read, path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def check_refused(read, path):
    """What is read is refused in one line. tracemalloc is not sound beside the threads of pyarrow."""
    with pytest.raises(InputError) as raised:
        read(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.fixture
def address_space():
    """Whoever asks for terabytes gets nothing, whatever the system promises."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**43, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("address_space")
@pytest.mark.parametrize("case", EMBEDDINGS)
def test_a_hostile_npz_of_embeddings_is_one_line(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").write_bytes(EMBEDDINGS[case])
    check_bounded(read_embeddings, tmp_path / "x.npz")
    check_bounded(read_scores, tmp_path / "x.npz")
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.usefixtures("address_space")
@pytest.mark.parametrize("shape", HUGE)
def test_a_hostile_npy_is_one_line(tmp_path, shape):
    (tmp_path / "x.npy").write_bytes(npy(shape))
    (tmp_path / "x.keys").write_text("a\nb\n")
    check_bounded(read_embeddings, tmp_path / "x.npy")


def test_an_array_that_is_packed_to_a_thousandth_is_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(zeros(128))
    check_bounded(read_embeddings, tmp_path / "x.npz")


def test_packed_embeddings_of_other_programs_are_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", keys=KEYS, embeddings=np.asfortranarray(ROWS.astype(">f8")))
    found = read_embeddings(tmp_path / "x.npz")
    assert found.keys == ["a", "b"]
    assert np.array_equal(found.vectors, ROWS)
    found.vectors[:] = 0  # it may be written to, as NumPy's own


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.ark", "x.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    read = read_scores if name == "x.parquet" else read_embeddings
    check_refused(read, tmp_path / name)


def table(**metadata):
    """A table of scores of two utterances and two speakers."""
    scores = pa.array([[0.0, -1.0]] * 2, pa.list_(pa.float32(), 2))
    columns = {
        "key": ["a", "b"],
        "speaker": ["x", "x"],
        "true_speaker": ["x", None],
        "margin": pa.array([1.0] * 2, pa.float32()),
        "windows": [1, 2],
        "scores": scores,
    }
    return pa.table(columns).replace_schema_metadata({"format_version": "1", "speakers": '["x", "y"]'} | metadata)


ORIGIN = {"weights": {"0" * 32: "w.ckpt"}, "te_list_file": None, "te_shards": None}
METADATA = {
    "speakers twice": {"speakers": '["x", "x"]'},
    "speakers that are numbers": {"speakers": "[1, 2]"},
    "speakers that are an object": {"speakers": '{"x": 1, "y": 2}'},
    "speakers that are nested": {"speakers": "[" * 50_000},
    "half a character": {"speakers": '["x", "\\ud800"]'},
    "another version": {"format_version": "9" * 5000},
    "a temperature that is a word": {"temperature": "high", "length_exponent": "0"},
    "a threshold that is no number": {"threshold": "nan"},
    "an origin that is a list": {"origin": "[1]"},
    "an origin without weights": {"origin": json.dumps(ORIGIN | {"weights": {}})},
    "an origin of weights without digests": {"origin": json.dumps(ORIGIN | {"weights": {"a": "b"}})},
    "an origin whose names are numbers": {"origin": json.dumps(ORIGIN | {"weights": {"0" * 32: 5}})},
    "an origin whose list is a number": {"origin": json.dumps(ORIGIN | {"te_list_file": 5})},
    "an origin that is nested": {"origin": "[" * 50_000},
    "an origin of many digits": {"origin": "1" * 5000},
}


@pytest.mark.parametrize("case", METADATA)
def test_damaged_words_about_a_table_are_one_line(tmp_path, case):
    pq.write_table(table(**METADATA[case]), tmp_path / "x.parquet")
    check_refused(read_scores, tmp_path / "x.parquet")


def test_a_table_that_is_said_to_be_larger_than_memory_is_refused(tmp_path, monkeypatch):
    pq.write_table(table(origin=json.dumps(ORIGIN)), tmp_path / "x.parquet")
    assert read_scores(tmp_path / "x.parquet").origin.weights == {"0" * 32: "w.ckpt"}
    monkeypatch.setattr("spkid_dist.scoring.scorefile.free_memory", lambda: 40)
    with pytest.raises(InputError, match=r"said to hold 14 values, .*, more than there is memory"):
        read_scores(tmp_path / "x.parquet")


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, "all of them minus infinity"])
def test_scores_without_an_answer_are_refused(tmp_path, ending, bad):
    means = np.array([[-1.0, -np.inf], [-2.0, -1.0]], np.float32)
    means[1] = [-np.inf] * 2 if isinstance(bad, str) else [bad, -1]
    whole = np.zeros(2, np.int64)
    columns = {"found": whole, "true": whole, "margins": np.ones(2, np.float32), "windows": whole + 1}
    scores = Scores(keys=["a", "b"], speakers=["x", "y"], means=means, **columns)
    write_scores(tmp_path / f"x{ending}", scores)
    with pytest.raises(InputError, match="the scores of utterance 'b' are not finite"):
        read_scores(tmp_path / f"x{ending}")
