"""Speaker rules, and lists read with them."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_checks import error_of

from shards import (
    InputError,
    UsageError,
    Utterance,
    read_list,
    speaker_by_component,
    speaker_by_regex,
    speaker_by_tsv,
    speaker_by_utt2spk,
)
from spkid_dist.config import ScoreConfig, ShardConfig, SpeakerFlags


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_component_of_a_key_counts_from_1() -> None:
    assert speaker_by_component(2)("BLOCK00/SES000/SA000S01") == "SES000"
    assert speaker_by_component(1)("BLOCK00/SES000/SA000S01") == "BLOCK00"


@pytest.mark.parametrize("key", ["SA000S01", "A//B"])
def test_key_without_the_component_is_an_error(key: str) -> None:
    assert error_of(speaker_by_component(2), key) == (
        f"utterance {key!r} has no component 2 to name its speaker; expected a line such as "
        "BLOCK00/SES000/SA000S01, or set --speaker_component"
    )


def test_component_0_is_used_wrongly() -> None:
    with pytest.raises(UsageError, match=r"^--speaker_component 0: components count from 1; give 1 or more$"):
        speaker_by_component(0)


@pytest.mark.parametrize("pattern", [r"\d_(.+)_\d", r"(\d)_(?P<speaker>.+)_(\d)", r"_(?P<speaker>[^_]+)_"])
def test_regex_takes_its_only_group_or_the_one_named_speaker(pattern: str) -> None:
    assert speaker_by_regex(pattern)("recordings/0_george_12") == "george"


@pytest.mark.parametrize("key", ["recordings/george", "0__1"])
def test_key_in_which_a_regex_finds_no_speaker_is_an_error(key: str) -> None:
    assert error_of(speaker_by_regex("_([a-z]*)_"), key) == (
        f"the regular expression '_([a-z]*)_' finds no speaker in utterance {key!r}; change --speaker_regex, or remove "
        "the utterance from the list"
    )


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(", "--speaker_regex '(': not a regular expression: missing ), unterminated subpattern at position 0"),
        (
            "a",
            "--speaker_regex 'a': it has 0 groups; expected one, or one named speaker, such as '_(?P<speaker>[^_]+)_'",
        ),
        (
            "(a)(b)",
            "--speaker_regex '(a)(b)': it has 2 groups; expected one, or one named speaker, such as "
            "'_(?P<speaker>[^_]+)_'",
        ),
    ],
)
def test_regex_without_one_clear_group_is_used_wrongly(pattern: str, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        speaker_by_regex(pattern)
    assert str(raised.value) == text


def test_tsv_names_speakers_that_may_hold_spaces(tmp_path: Path) -> None:
    rule = speaker_by_tsv(write(tmp_path / "t.tsv", "a 1\tAda Lovelace\n\nb\tBob\n"))
    assert (rule("a 1"), rule("b")) == ("Ada Lovelace", "Bob")


def test_utt2spk_is_separated_by_any_white_space(tmp_path: Path) -> None:
    rule = speaker_by_utt2spk(write(tmp_path / "utt2spk", "a  ada\nb\tbob\n"))
    assert (rule("a"), rule("b")) == ("ada", "bob")


def test_key_that_a_table_lacks_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tada\n")
    assert error_of(speaker_by_tsv(path), "b") == (
        f"utterance 'b' is not among the 1 of {path}; add it there, or remove the utterance from the list"
    )


@pytest.mark.parametrize(
    ("line", "columns"), [("b", 1), ("b bob", 1), ("b\tbob\tx", 3), ("b\t", 2), ("\tbob", 2)], ids=repr
)
def test_tsv_line_that_has_not_two_columns_is_an_error(tmp_path: Path, line: str, columns: int) -> None:
    path = write(tmp_path / "t.tsv", f"a\tada\n{line}\n")
    assert error_of(speaker_by_tsv, path) == (
        f"{path}:2: {columns} columns in {line!r}; expected KEY<TAB>SPEAKER, both not empty: correct the line"
    )


def test_utt2spk_line_that_has_not_two_columns_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "utt2spk", "a ada lovelace\n")
    assert error_of(speaker_by_utt2spk, path) == (
        f"{path}:1: 3 columns in 'a ada lovelace'; expected KEY SPEAKER, both not empty: correct the line"
    )


def test_key_that_occurs_twice_in_a_table_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "a\tada\nb\tbob\na\teve\n")
    assert error_of(speaker_by_tsv, path) == (
        f"{path}:3: utterance 'a' occurs a second time (it has speaker 'ada' already); expected one line an utterance: "
        "remove one"
    )


def test_missing_tables_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert error_of(speaker_by_tsv, path) == (
        f"{path}: can't read the table of speakers: No such file or directory; give a file with a line KEY<TAB>SPEAKER "
        "an utterance"
    )
    with pytest.raises(
        InputError, match=r"can't read the speakers of a Kaldi folder: No such file or directory; give "
    ):
        speaker_by_utt2spk(path)


def test_list_is_read_with_any_rule(tmp_path: Path) -> None:
    path = write(tmp_path / "list", "x/0_ada_1\n\nx/1_bob_2\n")
    assert read_list(path, rule=speaker_by_regex("_(.+)_")) == [
        Utterance("x/0_ada_1", "ada"),
        Utterance("x/1_bob_2", "bob"),
    ]
    assert [utterance.speaker for utterance in read_list(path, 1)] == ["x", "x"]
    assert [utterance.speaker for utterance in read_list(path)] == ["0_ada_1", "1_bob_2"]


def test_list_line_without_a_speaker_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "list", "x/0_ada_1\nx/1\n")
    assert error_of(partial(read_list, rule=speaker_by_regex("_(.+)_")), path) == (
        f"{path}:2: the regular expression '_(.+)_' finds no speaker in utterance 'x/1'; change --speaker_regex, or "
        "remove the utterance from the list"
    )


def test_list_line_may_do_without_a_speaker_where_speakers_need_not_be_known(tmp_path: Path) -> None:
    path = write(tmp_path / "list", "a\nb\n")
    rule = speaker_by_tsv(write(tmp_path / "t.tsv", "a\tada\n"))
    assert read_list(path, rule=rule, speakers_known=False) == [Utterance("a", "ada"), Utterance("b", "")]


@pytest.mark.parametrize("key", ["../a", "/a", "a\0b"])
def test_key_that_is_no_path_below_the_folder_is_an_error(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "list", f"{key}\n")
    read = partial(read_list, rule=str, speakers_known=False)
    assert error_of(read, path) == f"{path}:1: utterance {key!r} leaves the feature folder; list paths below it"


def test_flags_choose_the_rule(tmp_path: Path) -> None:
    table = write(tmp_path / "t", "a/b\tada\n")
    for flags, speaker in (
        (SpeakerFlags(speaker_component=1), "a"),
        (SpeakerFlags(speaker_regex="(.)$"), "b"),
        (SpeakerFlags(speaker_tsv=table), "ada"),
        (SpeakerFlags(utt2spk=table), "ada"),
    ):
        rule = flags.speaker_rule()
        assert rule is not None and rule("a/b") == speaker
    assert SpeakerFlags().speaker_rule() is None


def test_two_speaker_flags_are_used_wrongly() -> None:
    with pytest.raises(UsageError) as raised:
        ShardConfig(out=Path("o"), speaker_component=2, utt2spk=Path("u"))
    assert str(raised.value) == (
        "--speaker_component and --utt2spk: each names the speakers another way; give one of them"
    )
    with pytest.raises(UsageError, match=r"^--speaker_regex and --speaker_tsv: each names"):
        ScoreConfig(weights_ckpt=Path("w"), speaker_regex="(a)", speaker_tsv=Path("t"))


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_as_a_table_give_a_rule_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "table"
    path.write_bytes(data)
    for reader in (speaker_by_tsv, speaker_by_utt2spk, read_list):
        try:
            reader(path)
        except InputError as error:
            assert str(error).startswith(str(path))
