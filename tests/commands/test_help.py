"""The command line as a newcomer meets it: help, suggestions, completion, and JSON only where it is wanted."""

import dataclasses
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from conftest import make_corpus

from spkid_dist.commands.flags import CONFIG_COMMANDS, field_texts, flags_of
from spkid_dist.commands.help import example_of, flags_by_section
from spkid_dist.commands.registry import COMMANDS, SHELLS
from spkid_dist.commands.sections import COMMAND_GROUPS, SECTIONS

SPKID = [sys.executable, "-c", "from spkid_dist.commands.cli import main; main()"]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_the_overview_names_each_command_once_in_its_group_with_an_example(spkid):
    code, printed, _ = spkid("--help")
    assert code == 0
    blocks = dict(re.findall(r"^([A-Z][a-z ]+):\n((?:  .+\n)+)", printed, re.M))
    shown = {title: tuple(re.findall(r"^  ([a-z]+)  ", blocks[title], re.M)) for title in COMMAND_GROUPS}
    assert shown == {title: names for title, (names, _) in COMMAND_GROUPS.items()}
    assert sorted(name for names in shown.values() for name in names) == sorted(COMMANDS)
    assert all("Example: spkid " in blocks[title] for title in COMMAND_GROUPS)
    assert max(map(len, printed.splitlines())) <= 80


def test_no_command_at_all_prints_the_overview(spkid):
    assert spkid() == spkid("--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_each_flag_once_and_whole_at_80_columns(command, spkid):
    code, printed, _ = spkid(command, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    text = " ".join(printed.split())
    for flag in flags_of(COMMANDS[command][0]):
        assert len(re.findall(rf"^  {re.escape(flag.usage.split()[0])}\b", printed, re.M)) == 1
        assert flag.text.rstrip(".") in text
        assert flag.text, f"{flag.name} has no help"
    assert "None" not in printed
    assert "…" not in printed


@pytest.mark.parametrize("command", SECTIONS)
def test_each_flag_of_a_long_command_stands_in_a_section(command):
    named = [name for names in SECTIONS[command].values() for name in names]
    assert sorted(named) == sorted(flag.name for flag in flags_of(COMMANDS[command][0]))
    first = ["Configuration"] if command in CONFIG_COMMANDS else []
    assert list(flags_by_section(command, COMMANDS[command][0])) == [*first, *SECTIONS[command]]


def test_placeholders_and_defaults_read_plainly(spkid):
    text = " ".join(spkid("train", "--help")[1].split())
    for expected in (
        "--tr_shards PATH Train on",
        "--tr_speakers TEXT ... Train on these speakers",
        "--warmup NUMBER Share of all batches",
        "(default: 0, and 0.3 for one_cycle)",
        "--momentum NUMBER Momentum of SGD; the other optimisers ignore it. (default: 0.5)",
        "--seed N Random seed",
        "--batch_norm Normalise each hidden layer over the whole batch, before its activation. --dropout",
        "(default: 1_048_576)",
    ):
        assert expected in text
    assert "(default: one per CPU of this process)" in " ".join(spkid("verify", "--help")[1].split())
    assert "usage: spkid export --out PATH [FLAGS]" in spkid("export", "--help")[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_taken_by_its_parser(command, monkeypatch, tmp_path):
    import tyro

    monkeypatch.chdir(tmp_path)
    words = example_of(command).split()
    assert words[:2] == ["spkid", command]
    assert isinstance(tyro.cli(COMMANDS[command][0], args=words[2:], use_underscores=True), COMMANDS[command][0])


def test_the_help_is_the_same_by_each_way_to_ask(spkid):
    expected = spkid("verify", "--help")
    for words in (
        ("verify", "-h"),
        ("help", "verify"),
        ("verify", "some/folder", "--help"),
        ("help", "verify", "--help"),
    ):
        assert spkid(*words) == expected
    assert spkid("help") == spkid("-h") == spkid("--help")


def test_text_of_inherited_and_nested_fields_is_found():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(COMMANDS["shard"][0]):
        more: int = 0
        """More."""

    assert field_texts(Other)["more"] == "More."
    assert field_texts(Other)["utt2spk"].startswith("Table of speakers in Kaldi's format")
    assert {"features.kind", "slurm.partition", "list"} <= {flag.name for flag in flags_of(Other)}


UNKNOWN = {
    "trian": "trian: no such command; did you mean train?; see spkid --help",
    "nonsense": "nonsense: no such command; see spkid --help",
    "help nonsense": "nonsense: no such command; see spkid --help",
    "help exports": "exports: no such command; did you mean export?; see spkid --help",
    "vershun": "vershun: no such command; did you mean version?; see spkid --help",
    "train --batchsize 3": "--batchsize: no such flag of spkid train; did you mean --batch_size?; see spkid train --help",
    "train --learning_rate=3": "--learning_rate: no such flag of spkid train; did you mean --lr?; see spkid train --help",
    "verify x --hsize 3": "--hsize: no such flag of spkid verify; see spkid verify --help",
    "shard --slurm.log": "--slurm.log: no such flag of spkid shard; did you mean --slurm.log_dir?; see spkid shard --help",
    "completion": "completion: expected a shell, one of bash, zsh, fish: spkid completion bash",
    "completion csh": "csh: expected a shell, one of bash, zsh, fish: spkid completion bash",
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_an_unknown_word_is_one_line_with_the_nearest_of_the_command_in_use(spkid, words):
    assert spkid(*words.split()) == (2, "", f"spkid: error: {UNKNOWN[words]}\n")


@pytest.mark.parametrize("words", [["--batch-size", "7"], ["--batch_size=7"], ["--batch-size=7"]])
def test_flags_are_taken_as_before_with_dashes_and_equals_signs(spkid, words, tmp_path):
    code, _, error = spkid("train", *words, "--in_frames", "0", "--save_path", tmp_path)
    assert (code, "no such flag" in error) == (2, False)
    assert "--in_frames 0" in error


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_names_all_commands_and_flags(shell, spkid):
    code, script, _ = spkid("completion", shell)
    assert code == 0
    assert script.strip()
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", script)
    for flag in ("--tr_shards", "--features.num_bins", "--quick"):
        assert flag.lstrip("-") in script
    assert "{None}" not in script
    assert spkid("--tyro-print-completion", shell)[0] == 0


def test_bash_completes_commands_and_flags(spkid, tmp_path):
    (tmp_path / "spkid.bash").write_text(spkid("completion", "bash")[1])
    program = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
"$(complete -p spkid | sed 's/.*-F \\([^ ]*\\).*/\\1/')" spkid
printf '%s\\n' "${COMPREPLY[@]}"
"""

    def complete(*words):
        command = ["bash", "-c", program, "bash", tmp_path / "spkid.bash", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert complete("spkid", "tr") == ["train", "trials"]
    assert complete("spkid", "train", "--tr_sh") == ["--tr_shards"]
    assert complete("spkid", "verify", "--tr_sh") == []
    assert complete("spkid", "train", "--conf") == ["--config"]
    assert complete("spkid", "verify", "--conf") == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_completion_script(spkid, tmp_path):
    (tmp_path / "_spkid").write_text(spkid("completion", "zsh")[1])
    subprocess.run(["zsh", "-n", tmp_path / "_spkid"], check=True)


def on_terminal(*words):
    """What a command prints to a terminal of its own."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*SPKID, *map(str, words)], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                printed += (more := os.read(ours, 65536))
            except OSError:  # the other end is closed
                break
            if not more:
                break
    os.close(ours)
    assert process.returncode == 0, printed
    return printed.decode()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("json"), [9, 12, 7, 9]).dataset.folder


def test_json_is_printed_to_a_pipe_and_to_a_terminal_only_if_asked(dataset, spkid):
    piped = spkid("verify", dataset)[1]
    assert json.loads(piped.splitlines()[-1])["defects"] == 0
    seen = on_terminal("verify", dataset)
    assert "{" not in seen
    assert "no damage found; every byte of " in seen
    assert '{"defects": 0' in on_terminal("verify", dataset, "--json")


@pytest.mark.parametrize("command", ["shard", "verify", "index", "doctor", "bench", "simulate", "info"])
def test_every_command_with_a_json_summary_has_the_flag(command):
    assert "json" in {flag.name for flag in flags_of(COMMANDS[command][0])}


@pytest.mark.parametrize("command", ["embed", "export"])
def test_commands_of_one_model_do_not_advise_to_repeat_the_flag(command, spkid):
    printed = " ".join(spkid(command, "--help")[1].split())
    assert "Folder of a training, whose best weights are" in printed
    assert "Repeat it" not in printed


@pytest.mark.parametrize("command", CONFIG_COMMANDS)
def test_only_a_training_reads_flags_from_train_opts(command, spkid):
    printed = " ".join(spkid(command, "--help")[1].split())
    kinds = "YAML, or the train.opts of a former training" if command == "train" else "YAML"
    assert f"Read flags from this file: {kinds}. Flags on the command line win." in printed
