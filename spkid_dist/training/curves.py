"""Draw the curves of a training: loss and accuracy over the epochs, of the training set and the validation set."""

import io
from collections.abc import Sequence
from typing import Any

PALE, BLUE, RED = "#8db8de", "#1f5a99", "#b3261e"
MARKED_EPOCHS = 40  # of more, single points can't be told apart


def draw_curves(
    training: tuple[Sequence[float], Sequence[float]], validation: tuple[Sequence[float], Sequence[float]], best: int
) -> bytes:
    """A PNG with a panel for the loss and one for the accuracy of frames; takes half a second.

    Args:
        training: losses and accuracies, one of each per log line.
        validation: losses and accuracies, one of each per epoch.
        best: the best epoch, from 0; -1 where none is known.
    """
    from matplotlib.figure import Figure  # a figure of its own: no backend and no global state

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    for axis, title, of_training, of_validation in zip(
        figure.subplots(1, 2), ("loss (NLL per frame)", "accuracy of frames"), training, validation, strict=True
    ):
        _draw_panel(axis, of_training, of_validation, best)
        axis.set_title(title, loc="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_panel(axis: Any, training: Sequence[float], validation: Sequence[float], best: int) -> None:
    epochs = len(validation)
    if training:  # log lines lie evenly within the epochs
        places = [(line + 1) * max(epochs, 1) / len(training) for line in range(len(training))]
        axis.plot(places, training, color=PALE, linewidth=1.3, label="training, batches between log lines")
    marker = "o" if epochs <= MARKED_EPOCHS else None
    axis.plot(range(1, epochs + 1), validation, color=BLUE, marker=marker, linewidth=1.8, label="validation")
    if best >= 0:
        axis.axvline(best + 1, color=RED, linewidth=1, linestyle="--")
        axis.plot(
            best + 1, validation[best], "o", color=RED, markersize=7, label=f"best epoch: {best} (counted from 0)"
        )
    axis.set(xlabel="epochs trained", xlim=(0, max(epochs, 1) * 1.02))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(framealpha=1, edgecolor="none")
