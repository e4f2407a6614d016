"""Trial lists of all forms, as people write them, and every line that is wrong."""

import numpy as np
import pytest

from shards import InputError
from spkid_dist.scoring import triallist
from spkid_dist.scoring.triallist import read_trials

pytestmark = pytest.mark.fast


@pytest.fixture
def trials_of(tmp_path):
    def read(text):
        (tmp_path / "trials").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_trials(tmp_path / "trials")

    return read


def rows(trials):
    """The trials as (claim, utterance, target)."""
    return [
        (trials.claims[claim], trials.utterances[utterance], bool(target))
        for claim, utterance, target in zip(trials.claim, trials.utterance, trials.target, strict=True)
    ]


EXPECTED = [("ana", "a/u1", True), ("ana", "b/u2", False), ("bob", "b/u2", True)]


@pytest.mark.parametrize(
    "text",
    [
        "ana a/u1 target\nana b/u2 nontarget\nbob b/u2 target\n",
        "1 ana a/u1\n0 ana b/u2\n1 bob b/u2\n",
        "ana a/u1 1\nana b/u2 0\nbob b/u2 1\n",
        "\ufeffana a/u1 target\r\nana b/u2 nontarget\r\n\r\nbob b/u2 target",
        "\r\r1 ana a/u1\r0 ana b/u2\r\r1 bob b/u2\r",
        "\n  \t\n 1\tana  a/u1 \x0b\n\n0 ana\tb/u2\n\n\n1 \x0cbob b/u2\n \n",
    ],
)
def test_all_forms_are_read_whatever_the_white_space(trials_of, text):
    trials = trials_of(text)
    assert rows(trials) == EXPECTED
    assert trials.claims == ["ana", "bob"]
    assert trials.repeated == 0


def test_a_trial_knows_its_line_in_the_file(trials_of):
    assert trials_of("\n\r\n1 ana u\r\r1 bob u\n\n0 bob v").lines.tolist() == [3, 5, 7]


def test_names_beyond_ascii_keep_their_spaces_of_unicode(trials_of):
    assert rows(trials_of("çé\u00a0x ü/ñ target\n")) == [("çé\u00a0x", "ü/ñ", True)]


def test_a_speaker_named_1_is_no_label_where_the_last_word_is_one(trials_of):
    trials = trials_of("1 u target\n0 u nontarget\n")
    assert (trials.form, rows(trials)) == ("kaldi", [("1", "u", True), ("0", "u", False)])


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("1 u 0\n0 u 1\nana u 0\n", "label_last", [("1", "u", False), ("0", "u", True), ("ana", "u", False)]),
        ("1 u 0\n0 u 1\n1 u v\n", "voxceleb", [("u", "0", True), ("u", "1", False), ("u", "v", True)]),
        ("ana u 1\n1 u 0\n", "label_last", [("ana", "u", True), ("1", "u", False)]),
        ("1 u v\n1 u 0\n", "voxceleb", [("u", "v", True), ("u", "0", True)]),
    ],
)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_lines_with_a_label_at_either_end_are_of_the_form_of_the_others(
    trials_of, monkeypatch, chunk, text, form, expected
):
    monkeypatch.setattr("shards.lines.CHUNK_BYTES", chunk)
    trials = trials_of(text)
    assert (trials.form, rows(trials)) == (form, expected)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_list_longer_than_what_is_read_at_a_time_is_whole(trials_of, monkeypatch, ends):
    monkeypatch.setattr("shards.lines.CHUNK_BYTES", 101)
    draw = np.random.default_rng(0)
    expected = sorted({(f"s{a}", f"u{b:03d}", a % 3 == 0) for a, b in draw.integers(0, 40, (300, 2)).tolist()})
    blanks = [ends * int(count) for count in draw.integers(1, 4, len(expected))]
    text = "".join(f"{int(t)} {c} {u}{blank}" for (c, u, t), blank in zip(expected, blanks, strict=True))
    trials = trials_of(text)
    assert rows(trials) == expected
    starts = np.cumsum([1, *(len(blank) // len(ends) for blank in blanks[:-1])])
    assert trials.lines.tolist() == starts.tolist()


def test_repeated_trials_are_counted(trials_of):
    trials = trials_of("1 a u\n1 a u\n0 b u\n1 a u\n")
    assert (len(trials), trials.repeated) == (4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"trials: the trial list is empty; give a file with lines SPEAKER UTTERANCE target\|nontarget, or 1\|0"),
        (" \n\r\n", r"trials: the trial list is empty"),
        (
            "a u 1\n1 b v\n",
            r"trials:2: '1 b v' has the form 1\|0 ENROLMENT UTTERANCE, but the lines before it SPEAKER UTT",
        ),
        (
            "a u 1\nb v target\n",
            r"trials:2: 'b v target' has the form SPEAKER UTTERANCE target\|nontarget, but the lines",
        ),
        ("1 a u\nb v 1\n", r"trials:2: 'b v 1' has the form SPEAKER UTTERANCE 1\|0, but the lines before it 1\|0 ENR"),
        (
            "a u target\nb v 1\n",
            r"trials:2: 'b v 1' has the form SPEAKER UTTERANCE 1\|0, but the lines before it SPEAKER",
        ),
        ("a u 1\nb v 2\n", r"trials:2: 'b v 2' is no trial; the lines before it SPEAKER UTTERANCE 1\|0; give one"),
        (
            "1 u 0\n\n0 u 1\n",
            r"trials:1: '1 u 0': here and in all other lines the first word or the last may be the label",
        ),
        ("1 a u\n1 a\n", r"trials:2: 2 words in '1 a', expected 3: .*correct the line"),
        ("\n\n1 a u v\n", r"trials:3: 4 words in '1 a u v', expected 3"),
        ("a u yes\n", r"trials:1: 'a u yes' is no trial; expected SPEAKER UTTERANCE target\|nontarget, or 1\|0"),
        ("# a comment\n1 a u\n", r"trials:1: '# a comment' is no trial"),
        ("1 a u\n2 a v\n", r"trials:2: '2 a v' is no trial; the lines before it 1\|0 ENROLMENT UTTERANCE; give one"),
        ("a u target\na v imposter\n", r"trials:2: 'a v imposter' is no trial; the lines before it SPEAKER UTTERANCE"),
        (
            "a u target\n1 a v\n",
            r"trials:2: '1 a v' has the form 1\|0 ENROLMENT UTTERANCE, but the lines before it SPEA",
        ),
        ("1 a u\n\na v target\n", r"trials:3: 'a v target' has the form SPEAKER UTTERANCE target\|nontarget, but the"),
        (
            "1 a u\n0 b u\n0 a u\n",
            r"trials:3: line 1 has the same trial with the opposite label; remove one of the lines",
        ),
        (
            b"1 a \xff\n",
            r"trials: the trial list must be UTF-8 text: invalid start byte at byte 4; give a file with lines",
        ),
        ("x" * 300 + "\n", r"trials:1: 1 words in 'x{120}\.\.\.', expected 3"),
    ],
)
def test_what_is_no_trial_list_is_one_line(trials_of, text, message):
    with pytest.raises(InputError, match=message):
        trials_of(text)


def test_a_list_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none: can't read the trial list: No such file or directory; give a file"):
        read_trials(tmp_path / "none")


def test_names_that_are_not_known_are_told_with_line_and_number(trials_of):
    trials = trials_of("a u target\nc u nontarget\na w nontarget\nb u target\n")
    assert trials.resolve_claims({"b": 1, "a": 0, "c": 2}, "", "").tolist() == [0, 2, 1]
    with pytest.raises(
        InputError, match=r"trials:2: speaker 'c' is not one of the model's \(2 of the 3 claimed speakers\); do so$"
    ):
        trials.resolve_claims({"a": 0}, "one of the model's", "do so")
    with pytest.raises(InputError, match=r"trials:3: utterance 'w' is not in x \(1 of the 2 utterances\)"):
        trials.resolve_utterances({"u": 0}, "in x", "do so")


def test_names_of_audio_files_are_those_of_their_keys(trials_of):
    trials = trials_of("1 id1/x/1.wav id1/y/2.WAV\n0 id1/x/1.wav id2/z.wav\n")
    assert trials.resolve_utterances({"id1/y/2": 4, "id2/z.wav": 5, "id2/z": 6}, "", "").tolist() == [4, 5]
    assert trials.resolve_claims({"id1/x/1": 3}, "", "").tolist() == [3]
    with pytest.raises(InputError, match=r"trials:1: enrolment 'id1/x/1\.wav' is not here"):
        trials.resolve_claims({"id1/x/1.flac": 3}, "here", "")


def test_the_white_space_of_both_splits_is_the_same():
    assert [byte for byte in range(256) if triallist._IS_WHITE[byte]] == [
        b for b in range(256) if not bytes([b]).strip()
    ]
