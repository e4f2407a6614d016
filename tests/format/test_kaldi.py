"""Kaldi data folders as a source."""

import gzip
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_checks import error_of, kaldi_folder, only_input_errors, utterance

from shards import InputError, KaldiSource, Utterance, read_kaldi_folder
from shards.sources.kaldimatrix import parse_matrix
from shards.sources.kaldiscp import read_scp
from shards.sources.limits import UtteranceLimit

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_kaldi_matrices_are_found_by_their_offsets(tmp_path: Path, dtype: str) -> None:
    expected = kaldi_folder(tmp_path, dtype=dtype)
    source = KaldiSource.open(tmp_path)
    utterances = read_kaldi_folder(tmp_path)
    assert utterances == [Utterance(key, key[:4]) for key in expected]
    for listed in utterances:
        frames = source.load(listed)
        assert frames.dtype == np.float32
        np.testing.assert_array_equal(frames, expected[listed.key].astype(np.float32))


@pytest.mark.parametrize("method", [2, 3, 5])
def test_compressed_kaldi_matrices_are_read(tmp_path: Path, method: int) -> None:
    expected = kaldi_folder(tmp_path, method)
    source = KaldiSource.open(tmp_path)
    for key, frames in expected.items():
        np.testing.assert_allclose(source.load(utterance(key)), frames, atol=0.05)


def test_kaldi_row_range_includes_its_last_row(tmp_path: Path) -> None:
    frames = kaldi_folder(tmp_path)["spk0-utt0"]
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + "[2:5]\n")
    np.testing.assert_array_equal(KaldiSource.open(tmp_path).load(utterance("spk0-utt0")), frames[2:6])


@pytest.mark.parametrize("span", ["2:12", "9:9", "5:4"])
def test_kaldi_row_range_that_is_not_in_the_matrix_is_an_error(tmp_path: Path, span: str) -> None:
    kaldi_folder(tmp_path)
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + f"[{span}]\n")
    assert error_of(KaldiSource.open(tmp_path).load, utterance("spk0-utt0")) == (
        f"{tmp_path}/feats.ark:10: rows [{span}] of a matrix of 9; expected the first below that, and the last at most 3 "
        f"beyond the last row: correct {scp}"
    )


@pytest.mark.parametrize("last", [9, 10, 11])
def test_kaldi_row_range_is_cut_as_kaldi_does_and_a_line_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr("shards.sources.kaldiscp._said", set())
    frames = kaldi_folder(tmp_path)["spk0-utt0"]
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + f"[2:{last}]\n")
    source = KaldiSource.open(tmp_path)
    for _ in range(2):
        np.testing.assert_array_equal(source.load(utterance("spk0-utt0")), frames[2:])
    assert caplog.messages == [
        f"{tmp_path}/feats.ark:10: rows [2:{last}] of a matrix of 9: cut at its end, as Kaldi does; further ranges that end up "
        "to 3 rows beyond are cut alike, without a line"
    ]


@pytest.mark.parametrize(
    ("span", "rows", "columns"),
    [
        ("2:5,1:2", slice(2, 6), slice(1, 3)),
        (":,1:2", slice(None), slice(1, 3)),
        ("2:5,:", slice(2, 6), slice(None)),
        (":", slice(None), slice(None)),
        ("2:10,3:3", slice(2, None), slice(3, 4)),
    ],
)
def test_kaldi_column_range_is_cut_out(tmp_path: Path, span: str, rows: slice, columns: slice) -> None:
    frames = kaldi_folder(tmp_path)["spk0-utt0"]
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + f"[{span}]\n")
    found = KaldiSource.open(tmp_path).load(utterance("spk0-utt0"))
    np.testing.assert_array_equal(found, frames[rows, columns])
    assert found.flags.c_contiguous


def test_kaldi_column_range_beyond_the_matrix_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + "[0:3,1:4]\n")
    assert error_of(KaldiSource.open(tmp_path).load, utterance("spk0-utt0")) == (
        f"{tmp_path}/feats.ark:10: columns [1:4] of a matrix of 4; expected both below that, in order: correct {scp}"
    )


def test_ranges_give_what_kaldi_itself_reads(tmp_path: Path) -> None:
    kaldi_native_io = pytest.importorskip("kaldi_native_io", reason="kaldi_native_io is not installed")
    kaldi_folder(tmp_path)
    place = (tmp_path / "feats.scp").read_text().split()[1]
    for span in ("0:3", "2:10", "2:11", "0:3,1:2", ":,0:0", "7:8,:"):
        (tmp_path / "feats.scp").write_text(f"a {place}[{span}]\n")
        with kaldi_native_io.SequentialFloatMatrixReader(f"scp:{tmp_path}/feats.scp") as reader:
            (expected,) = [np.array(value) for _, value in reader]  # of memory that goes with the reader
        np.testing.assert_array_equal(KaldiSource.open(tmp_path).load(utterance("a")), expected)


ODD_SPACES = ["\u00a0", "\u3000", "\u2003", "\u1680"]


@pytest.mark.parametrize("space", ODD_SPACES)
def test_keys_are_cut_at_spaces_and_tabs_alone(tmp_path: Path, space: str) -> None:
    expected = kaldi_folder(tmp_path)["spk0-utt0"]
    key = f"a{space}b"
    place = (tmp_path / "feats.scp").read_text().split()[1]
    (tmp_path / "feats.scp").write_text(f"{key}\t {place}\n", encoding="utf-8")
    (tmp_path / "utt2spk").write_text(f"{key} \tada{space}l\n", encoding="utf-8")
    (tmp_path / "utt2num_frames").write_text(f"{key} 9\n", encoding="utf-8")
    assert read_kaldi_folder(tmp_path) == [Utterance(key, f"ada{space}l")]
    np.testing.assert_array_equal(KaldiSource.open(tmp_path).load(utterance(key)), expected)


def test_a_next_line_character_ends_no_line_of_utt2spk(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    (tmp_path / "utt2spk").write_text("a\u0085b ada\n", encoding="utf-8")
    with pytest.raises(InputError, match="is not among the 1 of"):  # the lines of one name are not two
        read_kaldi_folder(tmp_path)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_big_endian_archive_is_named_as_such(tmp_path: Path, dtype: str) -> None:
    frames = {"a": np.ones((9, 4), dtype)}
    kaldiio.save_ark(str(tmp_path / "x.ark"), frames, scp=str(tmp_path / "feats.scp"), endian=">")
    assert error_of(KaldiSource.open(tmp_path).load, utterance("a")) == (
        f"{tmp_path}/x.ark:2: the archive is big-endian, of another kind of machine: read so, its header says 9 frames x 4 "
        "features; expected little-endian numbers: write it again, with kaldiio.load_scp(SCP, endian='>') and kaldiio.save_ark"
    )


def test_kaldi_speakers_can_come_from_another_rule(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    (tmp_path / "utt2spk").unlink()
    assert [listed.speaker for listed in read_kaldi_folder(tmp_path, lambda key: key[-1])] == ["0", "1", "2"]
    assert error_of(read_kaldi_folder, tmp_path) == (
        f"{tmp_path}/utt2spk: can't read the speakers of a Kaldi folder: No such file or directory; give a file with a "
        "line KEY SPEAKER an utterance"
    )


def test_utterance_that_utt2spk_lacks_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    path = tmp_path / "utt2spk"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert error_of(read_kaldi_folder, tmp_path) == (
        f"{tmp_path}/feats.scp: utterance 'spk0-utt2' is not among the 2 of {path}; add it there, or remove the utterance "
        "from the list"
    )


def test_utterance_that_feats_scp_lacks_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    assert error_of(KaldiSource.open(tmp_path).load, utterance("other")) == (
        f"{tmp_path}/feats.scp: it has no utterance 'other'; add it there, or remove it from the list"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ": no utterances; expected a line KEY ARCHIVE:OFFSET each"),
        (
            "a x.ark:1\nb\n",
            ":2: 'b'; expected KEY ARCHIVE:OFFSET, or KEY ARCHIVE:OFFSET[FIRST:LAST] for some rows, or KEY "
            "ARCHIVE:OFFSET[FIRST:LAST,FIRST:LAST] for some rows and columns",
        ),
        (
            "a x.ark:1[0:3,1]\n",
            ":1: 'a x.ark:1[0:3,1]'; expected KEY ARCHIVE:OFFSET, or KEY ARCHIVE:OFFSET[FIRST:LAST] for some rows, or KEY "
            "ARCHIVE:OFFSET[FIRST:LAST,FIRST:LAST] for some rows and columns",
        ),
        (
            "a touch ran; cat x.ark |\n",
            ":1: 'touch ran; cat x.ark |' is a command, and this program runs none; run it yourself: copy-feats "
            "scp:feats.scp ark,scp:feats.ark,new.scp",
        ),
        (
            "a x:1\nb x:2\na x:3\n",
            ":3: utterance 'a' occurs a second time; expected one line per utterance: remove one",
        ),
    ],
)
def test_scp_that_names_no_matrices_is_an_error(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "feats.scp"
    path.write_text(text)
    assert error_of(read_scp, path) == f"{path}{error}"


def test_missing_scp_is_an_error(tmp_path: Path) -> None:
    assert error_of(KaldiSource.open, tmp_path) == (
        f"{tmp_path}/feats.scp: can't read the list of Kaldi features: No such file or directory; give a Kaldi data "
        "folder, which holds feats.scp"
    )


def test_missing_archive_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    (tmp_path / "feats.ark").unlink()
    assert error_of(KaldiSource.open(tmp_path).load, utterance("spk0-utt0")) == (
        f"{tmp_path}/feats.ark:10: can't read this archive: No such file or directory; expected the path as from the folder "
        "where the program runs: run it there, or write absolute paths into feats.scp"
    )


def test_offset_past_the_end_of_the_archive_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    ark = tmp_path / "feats.ark"
    (tmp_path / "feats.scp").write_text(f"a {ark}:99999\n")
    assert error_of(KaldiSource.open(tmp_path).load, utterance("a")) == (
        f"{ark}:99999: the offset is past the end of the archive, which has {ark.stat().st_size} bytes; write the archive "
        "and its scp again together"
    )


def test_wrong_offset_is_an_error(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    ark = tmp_path / "feats.ark"
    (tmp_path / "feats.scp").write_text(f"a {ark}\n")
    assert error_of(KaldiSource.open(tmp_path).load, utterance("a")) == (
        f"{ark}:0: no matrix begins here: found b'spk0-utt', expected one of the types FM, DM, CM, CM2, CM3, or text "
        "in brackets; check the offset, or write the archive again with copy-feats"
    )


def test_truncated_archive_is_an_error(tmp_path: Path) -> None:
    expected = kaldi_folder(tmp_path)
    ark = tmp_path / "feats.ark"
    ark.write_bytes(ark.read_bytes()[:-1])
    needed = 15 + expected["spk0-utt2"].nbytes
    source = KaldiSource.open(tmp_path)
    text = error_of(source.load, utterance("spk0-utt2"))
    assert text == (
        f"{source.where(utterance('spk0-utt2'))}: truncated: {needed - 1} bytes are left in the archive, but the matrix needs "
        f"{needed}; copy the archive again, or compute the features again"
    )


def test_kaldi_matrix_of_an_impossible_shape_is_an_error() -> None:
    data = b"\0BFM \4" + np.int32(-3).tobytes() + b"\4" + np.int32(4).tobytes()
    assert error_of(parse_matrix, data, "x:0") == (
        "x:0: the header says -3 frames x 4 features; expected 0 or more x 1 or more: compute the features again"
    )


def test_kaldi_value_beyond_float32_is_an_error(tmp_path: Path) -> None:
    kaldiio.save_ark(str(tmp_path / "x.ark"), {"a": np.array([[0.0, 1e39]])}, scp=str(tmp_path / "feats.scp"))
    assert error_of(KaldiSource.open(tmp_path).load, utterance("a")) == (
        f"{tmp_path}/x.ark:2: frame 0, feature 1 is 1e+39; expected at most 3.403e+38, float32's largest: scale the features"
    )


def test_kaldi_archives_are_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "x.ark").write_bytes(b"PKLcposix\nsystem\n(S'touch ran'\ntR.")
    (tmp_path / "feats.scp").write_text(f"a {tmp_path}/x.ark:0\n")
    assert "no matrix begins here: found b'PKLcposi'" in error_of(KaldiSource.open(tmp_path).load, utterance("a"))


HEADS = st.sampled_from([b"", b"\0B", *(b"\0B" + name + b" " for name in (b"FM", b"DM", b"CM", b"CM2", b"CM3", b"FV"))])
SHAPES = st.binary(max_size=16) | st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
    lambda shape: b"\4" + np.int32(shape[0]).tobytes() + b"\4" + np.int32(shape[1]).tobytes()
)


@given(head=HEADS, shape=SHAPES, data=st.binary(max_size=120))
@settings(deadline=None, max_examples=800)
def test_any_bytes_as_an_archive_give_frames_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, shape: bytes, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "fuzz.ark").write_bytes(head + shape + data)
    (folder / "feats.scp").write_text(f"a {folder}/fuzz.ark:0\n")
    only_input_errors(KaldiSource.open(folder).load, utterance("a"))


@given(columns=st.tuples(st.integers(0, 4), st.integers(0, 4)), data=st.binary(min_size=120, max_size=120))
@settings(deadline=None, max_examples=300)
def test_any_compressed_values_give_frames_or_an_input_error(columns: tuple[int, int], data: bytes) -> None:
    shape = np.array(columns, "<i4").tobytes()
    for name in (b"CM ", b"CM2 ", b"CM3 "):
        only_input_errors(parse_matrix, b"\0B" + name + data[:8] + shape + data[8:], "x")


@given(data=st.binary(max_size=200) | st.text("ab:[]0| \t\n,-", max_size=60).map(str.encode))
@settings(deadline=None, max_examples=500)
def test_any_bytes_as_feats_scp_give_entries_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.scp"
    path.write_bytes(data)
    try:
        assert read_scp(path)
    except InputError as error:
        assert str(error).startswith(str(path))


def test_utt2num_frames_is_compared_with_the_frames_that_are_read(tmp_path: Path) -> None:
    frames = kaldi_folder(tmp_path)
    path = tmp_path / "utt2num_frames"
    counts = {key: len(value) for key, value in frames.items()}
    path.write_text("".join(f"{key} {count}\n" for key, count in counts.items()))
    source = KaldiSource.open(tmp_path)
    for key in frames:
        source.load(utterance(key))
    path.write_text("spk0-utt0 8\n")
    source = KaldiSource.open(tmp_path)
    source.load(utterance("spk1-utt1"))  # it may name fewer
    assert error_of(source.load, utterance("spk0-utt0")) == (
        f"{tmp_path}/feats.ark:10: 9 frames of utterance 'spk0-utt0', but {path} says 8; the archive and the folder are not of "
        "the same run: compute the features again, or remove that file"
    )


def test_utt2num_frames_counts_the_rows_of_a_range(tmp_path: Path) -> None:
    kaldi_folder(tmp_path)
    scp = tmp_path / "feats.scp"
    scp.write_text(scp.read_text().splitlines()[0] + "[2:5]\n")
    (tmp_path / "utt2num_frames").write_text("spk0-utt0 4\n")
    assert len(KaldiSource.open(tmp_path).load(utterance("spk0-utt0"))) == 4


@pytest.mark.parametrize("line", ["a", "a b", "a -1", "a 1 2", "a \u00b2", "a 1.5"])
def test_utt2num_frames_that_is_damaged_is_an_error(tmp_path: Path, line: str) -> None:
    kaldi_folder(tmp_path)
    path = tmp_path / "utt2num_frames"
    path.write_text(f"b 1\n{line}\n")
    assert error_of(KaldiSource.open, tmp_path) == (
        f"{path}:2: {line!r}; expected KEY FRAMES: correct the line, or remove the file"
    )
    path.write_text("b 1\nb 1\n")
    assert "b' occurs a second time" in error_of(KaldiSource.open, tmp_path)


def test_a_folder_with_a_wav_scp_alone_is_told_what_to_do(tmp_path: Path) -> None:
    assert error_of(KaldiSource.open, tmp_path / "none").endswith(
        "there is no such folder; give a Kaldi data folder (--db_path), which holds feats.scp"
    )
    (tmp_path / "wav.scp").write_text("a a.wav\n")
    assert error_of(KaldiSource.open, tmp_path).endswith(
        "this folder has a wav.scp, which names audio and no features: compute them (make_fbank.sh, make_mfcc.sh), or give the "
        "folder of the audio files with --source audio"
    )


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("options", ["ark,scp", "ark,t,scp"], ids=["binary", "text"])
@pytest.mark.parametrize("dtype", ["Float", "Double"])
def test_archives_that_kaldi_writes_are_read(tmp_path: Path, packed: bool, options: str, dtype: str) -> None:
    kaldi_native_io = pytest.importorskip("kaldi_native_io", reason="kaldi_native_io is not installed")
    frames = {f"u{i}": np.random.default_rng(i).standard_normal((5 + i, 3)) for i in range(3)}
    frames = {key: value.astype({"Float": "f4", "Double": "f8"}[dtype]) for key, value in frames.items()}
    frames["u1"][0, 0] = -1.5e-12
    with getattr(kaldi_native_io, f"{dtype}MatrixWriter")(f"{options}:{tmp_path}/x.ark,{tmp_path}/feats.scp") as writer:
        for key, value in frames.items():
            writer.write(key, value)
    expected = {key: np.array(value) for key, value in kaldiio.load_scp(str(tmp_path / "feats.scp")).items()}
    if packed:
        ark = tmp_path / "x.ark"
        (tmp_path / "x.ark.gz").write_bytes(gzip.compress(ark.read_bytes()))
        ark.unlink()
        (tmp_path / "feats.scp").write_text((tmp_path / "feats.scp").read_text().replace("x.ark:", "x.ark.gz:"))
    source = KaldiSource.open(tmp_path)
    for key, value in expected.items():
        np.testing.assert_allclose(source.load(utterance(key)), value.astype(np.float32), rtol=2e-7)
        np.testing.assert_allclose(source.load(utterance(key)), frames[key], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" [\n 1 2\n 3 ]\n", "rows of 1 to 2 values; expected as many in each"),
        (" [ ]\n", "no rows; expected as many in each"),
        (" [\n 1 2\n 3 x ]\n", "holds what is no number"),
        (" [\n 1 2_0 ]\n", "holds what is no number: a number has an underscore"),
        (" [\n 1 2\n 3 4\n", "no ']' ends it in 13 bytes"),
        (" [ 1e39 ]", "expected at most 3.403e+38"),
    ],
)
def test_text_that_is_no_matrix_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.ark").write_text(f"a {text}")
    (tmp_path / "feats.scp").write_text(f"a {tmp_path}/x.ark:2\n")
    assert said in error_of(KaldiSource.open(tmp_path).load, utterance("a"))


def test_text_beyond_the_limit_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.ark").write_text("a  [\n" + " 1 2\n" * 11 + "]\n")
    (tmp_path / "feats.scp").write_text(f"a {tmp_path}/x.ark:2\n")
    source = KaldiSource.open(tmp_path, UtteranceLimit(10))
    assert "11 frames; expected at most 10" in error_of(source.load, utterance("a"))


@pytest.mark.parametrize("cut", [-1, -9, 20])
def test_a_packed_archive_that_is_cut_short_is_an_error(tmp_path: Path, cut: int) -> None:
    kaldi_folder(tmp_path)
    packed = gzip.compress((tmp_path / "feats.ark").read_bytes())
    (tmp_path / "x.gz").write_bytes(packed[:cut])
    (tmp_path / "feats.scp").write_text(f"a {tmp_path}/x.gz:999999\nb {tmp_path}/x.gz:10\n")
    only_input_errors(KaldiSource.open(tmp_path).load, utterance("a"))
    only_input_errors(KaldiSource.open(tmp_path).load, utterance("b"))
    (tmp_path / "x.gz").write_bytes(packed)
    assert "the offset is past the end of the archive, which has " in error_of(
        KaldiSource.open(tmp_path).load, utterance("a")
    )


@given(data=st.text("[] \n;1.5e-x_na", max_size=40).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_any_text_as_a_matrix_gives_frames_or_an_input_error(data: bytes) -> None:
    only_input_errors(parse_matrix, b" [" + data, "x")
