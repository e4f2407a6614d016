"""Speaker rules, and lists read with them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import small_corpus, write
from source_checks import error_of

from shards import (
    FmatrixSource,
    InputError,
    Layout,
    ShardDataset,
    SpeakerRule,
    UsageError,
    Utterance,
    convert,
    make_plan,
    read_list,
    speaker_by_component,
    speaker_by_regex,
    speaker_by_tsv,
    speaker_by_utt2spk,
)
from shards.speakers import describe_rule, kept_rule, kept_table
from spkid_dist.commands.check import index
from spkid_dist.commands.shard import shard
from spkid_dist.config import IndexConfig, ScoreConfig, ShardConfig, SpeakerFlags, TrainConfig
from spkid_dist.score import score_utterances
from spkid_dist.train import train_model


def test_component_of_a_key_counts_from_1() -> None:
    assert speaker_by_component(2)("BLOCK00/SES000/SA000S01") == "SES000"
    assert speaker_by_component(1)("BLOCK00/SES000/SA000S01") == "BLOCK00"


@pytest.mark.parametrize("key", ["SA000S01", "A//B"])
def test_key_without_the_component_is_an_error(key: str) -> None:
    assert error_of(speaker_by_component(2), key) == (
        f"utterance {key!r} has no component 2 to name its speaker; expected a line such as "
        "BLOCK00/SES000/SA000S01, or say what names the speakers: --speaker_component, --speaker_regex, --speaker_tsv or "
        "--utt2spk"
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


def test_utt2spk_is_separated_by_spaces_and_tabs(tmp_path: Path) -> None:
    rule = speaker_by_utt2spk(write(tmp_path / "utt2spk", "a  ada\nb\tbob\n"))
    assert (rule("a"), rule("b")) == ("ada", "bob")


@pytest.mark.parametrize("reader", [speaker_by_utt2spk, speaker_by_tsv])
@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_odd_spaces_are_part_of_names(tmp_path: Path, reader: Callable[[Path], SpeakerRule], space: str) -> None:
    rule = reader(write(tmp_path / "t", f"a{space}\t{space}ada{space}l\n"))
    assert rule(f"a{space}") == f"{space}ada{space}l"


@pytest.mark.parametrize("reader", [speaker_by_utt2spk, speaker_by_tsv])
def test_a_next_line_character_does_not_make_two_lines_of_one(
    tmp_path: Path, reader: Callable[[Path], SpeakerRule]
) -> None:
    path = write(tmp_path / "t", "a\tada\x85b\tbob\n")
    assert error_of(reader, path).startswith(f"{path}:1: 3 columns in ")


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
        f"{path}:3: utterance 'a' occurs a second time (it has speaker 'ada' already); expected one line per utterance: "
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


@pytest.mark.parametrize("key", ["../a", "/a"])
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


def test_the_usual_rule_leaves_a_description_as_it_was() -> None:
    assert describe_rule(None, "fmatrix") == describe_rule(speaker_by_component(2), "npy") == {}
    assert describe_rule(None, "kaldi") == {}  # its utt2spk
    assert describe_rule(speaker_by_component(2), "kaldi") == {"speaker_rule": {"by": "component", "value": 2}}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (speaker_by_component(1), {"by": "component", "value": 1}),
        (speaker_by_regex("(?P<speaker>a)|(b)"), {"by": "regex", "value": "(?P<speaker>a)|(b)"}),
    ],
)
def test_a_rule_is_kept_and_read_back(rule: SpeakerRule, kept: dict[str, Any]) -> None:
    description = json.loads(json.dumps(describe_rule(rule, "fmatrix")))
    assert description == {"speaker_rule": kept}
    assert kept_rule(description) == rule
    assert kept_table(description) is None


def test_a_table_is_kept_as_that_there_was_one(tmp_path: Path) -> None:
    table = write(tmp_path / "t", "a\tada\n")
    for rule, by, said in (
        (speaker_by_tsv(table), "speaker_tsv", "the table of --speaker_tsv"),
        (speaker_by_utt2spk(table), "utt2spk", "the table of --utt2spk"),
        (str.upper, "function", "a function"),
    ):
        description = describe_rule(rule, "fmatrix")
        assert description == {"speaker_rule": {"by": by}}
        assert kept_rule(description) is None
        assert kept_table(description) == said


@pytest.mark.parametrize("value", [0, "(", "(a)(b)"])
def test_a_kept_rule_that_cannot_be_is_an_error(value: object) -> None:
    by = "component" if value == 0 else "regex"
    with pytest.raises(InputError, match=r"the speaker rule in train\.opts or the manifest is damaged: --speaker_"):
        kept_rule({"speaker_rule": {"by": by, "value": value}})


def test_a_dataset_keeps_its_rule_in_manifest_and_tars(tmp_path: Path) -> None:
    """And appended parts keep theirs; the manifest is rebuilt from the tars alone."""
    listed = small_corpus(tmp_path, ["ada/1/x", "bob/1/x"])
    source, speakers = FmatrixSource(tmp_path / "mcp"), ["ada", "bob"]
    rule = speaker_by_component(1)
    plan = make_plan(read_list(listed, rule=rule), speakers, source, Layout(), rule=rule)
    manifest = convert(plan, source, tmp_path / "out")
    assert manifest.source == {
        "kind": "fmatrix",
        "ext": "mcp",
        "speaker_rule": {"by": "component", "value": 1},
    }
    before = (tmp_path / "out/manifest.json").read_bytes()
    (tmp_path / "out/manifest.json").unlink()
    index(IndexConfig(folder=tmp_path / "out"))
    assert (tmp_path / "out/manifest.json").read_bytes() == before

    more = read_list(small_corpus(tmp_path, ["x/ada/y"]))
    onto = ShardDataset(tmp_path / "out")
    manifest = convert(make_plan(more, speakers, source, Layout(), onto), source, tmp_path / "out")
    assert kept_rule(manifest.source) is None  # two parts, two rules
    assert kept_table(manifest.source) == "several rules"
    assert kept_rule(manifest.jobs[0].source) == rule
    assert kept_rule(manifest.jobs[1].source) is None


@pytest.mark.parametrize("by", ["speaker_component", "speaker_regex", "speaker_tsv", "utt2spk", "feature files"])
def test_scoring_finds_the_true_speakers_by_the_rule_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)
    keys = [f"{name}/session{take}/u{take}" for name in ("ada", "bob") for take in range(3)]
    listed = small_corpus(tmp_path, keys)
    table = write(tmp_path / "table", "".join(f"{key}\t{key[:3]}\n" for key in keys))
    flag = {"speaker_component": 1, "speaker_regex": "^([a-z]+)/", "speaker_tsv": table, "utt2spk": table}
    flags = {by: flag[by]} if by in flag else {"speaker_component": 1}
    shared: dict[str, Any] = {"db_path": tmp_path / "mcp", "spk2idx": tmp_path / "map.json"}
    data: dict[str, Any]
    if by in flag:
        shard(ShardConfig(**shared, list_file=listed, out=str(tmp_path / "out"), **flags))
        data = {"tr_shards": str(tmp_path / "out"), "va_shards": str(tmp_path / "out")}
    else:
        data = shared | flags | {"tr_list_file": listed, "va_list_file": listed, "cache_dir": tmp_path / "cache"}
    train_model(TrainConfig(**data, in_frames=3, hsize=4, epoch=1, batch_size=8, save_path=tmp_path / "ckpt"))
    given: dict[str, Any] = {
        "db_path": tmp_path / "mcp",
        "te_list_file": listed,
        "weights_ckpt": tmp_path / "ckpt/bestval_e0_weights.ckpt",
        "pictures": False,
    }
    capsys.readouterr()
    result = score_utterances(ScoreConfig(**given))
    printed = capsys.readouterr().out
    if by in ("speaker_tsv", "utt2spk"):
        assert result.true.tolist() == [-1] * 6
        assert (
            f"nobody names the speakers of 6 of 6 utterances: in the training the table of --{by} named them. Error rates "
            "leave them out. To name them, give --speaker_component, --speaker_regex, --speaker_tsv or --utt2spk"
        ) in printed
        result = score_utterances(ScoreConfig(**given, **flags))
    assert result.true.tolist() == [0, 0, 0, 1, 1, 1]
    assert score_utterances(ScoreConfig(**given, speaker_component=2)).true.tolist() == [-1] * 6
    assert (
        "6 of 6 utterances are of speakers that the model does not know, such as 'session0' of utterance "
        "'ada/session0/u0'. Error rates leave them out. If that is no speaker, give --speaker_component, "
    ) in capsys.readouterr().out


def test_what_is_appended_has_its_speakers_named_as_the_dataset(tmp_path: Path) -> None:
    """Or the flag must be given, where a table named them."""
    shared: dict[str, Any] = {"db_path": tmp_path / "mcp", "spk2idx": tmp_path / "map.json"}
    first = small_corpus(tmp_path, ["ada/1/x", "bob/1/x"])
    table = write(tmp_path / "table", "ada/1/x\tada\nbob/1/x\tbob\neve/1/x\teve\n")
    shard(ShardConfig(**shared, list_file=first, out=str(tmp_path / "rule"), speaker_component=1))
    shard(ShardConfig(**shared, list_file=first, out=str(tmp_path / "table-out"), speaker_tsv=table))
    (tmp_path / "map.json").unlink()
    more = small_corpus(tmp_path, ["ada/2/x", "eve/1/x"])
    manifest = shard(ShardConfig(**shared, list_file=more, out=str(tmp_path / "rule"), append=True))
    assert manifest is not None
    assert manifest.speakers == ["ada", "bob", "eve"]
    assert kept_rule(manifest.source) == speaker_by_component(1)
    with pytest.raises(
        InputError, match=r"table-out: its speakers were named by the table of --speaker_tsv; say who speaks here: --sp"
    ):
        shard(ShardConfig(**shared, list_file=more, out=str(tmp_path / "table-out"), append=True))
