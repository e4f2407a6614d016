"""A row of the table: one case of a stage, and the limit that it runs against."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spkid_dist.bench.measure import ratio_by_rounds

# The stages, in the order in which the data goes through them; what is not a stage of that way comes first and last.
LIMITS, SHARD, POOLS, STACK, TRAIN, SCORE = (
    "machine",
    "files -> shards",
    "shards -> frames in pools",
    "pools -> stacked windows",
    "windows -> training step",
    "utterances -> scores",
)
RESUME, SCALING = "first batch", "processes"
STAGES = (LIMITS, SHARD, POOLS, STACK, TRAIN, SCORE, RESUME, SCALING)
CACHED, ALONE = "the step, one cached batch", "the step, one cached batch, 1 thread"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case's rate in `unit` (median, and least and most of its runs), and what it could be at most.

    `share` is the median of the rounds' ratios to the limit. `windows_rate` is the rate in windows/s, by which stages are
    compared, None where it has none; `on_path` where the data must go through here on its way from files to scores.
    """

    stage: str
    name: str
    rate: float
    unit: str
    low: float
    high: float
    limit: str | None = None
    limit_rate: float | None = None
    share: float | None = None
    windows_rate: float | None = None
    on_path: bool = False


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What measuring a stage came to: rows of the table, sentences below it, and further figures for the JSON."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def make_row(
    stage: str,
    name: str,
    unit: str,
    rates: Sequence[float],
    *,
    limit: tuple[str, Sequence[float]] | None = None,
    windows_per_unit: float | None = None,
    on_path: bool = False,
) -> Row:
    """The row of a case's rates, a round each.

    Args:
        stage: one of STAGES.
        name: the case.
        unit: of the rates; seconds ("s") are better the fewer they are, all others the more.
        rates: a round each, of all ranks together.
        limit: the limit's name and its rates in the same rounds.
        windows_per_unit: how many windows one unit of the rate is.
        on_path: whether the data must go through here.
    """
    ours = list(rates)
    row: dict[str, Any] = {}
    if limit is not None:
        theirs = list(limit[1])
        ratios = (theirs, ours) if unit == "s" else (ours, theirs)
        row = {"limit": limit[0], "limit_rate": middle(theirs), "share": ratio_by_rounds(*ratios)}
    if windows_per_unit is not None:
        row["windows_rate"] = middle(ours) * windows_per_unit
    return Row(
        stage=stage, name=name, rate=middle(ours), unit=unit, low=min(ours), high=max(ours), on_path=on_path, **row
    )


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def readable(value: float) -> str:
    """A figure with three digits and a prefix of thousands: 5.23 M."""
    for size, prefix in PREFIXES:
        if value >= size * 0.9995:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"
