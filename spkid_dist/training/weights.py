"""Weights on disk: the network's plain `state_dict`, with the name of its training where only those who ask for it look.

The name lies in the `_metadata` that torch keeps with a `state_dict`. The keys stay those of the layers (`0.weight`, ...), and
the file loads into a network that is built by hand.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from shards.files import atomic_writer
from spkid_dist.training.identity import ID_NAME

METADATA_KEY = "spkid_dist"


def save_weights(model: torch.nn.Module, path: Path, training_id: str | None = None) -> None:
    """Write the model's `state_dict`, on the CPU, to `path` atomically, with the name of its training.

    Raises:
        InputError: it can't be written.
    """
    state = model.state_dict()
    metadata = OrderedDict(getattr(state, "_metadata", {}))
    if training_id is not None:
        metadata[METADATA_KEY] = {ID_NAME: training_id}
    on_cpu = OrderedDict((name, tensor.detach().cpu()) for name, tensor in state.items())
    on_cpu._metadata = metadata  # type: ignore[attr-defined]
    with atomic_writer(path) as file:
        torch.save(on_cpu, file)


def name_in(state: object) -> str | None:
    """The training that a loaded `state_dict` names; None where it names none, as those of other programs."""
    metadata = getattr(state, "_metadata", None)
    ours = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    name = ours.get(ID_NAME) if isinstance(ours, Mapping) else None
    return name if isinstance(name, str) else None


def name_in_weights(path: Path) -> str | None:
    """The training that a weights file names; None where it names none, or can't be read. Reads no tensors."""
    try:
        return name_in(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
        return None
