"""Refuse wrappers of other libraries that would change a stream's batches."""

import inspect
from collections.abc import Iterator
from typing import Any

from shards.errors import UsageError


def refuse_wrappers() -> None:
    """Raise UsageError where a caller would change the batches.

    accelerate's loader shares out what is a rank's share already. A DataLoader with a batch size takes each batch for a sample.
    """
    for module, caller in _callers():
        if module == "accelerate.data_loader":
            if type(caller).__name__ == "SkipDataLoader":
                raise UsageError(
                    "accelerate would go on inside an epoch by passing over batches; set ignore_data_skip=True in the "
                    "TrainingArguments, and bring the dataset to its place by dataset.load_state_dict"
                )
            raise UsageError(
                "the dataset went through accelerator.prepare, which would cut each rank's share once more and lose "
                "windows; iterate over the dataset itself: it yields this rank's share of each batch"
            )
        if module == "torch.utils.data._utils.fetch" and getattr(caller, "auto_collation", False):
            raise UsageError(
                "the DataLoader would stack whole batches into batches of batches; make it with batch_size=None: the "
                "dataset yields whole batches"
            )


def is_called_by(package: str) -> bool:
    """Whether code of `package` is among the callers."""
    return any(module.partition(".")[0] == package for module, _ in _callers())


def _callers() -> Iterator[tuple[str, Any]]:
    """The modules that have called this one, and the objects whose methods did."""
    frame = inspect.currentframe()
    while frame is not None:
        yield str(frame.f_globals.get("__name__")), frame.f_locals.get("self")
        frame = frame.f_back
