"""Draw the picture of a report: each case's rate with its limit, and how trainings scale; PNG, without a display."""

import io
import math
from collections.abc import Sequence
from typing import Any

from spkid_dist.bench.rows import SCALING, Row, readable

PALE, BLUE, RED, GREY = "#8db8de", "#1f5a99", "#b3261e", "#777777"
ROOM_FOR_TEXT = 60.0  # on the logarithmic axis, right of the longest bar


def draw_report(rows: Sequence[Row]) -> bytes | None:
    """The stages' rates in windows/s, and trainings by several processes beside them; None where there is neither."""
    from matplotlib.figure import Figure  # a figure of its own: no backend and no global state

    staged = [row for row in rows if row.windows_rate is not None and row.stage != SCALING]
    scaled = [row for row in rows if row.stage == SCALING]
    panels = [(_draw_stages, staged, 10.0)] if staged else []
    panels += [(_draw_scaling, scaled, 4.5)] if scaled else []
    if not panels:
        return None
    height = 1.6 + 0.55 * max(4, len(staged))
    figure = Figure(figsize=(sum(width for *_, width in panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=[width for *_, width in panels], squeeze=False)[0]
    for axis, (draw, shown, _) in zip(axes, panels, strict=True):
        draw(axis, shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_stages(axis: Any, rows: Sequence[Row]) -> None:
    """A bar a case, with the least and the most of its runs, and its limit as a mark."""
    places = range(len(rows))
    scales = [(row.windows_rate or 0.0) / row.rate for row in rows]  # windows of a unit
    limits = [(row.limit_rate or 0.0) * scale for row, scale in zip(rows, scales, strict=True)]
    rates = [row.windows_rate or 0.0 for row in rows]
    smallest = 10 ** math.floor(math.log10(min(rates)) - 0.3)
    axis.barh(places, rates, height=0.6, color=[BLUE if row.on_path else PALE for row in rows])
    for place, row, scale, rate, limit in zip(places, rows, scales, rates, limits, strict=True):
        axis.plot((row.low * scale, row.high * scale), (place, place), color="black", linewidth=1.5)
        if limit:
            axis.plot(limit, place, "|", color=RED, markersize=20, markeredgewidth=2.5)
        share = "" if row.share is None else f", {row.share:.0%} of {row.limit}"
        axis.annotate(
            f"{readable(rate)}{share}",
            (max(rate, limit, row.high * scale), place),
            (9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: readable(value))
    axis.set_xlim(smallest, max(*rates, *limits) * ROOM_FOR_TEXT)
    axis.set_yticks(places, [f"{row.stage}\n{row.name}" for row in rows], fontsize=8.5)
    axis.invert_yaxis()
    axis.set_title("each stage, its limit (red), least to most (black); dark: compared for the bottleneck", loc="left")
    axis.set_xlabel("windows/s")
    axis.grid(axis="x", alpha=0.3)


def _draw_scaling(axis: Any, rows: Sequence[Row]) -> None:
    """Windows/s by the number of processes, and as many times what one does."""
    numbers = [1 if row.limit_rate is None else round(row.limit_rate / rows[0].rate) for row in rows]
    axis.plot(numbers, [number * rows[0].rate for number in numbers], "--", color=RED, label="times one process")
    axis.vlines(numbers, [row.low for row in rows], [row.high for row in rows], color=GREY, linewidth=2)
    axis.plot(numbers, [row.rate for row in rows], "o-", color=BLUE, label="trainings")
    axis.set_xticks(numbers)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: readable(value))
    axis.set_title("processes", loc="left")
    axis.set(xlabel="processes", ylabel="windows/s")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
