"""Draw the pictures of a scoring: confusions, error rate by length, DET curve; PNG, without a display."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spkid_dist.scoring.confusion import ErrorRates, LengthGroup, worst_pairs
from spkid_dist.scoring.detection import DetectionCost
from spkid_dist.scoring.trials import DetCurve

PICTURES = ("confusion", "lengths", "det")
MATRIX_SPEAKERS = 20  # more can't be read in a matrix
COUNTED_SPEAKERS = 15  # more numbers can't be read in one
LISTED = 20  # speakers, and pairs of them
NAMED = 2  # of those that a speaker is taken for
NAME_LENGTH = 14
PALE, BLUE, RED, GREY = "#8db8de", "#1f5a99", "#b3261e", "#777777"
# fmt: off
DET_RATES = (
    0.00001, 0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99,
)
# fmt: on
DET_POINTS = 2000
COST_SHAPES, COST_COLOURS = (
    ("D", "s", "^", "v"),
    ("#2e7d4f", "#b36a00", "#6a3d9a", "#444444"),
)  # more operating points are not drawn


def draw_pictures(
    true: NDArray[np.int64],
    found: NDArray[np.int64],
    speakers: Sequence[str],
    rates: ErrorRates | None,
    det: DetCurve | None,
) -> dict[str, bytes]:
    """The pictures that there is something for, by name: ``confusion``, ``lengths`` and ``det``, PNG each."""
    pictures = {}
    if rates is not None:
        known = true >= 0
        pictures["confusion"] = draw_confusions(true[known], found[known], speakers)
        pictures["lengths"] = draw_lengths(rates.lengths)
    if det is not None:
        pictures["det"] = draw_det(det)
    return pictures


def draw_confusions(true: NDArray[np.int64], found: NDArray[np.int64], speakers: Sequence[str]) -> bytes:
    """Who is taken for whom: true and found classes (U,). A matrix for few speakers, the worst ones for many."""
    wrong = int((true != found).sum())
    title = f"{wrong:,} of {len(true):,} utterances taken for another of {len(speakers):,} speakers"
    if len(speakers) <= MATRIX_SPEAKERS:
        side = 3.2 + 0.25 * max(len(speakers), 10)
        return png_of((side + 1, side), lambda figure: _draw_matrix(figure, true, found, speakers, title))
    return png_of((13, 7.5), lambda figure: _draw_worst(figure, true, found, speakers, title))


def draw_lengths(groups: Sequence[LengthGroup]) -> bytes:
    """The error rate of each group of lengths, with its 95 % interval."""
    return png_of((8, 5), lambda figure: _draw_lengths(figure, groups))


def draw_det(curve: DetCurve, costs: Sequence[DetectionCost] = ()) -> bytes:
    """The DET curve on normal deviate axes, with the equal error rate, and the points of the lowest costs."""
    return png_of((7, 7), lambda figure: _draw_det(figure, curve, costs))


def png_of(size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    """What `draw` puts on a figure of so many inches, as PNG."""
    from matplotlib.figure import Figure  # a figure of its own: no backend and no global state

    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_matrix(
    figure: Any, true: NDArray[np.int64], found: NDArray[np.int64], speakers: Sequence[str], title: str
) -> None:
    size = len(speakers)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (true, found), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(name) for name in speakers]
    font = 9
    axis.set_xticks(range(size), names, rotation=90, fontsize=font)
    axis.set_yticks(range(size), names, fontsize=font)
    axis.set(title=title, xlabel="found speaker", ylabel="true speaker")
    for a, b in np.argwhere(counts):
        if size <= COUNTED_SPEAKERS or a != b:
            colour = "white" if shares[a, b] > 0.5 else (RED if a != b else "black")
            axis.text(b, a, counts[a, b], ha="center", va="center", color=colour, fontsize=font)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the true speaker's utterances")


def _draw_worst(
    figure: Any, true: NDArray[np.int64], found: NDArray[np.int64], speakers: Sequence[str], title: str
) -> None:
    """Left the speakers with the most wrong utterances, and whom those are taken for; right the most frequent confusions."""
    left, right = figure.subplots(1, 2)
    wrong = np.bincount(true[true != found], minlength=len(speakers))
    totals = np.bincount(true, minlength=len(speakers))
    worst = [index for index in np.argsort(-wrong, kind="stable")[:LISTED] if wrong[index]]
    bars = left.barh(range(len(worst)), [100 * wrong[index] / totals[index] for index in worst], color=BLUE)
    left.bar_label(
        bars,
        [f" {wrong[i]} of {totals[i]}: {_taken_for(found[(true == i) & (found != i)], speakers)}" for i in worst],
        fontsize=8,
    )
    left.set_yticks(range(len(worst)), [_short(speakers[index]) for index in worst], fontsize=8)
    left.set(xlim=(0, 250), xticks=(0, 25, 50, 75, 100), xlabel="wrong utterances of the speaker, %")
    left.set_title("speakers with the most wrong utterances, and whom these are taken for", loc="left", fontsize=10)
    pairs = worst_pairs(true, found, most=LISTED)
    right.barh(range(len(pairs)), [count for _, _, count in pairs], color=BLUE)
    labels = [f"{_short(speakers[a])} → {_short(speakers[b])}" for a, b, _ in pairs]
    right.set_yticks(range(len(pairs)), labels, fontsize=8)
    right.set(xlabel="utterances")
    right.set_title("most frequent confusions, true → found", loc="left", fontsize=10)
    right.xaxis.get_major_locator().set_params(integer=True)
    for axis in (left, right):
        axis.margins(y=0.01)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)


def _taken_for(found: NDArray[np.int64], speakers: Sequence[str]) -> str:
    """The speakers that wrong utterances are taken for, the most frequent first."""
    classes, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = [f"{_short(speakers[classes[i]])}{f' ({counts[i]})' if counts[i] > 1 else ''}" for i in order[:NAMED]]
    return ", ".join(names) + (", ..." if len(order) > NAMED else "")


def _draw_lengths(figure: Any, groups: Sequence[LengthGroup]) -> None:
    axis = figure.subplots()
    rates = np.array([group.utterances.rate for group in groups]) * 100
    low = np.array([group.utterances.low for group in groups]) * 100
    high = np.array([group.utterances.high for group in groups]) * 100
    places = np.arange(len(groups))
    axis.vlines(places, low, high, color=GREY, linewidth=2, label="95 % interval")
    axis.plot(places, rates, "o", color=BLUE, markersize=8, label="error rate")
    for place, group in zip(places, groups, strict=True):
        errors = group.utterances
        text = f"{errors.errors}/{errors.total}"
        axis.annotate(text, (place, rates[place]), (9, 0), textcoords="offset points", va="center", fontsize=9)
    labels = [f"{group.first}-{group.last}" if group.first < group.last else f"{group.first}" for group in groups]
    axis.set_xticks(places, labels, rotation=30 if len(groups) > 4 else 0)
    axis.set_xlim(-0.5, len(groups) - 0.2)
    axis.set_ylim(bottom=-0.04 * max(high))  # a rate of 0 lies clear of the axis
    axis.set_title("utterance errors by length", loc="left")
    axis.set(xlabel="frames of the utterance", ylabel="error rate, %")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above, where no interval is


def shown_points(curve: DetCurve) -> NDArray[np.int64]:
    """The points of a curve that have a place on normal deviate axes: neither rate is 0 or 1."""
    kept = _thinned(curve)
    rates = np.stack((curve.false_alarms[kept], curve.misses[kept]))
    return kept[((rates > 0) & (rates < 1)).all(axis=0)]


def _draw_det(figure: Any, curve: DetCurve, costs: Sequence[DetectionCost]) -> None:
    axis = figure.subplots()
    shown = shown_points(curve)
    axis.plot(_probit(curve.false_alarms[shown]), _probit(curve.misses[shown]), color=BLUE, linewidth=1.8)
    rate, _ = curve.equal_error
    marks = [(rate, rate, "o", RED, f"equal error rate {rate:.2%}")]
    for cost, shape, colour in zip(costs, COST_SHAPES, COST_COLOURS, strict=False):
        at = int(np.argmax(curve.thresholds == cost.threshold))
        label = f"minDCF {cost.minimum:.3f} at p_target {cost.p_target:g}"
        marks.append((float(curve.false_alarms[at]), float(curve.misses[at]), shape, colour, label))
    for alarms, misses, shape, colour, label in marks:
        has_place = min(alarms, misses) > 0 and max(alarms, misses) < 1
        place = (_probit(np.array([value])) for value in (alarms, misses)) if has_place else ([], [])
        axis.plot(
            *place, shape, color=colour, markersize=8, label=label if has_place else f"{label} (not on these axes)"
        )
    _set_det_axes(axis, [value for alarms, misses, *_ in marks for value in (alarms, misses)])
    axis.set_title("Detection error trade-off (DET) of claimed speakers", loc="left")
    axis.text(0.01, 0.01, _det_note(curve, len(shown)), transform=axis.transAxes, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right")


def _set_det_axes(axis: Any, rates: Sequence[float]) -> None:
    """Axes on which these rates have a place, as far as there is one."""
    inside = [rate for rate in rates if 0 < rate < 1]
    lowest = max(1e-5, min([0.01, *(rate / 2 for rate in inside)]))
    highest = min(0.995, max([0.5, *(2 * rate for rate in inside if rate < 0.4), *(rate + 0.1 for rate in inside)]))
    limits = tuple(_probit(np.array([lowest, highest])))
    ticks = [tick for tick in DET_RATES if lowest <= tick <= highest]
    axis.plot(limits, limits, color=GREY, linewidth=0.6)
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(_probit(np.array(ticks)), [f"{100 * tick:g}" for tick in ticks])
    axis.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        xlabel="false alarms (nontargets accepted), %",
        ylabel="misses (targets rejected), %",
    )


def _det_note(curve: DetCurve, num_shown: int) -> str:
    """What the picture says of its trials, and of points that have no place on its axes."""
    trials = f"{curve.num_targets:,} target trials, {curve.num_others:,} nontarget trials"
    if num_shown == 0:
        return f"{trials}\nno curve: at each threshold there are either no misses or no false alarms"
    return f"{trials}\nthe curve ends where there are no misses, or no false alarms"


def _thinned(curve: DetCurve) -> NDArray[np.int64]:
    """Points of the curve that are enough to draw it: the first of each step of either axis."""
    steps = [
        np.round(_probit(np.clip(r, 1e-9, 1 - 1e-9)) * DET_POINTS / 12) for r in (curve.false_alarms, curve.misses)
    ]
    moved = (np.diff(steps[0]) != 0) | (np.diff(steps[1]) != 0)
    return np.flatnonzero(np.concatenate(([True], moved)) | np.concatenate((moved, [True])))


def _probit(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal deviates of rates in (0, 1)."""
    from scipy.special import ndtri

    return np.asarray(ndtri(rates), np.float64)


def _short(name: str) -> str:
    """A name that fits beside a picture: its middle is left out, as names often differ at their ends."""
    kept = NAME_LENGTH - 1
    return name if len(name) <= NAME_LENGTH else f"{name[: kept // 2]}…{name[-(kept - kept // 2) :]}"
