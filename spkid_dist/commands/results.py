"""The command `spkid results`: make one table of the trainings below a folder, such as those of a sweep."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shards.errors import InputError
from shards.files import write_atomic
from shards.plaintext import printable
from spkid_dist.config import ResultsConfig
from spkid_dist.trained import OPTIONS_NAME, read_options
from spkid_dist.trainedfolder import read_statistics
from spkid_dist.training.report import SUMMARY_NAME

TABLE_NAME = "results.tsv"
FIRST, LAST = (
    ("training", "hsize", "in_frames"),
    ("epochs", "best_epoch", "va_loss", "va_acc", "va_wrong", "avg_wrong", "data", "ended"),
)
# What differs between any two trainings, or says where things lie and not what was trained.
NOT_COMPARED = {
    "save_path",
    "input_dim",
    "num_spks",
    "speakers",
    "source",
    "tr_fingerprint",
    "fingerprint",
    "tr_keys",
    "training_id",
    *FIRST,
}
WIDEST = 10_000  # columns of the terminal: what does not fit is wrapped by the terminal, and never cut
FINGERPRINT_DIGITS = 8  # enough to tell datasets apart


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training came to; what begins with `va_` is of `best_epoch`, None where none was validated.

    `va_wrong` counts the utterances of the validation set that get a wrong speaker, `avg_wrong` those by the averaged weights.

    `options` are those of train.opts. `data` is the first digits of the training set's fingerprint, None where train.opts has
    none. `ended` is when the training wrote its summary (UTC), None where it has not ended.
    """

    training: str
    hsize: int
    in_frames: int
    epochs: int
    best_epoch: int | None
    va_loss: float | None
    va_acc: float | None
    va_wrong: int | None
    avg_wrong: int | None
    data: str | None
    ended: str | None
    options: dict[str, Any]


def results(config: ResultsConfig) -> list[Result]:
    """Print the table and write it to `results.tsv` in the folder; a line per training, from the best on.

    Of a training's own folder the table has one line, and is not written.

    Raises:
        InputError: there is no training in the folder or below it, or one's files are damaged.
    """
    is_one = (config.folder / OPTIONS_NAME).exists()
    folders = [config.folder] if is_one else [path.parent for path in sorted(config.folder.glob(f"*/{OPTIONS_NAME}"))]
    found = [_read(folder) for folder in folders]
    if not found:
        raise InputError(f"{config.folder}: no training below it; expected FOLDER/{OPTIONS_NAME}")
    found.sort(key=lambda result: (result.va_loss is None, result.va_loss or 0.0))
    columns = [*FIRST, *_differing(found), *LAST]
    rows = [{name: getattr(result, name, result.options.get(name)) for name in columns} for result in found]
    if not is_one:
        lines = ["\t".join(columns), *("\t".join(map(_text, row.values())) for row in rows)]
        write_atomic(config.folder / TABLE_NAME, ("\n".join(lines) + "\n").encode())
    if config.json:
        print(json.dumps(rows))
    else:
        _print_table(str(config.folder), columns, rows)
    return found


def _differing(found: list[Result]) -> list[str]:
    """The options that are not the same in all trainings."""
    names = {name: None for result in found for name in result.options if name not in NOT_COMPARED}
    first = found[0].options
    return [name for name in names if any(result.options.get(name) != first.get(name) for result in found)]


def _print_table(title: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table(*columns, box=None, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    Console(highlight=False, soft_wrap=True, markup=False, width=WIDEST).print(table)


def _read(folder: Path) -> Result:
    options = read_options(folder / OPTIONS_NAME)
    statistics = read_statistics(folder, options)
    best = statistics.best_epoch
    found = statistics.figures(best) if best >= 0 else None
    averaged = statistics.average_figures(statistics.epochs - 1)
    fingerprint = options.get("tr_fingerprint")
    return Result(
        training=folder.absolute().name,
        hsize=options["hsize"],
        in_frames=options["in_frames"],
        epochs=statistics.epochs,
        best_epoch=None if found is None else best,
        va_loss=None if found is None else found.loss,
        va_acc=None if found is None else found.accuracy,
        va_wrong=None if found is None else found.wrong,
        avg_wrong=None if averaged is None else averaged.wrong,
        data=fingerprint[:FINGERPRINT_DIGITS] if isinstance(fingerprint, str) else None,
        ended=_time_of(folder / SUMMARY_NAME),
        options=options,
    )


def _time_of(path: Path) -> str | None:
    if not path.exists():
        return None
    return f"{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%dT%H:%M}"


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else printable(str(value))
