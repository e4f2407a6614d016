"""What a run shows while it works."""

import contextlib
import io
import resource
import sys

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from shards import InputError
from spkid_dist.ranks.console import RateColumn, RunLog

pytestmark = pytest.mark.fast


def test_the_bar_shows_units_a_second():
    clock = iter(range(100))
    progress = Progress(RateColumn(), get_time=lambda: float(next(clock)), auto_refresh=False)
    task = progress.add_task("", total=10_000)
    column = RateColumn()
    assert column.render(progress.tasks[0]).plain == ""
    for _ in range(3):
        progress.advance(task, 2500)
    assert column.render(progress.tasks[0]).plain == "2,500/s"


@contextlib.contextmanager
def files_up_to(num_bytes):
    """Files of this process can't grow beyond that: the system fails the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_can_not_grow_says_so_once_and_goes_on_when_there_is_room(tmp_path, capsys):
    log = RunLog(shown=True)
    log.open_file(tmp_path / "train.log")
    log.line("one")
    with files_up_to(10):
        log.line("two does not fit")
        log.line("three")  # would, but for the gap's line
        assert (tmp_path / "train.log").read_text() == "one\n"
    log.line("four")
    log.line("five")
    log.close()
    assert (tmp_path / "train.log").read_text().splitlines() == [
        "one", "(2 lines are missing here: this file could not grow)", "four", "five",
    ]  # fmt: skip
    trouble = f"{tmp_path}/train.log: can't grow: File too large; its lines are missing until there is room"
    assert capsys.readouterr().out.splitlines() == ["one", "two does not fit", trouble, "three", "four", "five"]


def test_closing_a_log_that_could_not_grow_raises_nothing(tmp_path, capsys):
    log = RunLog(shown=True)
    log.open_file(tmp_path / "train.log")
    with files_up_to(0):
        log.line("does not fit")
        log.close()
    assert "can't grow" in capsys.readouterr().out


@pytest.mark.parametrize("with_file", [True, False])
def test_where_standard_output_can_not_be_written_the_log_file_is_enough(with_file, tmp_path, monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        log = RunLog(shown=True)
        if with_file:
            log.open_file(tmp_path / "train.log")
            log.line("one")
            assert (tmp_path / "train.log").read_text() == "one\n"
        else:
            with pytest.raises(InputError, match="standard output can't be written: No space left on device"):
                log.line("one")
        log.close()
        with contextlib.suppress(OSError):
            full.close()


def test_a_narrow_terminal_cuts_the_description_and_not_the_counts_and_the_rate(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen = io.StringIO()
    log = RunLog(shown=True)
    log.console = Console(file=screen, force_terminal=True, width=80)
    with log.bar(12_345_678, "utterances") as bar:
        bar.describe("TRAINING: 20/1234 epoch 0 loss: 1.2345 acc: 0.5678 lr: 0.001 left: at most 0:12:34")
        bar.advance(1_234_567)
    last = Text.from_ansi(screen.getvalue()).plain.split("\r")
    assert any("TRAINING" in line and "… " in line and " 1234567/12345678 utterances" in line for line in last)
