"""The command `spkid results`: make one table of the trainings below a folder, such as those of a sweep."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shards.errors import InputError
from shards.files import read_text, write_atomic
from spkid_dist.config import ResultsConfig
from spkid_dist.trained import OPTIONS_NAME, read_options
from spkid_dist.training.report import STATISTICS_NAME

TABLE_NAME = "results.tsv"
COLUMNS = ("training", "hsize", "in_frames", "epochs", "best_epoch", "va_loss", "va_acc")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training came to; losses and accuracies are those of `best_epoch`, None where none was validated."""

    training: str
    hsize: int
    in_frames: int
    epochs: int
    best_epoch: int | None
    va_loss: float | None
    va_acc: float | None


def results(config: ResultsConfig) -> list[Result]:
    """Print the table and write it to `results.tsv` in the folder; a line a training, from the best on.

    Raises:
        InputError: there is no training below the folder, or one's files are damaged.
    """
    found = [_read(path.parent) for path in sorted(config.folder.glob(f"*/{OPTIONS_NAME}"))]
    if not found:
        raise InputError(f"{config.folder}: no training below it; expected FOLDER/{OPTIONS_NAME}")
    found.sort(key=lambda result: (result.va_loss is None, result.va_loss or 0.0))
    rows = [[_text(getattr(result, column)) for column in COLUMNS] for result in found]
    lines = ["\t".join(row) for row in ([*COLUMNS], *rows)]
    write_atomic(config.folder / TABLE_NAME, ("\n".join(lines) + "\n").encode())
    table = Table(*COLUMNS, box=None, title=str(config.folder), title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True, markup=False).print(table)
    return found


def _read(folder: Path) -> Result:
    options = read_options(folder / OPTIONS_NAME)
    losses, accuracies = _validations(folder / STATISTICS_NAME)
    known = [epoch for epoch, loss in enumerate(losses) if loss is not None]
    best = min(known, key=lambda epoch: losses[epoch] or 0.0, default=None)
    return Result(
        training=folder.name,
        hsize=options["hsize"],
        in_frames=options["in_frames"],
        epochs=len(losses),
        best_epoch=best,
        va_loss=None if best is None else losses[best],
        va_acc=None if best is None else accuracies[best],
    )


def _validations(path: Path) -> tuple[list[float | None], list[float | None]]:
    """Losses and accuracies, one value per epoch; None where it is unknown. No values where no epoch has ended."""
    if not path.exists():
        return [], []
    try:
        statistics: dict[str, Any] = json.loads(read_text(path, "the statistics of a training", "train again"))
        losses, accuracies = ([_known(value) for value in statistics[name]] for name in ("va_loss", "va_acc"))
        if len(losses) != len(accuracies):
            raise ValueError(f"{len(losses)} losses, {len(accuracies)} accuracies")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the statistics of a training: {error}; train again") from None
    return losses, accuracies


def _known(value: Any) -> float | None:
    """A number of the statistics; None where it is null, or not finite. Raises ValueError and TypeError where it is neither."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
