"""Files of scores: what is read is what was written, whole or not at all, and other programs read them too."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import InputError, UsageError
from shards.unfinished import TEMPORARY_MARK
from spkid_dist.scoring import scorefile
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.rowfile import RowFile
from spkid_dist.scoring.scorefile import check_place, pieces, read_scores, write_scores
from spkid_dist.scoring.scoreorigin import Origin
from spkid_dist.scoring.scores import Scores

pytestmark = pytest.mark.fast

KINDS = pytest.mark.parametrize("kind", [".npz", ".parquet"])
ODD = ["a b/c\td", "ü/ß/é", "日本/語", "quote\"d'", "", "x" * 300, "-", "a\\udcff"]


def made(num_utterances=7, num_speakers=4, top=None):
    """Scores of random numbers, of odd keys, some of unknown speakers."""
    draw = np.random.default_rng(0)
    means = -draw.gamma(2, size=(num_utterances, num_speakers)).astype(np.float32)
    order = np.argsort(-means, axis=1)
    ordered = np.take_along_axis(means, order, axis=1)
    alone = np.full(num_utterances, np.inf, np.float32)
    return Scores(
        keys=[f"{ODD[number % len(ODD)]}{number}" for number in range(num_utterances)],
        speakers=[f"{ODD[number % len(ODD)]} {number}" for number in range(num_speakers)],
        found=order[:, 0],
        true=draw.integers(-1, num_speakers, num_utterances),
        margins=ordered[:, 0] - ordered[:, 1] if num_speakers > 1 else alone,
        windows=draw.integers(1, 10**12, num_utterances),
        means=means if top is None else None,
        top_classes=None if top is None else order[:, :top].astype(np.int32),
        top_means=None if top is None else ordered[:, :top],
        origin=Origin(weights={"0" * 31 + "a": "é.ckpt"}, te_list_file="cfg/ü", te_shards=None),
    )


def assert_same(found, expected):
    for field in fields(Scores):
        mine, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            assert mine.dtype == other.dtype, field.name
            np.testing.assert_array_equal(mine, other, field.name)
        else:
            assert mine == other, field.name


@KINDS
@pytest.mark.parametrize(("num_utterances", "num_speakers", "top"), [(7, 4, None), (20, 9, 3), (1, 1, None), (1, 1, 1)])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, kind, num_utterances, num_speakers, top):
    monkeypatch.setattr(scorefile, "MOST_ROWS", 3)  # several pieces
    scores = made(num_utterances, num_speakers, top)
    write_scores(tmp_path / f"x{kind}", scores)
    assert_same(read_scores(str(tmp_path / f"x{kind}")), scores)


@KINDS
@pytest.mark.parametrize("threshold", [None, 0.1, -np.inf])
def test_decisions_are_read_as_they_were_written(tmp_path, monkeypatch, kind, threshold):
    monkeypatch.setattr(scorefile, "MOST_ROWS", 3)
    ratios = np.linspace(-1, 1, 7).astype(np.float32)
    decided = {} if threshold is None else {"threshold": threshold, "accepted": ratios >= threshold}
    scores = replace(made(), scale=Scale(temperature=0.7), ratios=ratios, posteriors=abs(ratios), **decided)
    write_scores(tmp_path / f"x{kind}", scores)
    assert_same(read_scores(tmp_path / f"x{kind}"), scores)


@KINDS
def test_pieces_of_any_size_make_the_same_arrays(tmp_path, monkeypatch, kind):
    scores = made(40, 5)
    write_scores(tmp_path / f"a{kind}", scores)
    monkeypatch.setattr(scorefile, "MOST_ROWS", 1)
    write_scores(tmp_path / f"b{kind}", replace(scores, means=None), (scores.means[n : n + 1] for n in range(40)))
    assert_same(read_scores(tmp_path / f"b{kind}"), scores)
    if kind == ".npz":
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@KINDS
def test_no_more_than_some_pieces_are_in_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(scorefile, "PIECE_BYTES", 2**20)
    scores = replace(made(1000, 1), speakers=[f"s{number}" for number in range(5000)])  # 20 MB of scores
    means = (np.zeros((last - first, 5000), np.float32) for first, last in pieces(1000, 5000))
    write_scores(tmp_path / f"small{kind}", made())  # imports
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        write_scores(tmp_path / f"x{kind}", replace(scores, means=None), means)
        assert tracemalloc.get_traced_memory()[1] < 6 * 2**20
    finally:
        tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < 12 * 2**20


@KINDS
def test_names_that_are_no_utf8_are_escaped_as_in_the_results(tmp_path, kind):
    scores = replace(made(1, 1), keys=[os.fsdecode(b"caf\xe9")], speakers=[os.fsdecode(b"\xff")])
    write_scores(tmp_path / f"x{kind}", scores)
    found = read_scores(tmp_path / f"x{kind}")
    assert (found.keys, found.speakers) == ([r"caf\udce9"], [r"\udcff"])


def test_numpy_alone_reads_an_npz(tmp_path):
    scores = made(5, 3)
    write_scores(tmp_path / "x.npz", scores)
    with np.load(tmp_path / "x.npz") as arrays:
        assert set(arrays) == {
            "keys", "speakers", "found", "true", "margins", "windows", "scores", "format_version", "origin"
        }  # fmt: skip
        assert arrays["scores"].dtype == np.float32
        assert arrays["keys"][1] == scores.keys[1]


def test_pyarrow_alone_reads_a_table(tmp_path):
    scores = made(5, 3)
    write_scores(tmp_path / "all.parquet", scores)
    write_scores(tmp_path / "top.parquet", made(5, 3, top=2))
    whole, best = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("all", "top"))
    assert whole.column_names == ["key", "speaker", "true_speaker", "margin", "windows", "scores"]
    assert best.column_names == [*whole.column_names[:-1], "top_speakers", "top_scores"]
    for row, top, means, true in zip(whole.to_pylist(), best.to_pylist(), scores.means, scores.true, strict=True):
        assert row["scores"] == means.tolist()
        assert row["speaker"] == scores.speakers[means.argmax()] == top["top_speakers"][0]
        assert top["top_scores"] == sorted(means.tolist(), reverse=True)[:2]
        assert row["true_speaker"] == (None if true < 0 else scores.speakers[true])


def test_a_table_that_another_program_wrote_again_is_read(tmp_path):
    scores = made(6, 3, top=2)
    write_scores(tmp_path / "x.parquet", scores)
    table = pq.read_table(tmp_path / "x.parquet")
    lists = pa.list_(pa.float32())
    at = table.column_names.index("top_scores")
    table = table.set_column(at, "top_scores", table["top_scores"].cast(lists))
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    assert_same(read_scores(tmp_path / "x.parquet"), scores)


@KINDS
def test_a_damaged_file_is_one_line(tmp_path, kind):
    path = tmp_path / f"x{kind}"
    write_scores(path, made())
    data = path.read_bytes()
    for size in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"x\.\w+: .*give a file that spkid score --scores wrote") as error:
            read_scores(path)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match=r"x\.\w+: can't read these scores: No such file"):
        read_scores(path)


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", frames=np.zeros(3))
    with pytest.raises(InputError, match="no file of scores, or a damaged one"):
        read_scores(tmp_path / "x.npz")
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"no file of scores, or a damaged one \(not a sound \.npz"):
        read_scores(tmp_path / "x.npz")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no file of scores, or a damaged one"):
        read_scores(tmp_path / "x.parquet")
    for name in ("x.csv", "x"):
        with pytest.raises(UsageError, match=r"whose name ends in \.npz or \.parquet"):
            read_scores(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"found": np.full(7, 4)}, "found has classes 4 to 4, expected 0 to 3"),
        ({"true": np.full(7, -2)}, "true has classes -2 to -2, expected -1 to 3"),
        ({"windows": np.zeros(6, int)}, r"windows is int64 of shape \(6,\), expected \(7,\)"),
        ({"margins": np.zeros(7, int)}, "margins is int64"),
        ({"speakers": ["a"]}, "expected"),
        ({"accepted": np.ones(7, int), "threshold": 0.0}, "accepted is int64"),
        ({"accepted": np.ones(7, bool)}, "of accepted and threshold it has one only"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    write_scores(tmp_path / "x.npz", made())
    with np.load(tmp_path / "x.npz") as arrays:
        np.savez(tmp_path / "x.npz", **dict(arrays) | changes)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / "x.npz")


@pytest.fixture
def no_room():
    """Files of this process can't grow beyond 50,000 bytes: the system fails the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@KINDS
@pytest.mark.usefixtures("no_room")
def test_a_full_disk_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / f"x{kind}"
    path.write_bytes(b"earlier")
    called = []
    with pytest.raises(InputError, match=r"x\.\w+: can't be written: File too large; free room"):
        write_scores(path, made(200, 100), before_replacing=lambda: called.append(1))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"earlier"
    assert not called


@pytest.mark.usefixtures("no_room")
def test_rows_that_find_no_room_are_one_line(tmp_path):
    message = r"can't be kept in this folder .*: File too large; .*by --top"
    with contextlib.closing(RowFile(tmp_path, 100)) as rows, pytest.raises(InputError, match=message):
        rows.add(np.arange(200), np.ones((200, 100), np.float32))


KILLED = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {helpers!r})
from test_scorefile import made
from pathlib import Path
from dataclasses import replace
from spkid_dist.scoring.scorefile import write_scores

def pieces(means):
    yield means[:100]
    os.kill(os.getpid(), signal.SIGKILL)

scores = made(200, 100)
write_scores(Path(sys.argv[1]), replace(scores, means=None), pieces(scores.means))
"""


@KINDS
def test_a_kill_leaves_no_file_of_that_name(tmp_path, kind):
    program = KILLED.format(helpers=os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / f"x{kind}")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert all(TEMPORARY_MARK in one.name for one in tmp_path.iterdir())


def test_a_place_where_nothing_can_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(InputError, match=r"x\.npz: is a folder or a device"):
        check_place(tmp_path / "x.npz")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: can't create this folder"):
        check_place(tmp_path / "file/x.npz")
    with pytest.raises(InputError, match=r"x\.npz: can't be written: .*give --scores a file in another folder"):
        check_place(type(tmp_path)("/proc/x.npz"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UsageError, match=r"pyarrow can't be imported .* a file of scores in Parquet needs it: run .*pip"
    ):
        check_place(tmp_path / "x.parquet")
    check_place(tmp_path / "new/x.npz")
    assert (tmp_path / "new").is_dir()


def test_rows_come_back_by_position(tmp_path):
    draw = np.random.default_rng(1)
    rows, expected = RowFile(tmp_path, 3), np.zeros((20, 3), np.float32)
    for positions in np.split(draw.permutation(20)[:14], [3, 4, 10]):
        expected[positions] = draw.normal(size=(len(positions), 3))
        rows.add(positions, expected[positions])
    found = [rows.read(first, last) for first, last in ((0, 7), (7, 8), (8, 20))]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert not list(tmp_path.iterdir())  # a file without a name
    rows.close()


def test_a_process_without_utterances_has_rows_of_zeros(tmp_path):
    with contextlib.closing(RowFile(tmp_path, 3)) as rows:
        np.testing.assert_array_equal(rows.read(2, 4), np.zeros((2, 3)))


@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (10, 10**9), (10**6, 10_000), (2**16 + 1, 1)])
def test_pieces_cover_all_rows_and_are_bounded(num_rows, width):
    bounds = list(pieces(num_rows, width))
    assert [first for first, _ in bounds] == [0, *(last for _, last in bounds[:-1])]
    assert bounds[-1][1] == num_rows
    assert all(last - first == 1 or (last - first) * width * 4 <= scorefile.PIECE_BYTES for first, last in bounds)
