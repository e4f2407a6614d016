"""Print plain lines to standard output and a log file, and a live bar where there is a terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from shards.conversion.job import Progress as ShardProgress
from shards.errors import InputError
from shards.files import plain_json
from shards.plaintext import masked, printable


class LogFile:
    """A log that grows by lines. A full disk costs lines, and the log says where and how many, but not the work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)  # what waits in a buffer would fail once more when the file is closed
        self._missing = 0

    def append(self, text: str) -> str | None:
        """Write a line, whole or not at all; returns what there is to say of it, where it is the first that fails."""
        gap = f"({self._missing} lines are missing here: this file could not grow)\n" if self._missing else ""
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._write(f"{gap}{text}\n".encode(errors="backslashreplace"))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._file.fileno(), size)
            self._missing += 1
            first = self._missing == 1
            return (
                f"{self._path}: can't grow: {error.strerror}; its lines are missing until there is room"
                if first
                else None
            )
        self._missing = 0
        return None

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def _print_whole(text: str) -> None:
    """Print a line; what the terminal's encoding does not have is escaped."""
    try:
        print(text, flush=True)  # a live bar redirects it; the console's own print would turn tabs into spaces
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _number(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item()


class RunLog:
    """Prints lines and bars of the process that is to be seen; the others' calls do nothing."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.console = Console(quiet=not shown, markup=False, highlight=False, soft_wrap=True)
        self._file: LogFile | None = None

    def open_file(self, path: Path) -> None:
        """Append all further lines to `path` too. Raises InputError where that can't be."""
        if self.shown:
            try:
                self._file = LogFile(path)
            except OSError as error:
                raise InputError(f"{path}: can't write the log: {error.strerror}; choose another --save_path") from None

    def close(self) -> None:
        """Close the log file."""
        if self._file is not None:
            self._file.close()

    def line(self, text: str) -> None:
        """Say one line, with URLs masked and without characters that a terminal acts on, but for tabs.

        Where one of the two can't be written, the other has it, and says so once.

        Raises:
            InputError: there is no log file, and standard output can't be written.
        """
        text = "\t".join(map(printable, masked(text).split("\t")))
        trouble = None if self._file is None else self._file.append(text)
        for said in (text, trouble) if trouble else (text,):
            self._print(said)

    def _print(self, text: str) -> None:
        if not self.shown:
            return
        try:
            _print_whole(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._file is None:
                raise InputError(f"standard output can't be written: {error.strerror}; free room") from None

    def summary(self, facts: Mapping[str, Any], asked: bool) -> None:
        """Say `facts` as a line of JSON, for scripts: where `asked`, and wherever standard output is no terminal."""
        if asked or not sys.stdout.isatty():
            self.line(json.dumps(plain_json(facts), default=_number))

    @contextmanager
    def bar(self, total: int, unit: str) -> Iterator["Bar"]:
        """A live bar over `total` units, shown on a terminal only."""
        columns = (
            SpinnerColumn(),
            DescriptionColumn(),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn(unit),
            RateColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        hidden = not (self.shown and self.console.is_terminal)
        with Progress(*columns, console=self.console, disable=hidden, transient=True) as progress:
            yield Bar(progress, total)


class DescriptionColumn(ProgressColumn):
    """What the bar is at. On a narrow terminal this text and the bar give way, counts and rate stay whole."""

    def render(self, task: Task) -> Text:
        """The description in one line, cut where there is no room."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class RateColumn(ProgressColumn):
    """Units a second, of late."""

    def render(self, task: Task) -> Text:
        """The rate; nothing before it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


class Bar:
    """A live bar: `advance` it, and `describe` what it is at."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def advance(self, amount: int) -> None:
        """Count `amount` more units as done."""
        self._progress.advance(self._task, amount)

    def describe(self, text: str) -> None:
        """Show `text` before the bar."""
        self._progress.update(self._task, description=text)


def shard_progress(bar: Bar) -> ShardProgress:
    """A conversion job's progress, in utterances, on `bar`."""
    return lambda utterances, _frames: bar.advance(utterances)
