"""What follows an epoch's batches: the validation, its weights, the curves."""

import math

from shards.errors import InputError
from spkid_dist.ranks.together import by_main, raise_everywhere
from spkid_dist.training.losses import check_finite
from spkid_dist.training.report import weights_name
from spkid_dist.training.run import Run
from spkid_dist.training.tracking import track


def validate_epoch(run: Run, epoch: int) -> None:
    """Validation loss and accuracy after an epoch, its weights and the statistics so far.

    Raises:
        InputError: weights or validation loss are not finite; a file can't be written.
    """
    statistics, save_path = run.state.statistics, run.config.save_path
    by_main(run.accelerator, lambda: check_finite(run.state.parts["model"].state_dict()))
    va_loss, va_acc = run.evaluator.evaluate(run.va_data, run.keeper.in_validation)
    _check_loss(va_loss, epoch)
    statistics.va_loss.append(va_loss)
    statistics.va_acc.append(va_acc)
    best = statistics.best_epoch == epoch
    path = save_path / weights_name(epoch, best)

    def save() -> None:
        run.folder.save_weights(run.network, epoch, best)
        statistics.save(save_path)
        if run.is_finished or run.plots.is_due():
            statistics.plot(save_path)

    by_main(run.accelerator, save)
    track(run.accelerator, "validation", {"loss": va_loss, "accuracy": va_acc}, (epoch + 1) * len(run.tr_data))
    if run.schedule.after_validation(va_loss):
        run.log.line(f"learning rate: multiplied by {run.config.step_factor}")
    run.log.line(
        f"VALIDATION: epoch {epoch} loss: {va_loss:.4f} acc: {va_acc:.4f} "
        f"{'better' if best else 'not better'}, saved {path}"
    )


def _check_loss(loss: float, epoch: int) -> None:
    """Raise InputError, on all ranks, where an epoch's validation loss is not finite: it would be neither better nor worse."""
    if not math.isfinite(loss):
        raise_everywhere(
            InputError(
                f"epoch {epoch}: the validation loss is {loss}, although the weights are finite; the training diverged: give a "
                "smaller --lr (or --mixed_precision no, where frames of the validation set are extreme)"
            )
        )
