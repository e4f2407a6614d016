"""Draw the pictures of decisions: reliability before and after calibration, and open-set errors by threshold; PNG."""

from typing import Any

import numpy as np

from spkid_dist.scoring.decisions import Decisions
from spkid_dist.scoring.openset import OpenSetCurve, OpenSetFigures
from spkid_dist.scoring.pictures import BLUE, GREY, PALE, RED, png_of
from spkid_dist.scoring.reliability import BINS, Reliability

OPEN_SET = "open_set"
FEW = 10  # utterances of a bin whose share of right ones says little
MOST_POINTS = 2000  # of a curve that is drawn
GREEN = "#2e7d4f"


def draw_reliability(before: Reliability, after: Reliability) -> bytes:
    """The share of right utterances by confidence, before and after, with the number of utterances in each bin."""
    return png_of((11, 6.2), lambda figure: _draw_reliability(figure, before, after))


def draw_decisions(decisions: Decisions) -> dict[str, bytes]:
    """The picture of open-set errors by its name, ``open_set``, where there is something to draw."""
    if decisions.curve is None or decisions.open_set is None:
        return {}
    return {OPEN_SET: draw_open_set(decisions.curve, decisions.open_set)}


def draw_open_set(curve: OpenSetCurve, used: OpenSetFigures) -> bytes:
    """False rejections, and the identification rate, against false acceptances, with the threshold that is `used`."""
    return png_of((8, 6), lambda figure: _draw_open_set(figure, curve, used))


def _draw_reliability(figure: Any, before: Reliability, after: Reliability) -> None:
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(4, 1.4))
    edges = np.arange(BINS + 1) / BINS
    for title, found, (upper, lower) in zip(
        ("before: summed log-probabilities", "after calibration"), (before, after), axes.T, strict=True
    ):
        held = found.counts > 0
        counts = np.maximum(found.counts, 1)
        shares, confidences = found.right / counts, found.confidences / counts
        few = held & (found.counts < FEW)
        for shown, colours, size in (
            (held & ~few, {"color": PALE, "edgecolor": "white"}, 5),
            (few, {"color": "none", "edgecolor": GREY, "linestyle": ":"}, 3),
        ):
            upper.bar(edges[:-1][shown], shares[shown], 1 / BINS, align="edge", **colours)
            upper.plot(confidences[shown], shares[shown], "o", color=BLUE, markersize=size)
        upper.plot((0, 1), (0, 1), color=GREY, linewidth=0.8)
        upper.set_title(
            f"{title}\nexpected calibration error {found.expected_error:.3f}, NLL {found.nll:.3f}",
            loc="left",
            fontsize=11,
        )
        bars = lower.bar(edges[:-1], found.counts, 1 / BINS, align="edge", color=GREY, edgecolor="white")
        lower.bar_label(bars, [f"{count:,}" if count else "" for count in found.counts], fontsize=7)
        # Logarithmic, so that a bin of one utterance is seen beside one of thousands; room above for the numbers.
        lower.set(yscale="log", ylim=(0.5, 5 * max(before.counts.max(), after.counts.max())))
        lower.set(xlim=(0, 1), xlabel="confidence: posterior of the found speaker")
        for axis in (upper, lower):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set(ylim=(0, 1.02), ylabel="share of right utterances")
    axes[1, 0].set(ylabel="utterances")
    figure.suptitle(
        f"Reliability of confidences, {after.utterances:,} utterances, {BINS} bins (dotted: fewer than {FEW} utterances)"
    )


def _draw_open_set(figure: Any, curve: OpenSetCurve, used: OpenSetFigures) -> None:
    axis = figure.subplots()
    kept = np.unique(np.linspace(0, len(curve.thresholds) - 1, MOST_POINTS).round().astype(int))
    x = 100 * curve.false_acceptances[kept]
    for label, rates, colour in (
        ("identification rate: right name, of the model's speakers", curve.identified, GREEN),
        ("false rejections: called unknown, of the model's speakers", curve.false_rejections, BLUE),
    ):
        axis.plot(x, 100 * rates[kept], color=colour, linewidth=1.8, label=label)
    assert used.false_acceptances is not None
    assert used.false_rejections is not None
    assert used.identified is not None
    place = 100 * used.false_acceptances.rate
    axis.axvline(place, color=RED, linewidth=0.8)
    values = [100 * used.identified.rate, 100 * used.false_rejections.rate]
    axis.plot([place, place], values, "o", color=RED, label=f"threshold {used.threshold:.3f}")
    near_right = place > 80
    for value, rise in zip(values, (-12, 12), strict=True):  # where the curve is not
        axis.annotate(
            f"{value:.1f} %",
            (place, value),
            (-8 if near_right else 8, rise),
            textcoords="offset points",
            ha="right" if near_right else "left",
            va="center",
        )
    axis.set(
        xlim=(-2, 102),
        ylim=(-2, 102),
        xlabel="false acceptances: given a name, of unknown speakers, %",
        ylabel="utterances of the model's speakers, %",
    )
    counts = f"{used.false_rejections.total:,} utterances of the model's speakers, {used.false_acceptances.total:,} of others"
    axis.set_title(f"Open-set identification: {counts}", loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
