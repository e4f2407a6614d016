"""Draw the curves of a training: loss, accuracy and wrong utterances over the epochs, of all weights that were validated."""

import io
from collections.abc import Sequence
from typing import Any

from spkid_dist.trainedfolder import TrainStatistics

PALE, BLUE, RED, ORANGE = "#8db8de", "#1f5a99", "#b3261e", "#d9822b"
MARKED_EPOCHS = 40  # of more, single points can't be told apart
Curve = Sequence[float | None]


def draw_curves(statistics: TrainStatistics) -> bytes:
    """A PNG with a panel each for the loss, the accuracy of frames and, where counted, the wrong utterances.

    Takes half a second.
    """
    from matplotlib.figure import Figure  # a figure of its own: no backend and no global state

    columns = statistics
    panels: list[tuple[str, Curve, Curve, Curve]] = [
        ("loss (NLL per frame)", columns.tr_loss, columns.va_loss, columns.avg_loss),
        ("accuracy of frames", columns.tr_acc, columns.va_acc, columns.avg_acc),
    ]
    if any(count is not None for count in columns.va_wrong):
        of_all = next(count for count in columns.va_utterances if count is not None)
        panels.append((f"wrong utterances of {of_all:,}", [], columns.va_wrong, columns.avg_wrong))
    figure = Figure(figsize=(6 * len(panels), 4.8), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, *curves) in zip(axes, panels, strict=True):
        _draw_panel(axis, *curves, best=(statistics.best_epoch, statistics.best_by))
        axis.set_title(title, loc="left")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, edgecolor="none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_panel(axis: Any, training: Curve, validation: Curve, averaged: Curve, *, best: tuple[int, str]) -> None:
    epochs = len(validation)
    if training:  # log lines lie evenly within the epochs
        places = [(line + 1) * max(epochs, 1) / len(training) - 1 for line in range(len(training))]
        axis.plot(places, training, color=PALE, linewidth=1.3, label="training, batches between log lines")
    marker = "o" if epochs <= MARKED_EPOCHS else None
    ends = range(epochs)
    axis.plot(ends, _known(validation), color=BLUE, marker=marker, linewidth=1.8, label="validation")
    if any(value is not None for value in averaged):
        axis.plot(
            ends, _known(averaged), color=ORANGE, marker=marker, markersize=4, linewidth=1.4, label="averaged weights"
        )
    epoch, by = best
    if epoch >= 0:
        axis.axvline(epoch, color=RED, linewidth=1, linestyle="--")
        axis.plot(epoch, _known(validation)[epoch], "o", color=RED, markersize=7, label=f"best epoch by {by}: {epoch}")
    axis.set(xlabel="epoch, counted from 0", xlim=(-1, max(epochs, 1) * 1.02 - 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _known(values: Curve) -> list[float]:
    """The values, NaN where one is not known: matplotlib leaves a gap."""
    return [float("nan") if value is None else value for value in values]
