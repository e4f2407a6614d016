"""What a run says: plain lines, to standard output and to a log file, and a live bar where there is a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
from rich.text import Text

from shards.conversion.job import Progress as ShardProgress
from shards.errors import InputError


class RunLog:
    """Prints lines and bars of the process that is to be seen; the others' calls do nothing."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.console = Console(quiet=not shown, markup=False, highlight=False, soft_wrap=True)
        self._file: IO[str] | None = None

    def open_file(self, path: Path) -> None:
        """Append all further lines to `path` too. Raises InputError where that can't be."""
        if self.shown:
            try:
                self._file = path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise InputError(f"{path}: can't write the log: {error.strerror}; choose another --save_path") from None

    def close(self) -> None:
        """Close the log file."""
        if self._file is not None:
            self._file.close()

    def line(self, text: str) -> None:
        """Say one line. Raises InputError where the log can't be written."""
        if self.shown:
            print(text, flush=True)  # a live bar redirects it; the console's own print would turn tabs into spaces
        if self._file is not None:
            try:
                self._file.write(text + "\n")
            except OSError as error:
                raise InputError(f"{self._file.name}: can't write the log: {error.strerror}; free room") from None

    @contextmanager
    def bar(self, total: int, unit: str) -> Iterator["Bar"]:
        """A live bar over `total` units, shown on a terminal only."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            RateColumn(),
            TimeRemainingColumn(),
        )
        hidden = not (self.shown and self.console.is_terminal)
        with Progress(*columns, console=self.console, disable=hidden, transient=True) as progress:
            yield Bar(progress, total)


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
