"""The command `spkid report`: write one self-contained HTML page about a training, and about a scoring with its weights.

The page loads nothing: pictures are in it, and it follows the reader's choice of light or dark. What a folder lacks is said in
its place. Texts are escaped: names of speakers and folders are data.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from shards.errors import InputError
from shards.files import write_atomic
from shards.jsontext import read_json
from spkid_dist.config import ReportConfig, TrainConfig
from spkid_dist.process.versions import installed_version
from spkid_dist.ranks.console import RunLog
from spkid_dist.trained import OPTIONS_NAME, read_options
from spkid_dist.trainedfolder import TrainStatistics, check_training, read_statistics
from spkid_dist.training.curves import draw_curves
from spkid_dist.training.report import SUMMARY_NAME
from spkid_dist.training.stopwatch import clock

REPORT_NAME = "report.html"
SCORE_PICTURES = {
    "confusion": "confusions",
    "lengths": "errors by length",
    "det": "detection error trade-off",
    "open_set": "errors with unknown speakers, by threshold",
}
OPEN_SET_RATES = ("false_acceptances", "false_rejections", "misidentifications", "identification_rate")
SHOWN_SPEAKERS = 20
RATE = ("errors", "total", "rate", "low", "high")  # of an error rate
UNKNOWN = "not known"
MOST_NUMBER = 1e15  # of a count, or of seconds; a damaged file may have any
BEST_WEIGHTS = re.compile(r"(?:bestval|averaged)_e(\d+)_weights\.ckpt")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: rows of a table, pictures as (description, data URI), or a line on what is not there."""

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    gap: str = ""


def report(config: ReportConfig) -> Path:
    """Write the page on the training in `config.save_path`; returns its path.

    Raises:
        InputError: there is no training, its files are damaged, the scoring can't be read, or the page can't be written.
    """
    folder = config.save_path
    check_training(folder)
    options = read_options(folder / OPTIONS_NAME)
    statistics = read_statistics(folder, options)
    summary = _read(folder / SUMMARY_NAME) if (folder / SUMMARY_NAME).exists() else None
    score = config.score or _scoring_in(folder)
    page = _render(folder, options, statistics, summary, (score, None if score is None else _read(score)))
    out = config.out or folder / REPORT_NAME
    write_atomic(out, page.encode(errors="backslashreplace"))
    RunLog(shown=True).line(f"{out}: open it in a browser")
    return out


def _scoring_in(folder: Path) -> Path | None:
    """The figures of a scoring whose results lie in the training's folder; the newest of several, None where there is none."""
    figures = [path for path in folder.glob("*.json") if path.with_suffix(".log").is_file() and path.is_file()]
    return max(figures, key=lambda path: path.stat().st_mtime, default=None)


def _render(
    folder: Path,
    options: dict[str, Any],
    statistics: TrainStatistics,
    summary: dict[str, Any] | None,
    score: tuple[Path | None, dict[str, Any] | None],
) -> str:
    import jinja2  # comes with torch

    best = statistics.best_epoch
    tiles = [("epochs trained", str(statistics.epochs))]
    if best >= 0:
        found, averaged = statistics.figures(best), statistics.average_figures(statistics.epochs - 1)
        tiles += [("best epoch", str(best)), ("validation loss", f"{found.loss:.4f}")]
        tiles += [("frame accuracy", f"{found.accuracy:.2%}")]
        if found.wrong is not None:
            tiles.append((f"wrong of {found.utterances:,} utterances", str(found.wrong)))
        if averaged is not None and averaged.wrong is not None:
            tiles.append(("the same, averaged weights", str(averaged.wrong)))
    if summary is not None:
        tiles.append(("windows per second", _text(summary.get("run_windows_per_second"), "{:,.0f}")))
    sections = [
        _curves(statistics),
        *_scoring(folder, *score),
        _given_options(options),
        _data(options),
        _speed(summary),
        _environment(summary),
        _weights(folder),
        Section(title="Options that are the defaults", rows=_rows(options, set(_option_names()) - _differing(options))),
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("spkid_dist.commands") / "report.html").read_text(encoding="utf-8"))
    return template.render(
        title=f"Training {folder.absolute().name}",
        subtitle=f"Made by spkid report, spkid-dist {installed_version('spkid-dist')}. Epochs count from 0.",
        tiles=tiles,
        sections=sections,
    )


def _curves(statistics: TrainStatistics) -> Section:
    if not statistics.epochs:
        return Section(title="Curves", gap="No epoch has ended yet.")
    picture = draw_curves(statistics)
    return Section(title="Curves", pictures=[("loss, accuracy and wrong utterances over the epochs", _uri(picture))])


def _scoring(folder: Path, path: Path | None, scoring: dict[str, Any] | None) -> list[Section]:
    if path is None or scoring is None:
        gap = "No scoring was given: run spkid score, and give its JSON file by --score."
        return [Section(title="Scoring", gap=gap)]
    given = scoring.get("weights_ckpt")
    weights = [Path(str(one)) for one in (given if isinstance(given, list) else [given])]  # of several models a list
    rows = [("weights", ", ".join(map(str, weights))), ("utterances", _text(scoring.get("utterances"), "{:,}"))]
    for name, title in (("utterance_errors", "wrong utterances"), ("frame_errors", "wrong frames")):
        found = scoring.get(name)
        if isinstance(found, dict) and all(_is_number(found.get(key)) for key in RATE):
            interval = f"95 % interval {found['low']:.2%} to {found['high']:.2%}"
            rows.append((title, f"{found['errors']:,} of {found['total']:,} = {found['rate']:.2%} ({interval})"))
    rows += _decisions(scoring)
    claimed = scoring.get("claimed_speakers")
    if isinstance(claimed, dict):
        rows.append(("equal error rate of claimed speakers", _text(claimed.get("equal_error_rate"), "{:.2%}")))
    beside = {name: path.with_suffix(f".{name}.png") for name in SCORE_PICTURES}
    there = [(SCORE_PICTURES[name], _uri(place.read_bytes())) for name, place in beside.items() if place.is_file()]
    gap = "" if there else f"There are no pictures beside {path}. "
    elsewhere = [path.parent for path in weights if path.absolute().parent != folder.absolute()]
    if elsewhere:
        places = ", ".join(map(str, dict.fromkeys(elsewhere)))
        gap += f"The weights that were scored lie in {places}, and not in the folder of this training."
    return [Section(title="Scoring", rows=rows, pictures=there, gap=gap)]


def _decisions(scoring: dict[str, Any]) -> list[tuple[str, str]]:
    """What a calibration made of the utterances, where the scoring had one."""
    rows = list[tuple[str, str]]()
    confidence, open_set = scoring.get("confidence"), scoring.get("open_set")
    if isinstance(confidence, dict):
        rows += [("utterance NLL, calibrated", _text(confidence.get("nll"), "{:.4f}"))]
        rows += [("expected calibration error", _text(confidence.get("expected_calibration_error"), "{:.4f}"))]
    rates = open_set if isinstance(open_set, dict) else {}
    for name in OPEN_SET_RATES:
        rate = rates.get(name)
        if isinstance(rate, dict):
            rows.append((f"{name.replace('_', ' ')}, with the threshold", _text(rate.get("rate"), "{:.2%}")))
    return rows


def _given_options(options: dict[str, Any]) -> Section:
    rows = _rows(options, _differing(options))
    gap = "" if rows else "All options are the defaults."
    return Section(title="Options that differ from the defaults", rows=rows, gap=gap)


def _differing(options: dict[str, Any]) -> set[str]:
    """The names of the options of a training that differ from the defaults."""
    defaults = {one.name: one.default for one in fields(TrainConfig) if one.default is not MISSING}
    return {name for name, value in options.items() if name in defaults and _plain(defaults[name]) != value}


def _data(options: dict[str, Any]) -> Section:
    kept = options.get("speakers")
    speakers = [str(name) for name in kept] if isinstance(kept, list) else []
    shown = ", ".join(speakers[:SHOWN_SPEAKERS]) + (", ..." if len(speakers) > SHOWN_SPEAKERS else "")
    rows = [
        ("fingerprint of the training set", str(options.get("tr_fingerprint", "not kept"))),
        ("source", json.dumps(options.get("source"), ensure_ascii=False)),
        ("features per frame", str(options["input_dim"])),
        (f"{options['num_spks']} speakers", shown),
    ]
    return Section(title="Data", rows=rows)


def _speed(summary: dict[str, Any] | None) -> Section:
    if summary is None:
        return Section(title="Speed", gap="The training has not ended, so there is no summary yet.")
    rows = [("windows trained", _text(summary.get("windows"), "{:,}"))]
    rows += [("time waiting for data", _text(summary.get("run_waiting_share"), "{:.1%} of the training steps"))]
    for name in ("training", "validation", "checkpoint"):
        seconds = summary.get(f"run_{name}_seconds")
        rows.append((f"{name} time of the last run", clock(seconds) if _is_number(seconds) else UNKNOWN))
    return Section(title="Speed, and where the time went", rows=rows)


def _environment(summary: dict[str, Any] | None) -> Section:
    found = None if summary is None else summary.get("environment")
    if not isinstance(found, dict):
        return Section(title="Environment", gap="This training did not keep it.")
    return Section(title="Environment", rows=[(name, str(value)) for name, value in found.items()])


def _weights(folder: Path) -> Section:
    found = [(match, path) for path in folder.iterdir() if (match := BEST_WEIGHTS.fullmatch(path.name))]
    paths = [path for _, path in sorted(found, key=lambda one: int(one[0][1]))]
    rows = [(path.name, f"{path.stat().st_size:,} bytes") for path in paths]
    return Section(title="Weights, the best so far last", rows=rows, gap="" if rows else "There are no weights yet.")


def _rows(options: dict[str, Any], names: set[str]) -> list[tuple[str, str]]:
    return [(f"--{name}", _shown(value)) for name, value in options.items() if name in names]


def _shown(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _option_names() -> Sequence[str]:
    return [one.name for one in fields(TrainConfig)]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_NUMBER


def _text(value: Any, form: str) -> str:
    """A number as `form` has it, or that it is not known: a file may be damaged, or of another version."""
    return form.format(value) if _is_number(value) else UNKNOWN


def _uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path, "this file", "the file is damaged", undecodable=True)
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, expected an object; the file is damaged")
    return found
