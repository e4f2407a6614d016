"""Write and read the weights of a network, with a digest by which damage is found whatever the file is called.

A weights file is the network's plain `state_dict`. What belongs to it besides lies where only those who ask for it look: in the
`_metadata` that torch keeps with a `state_dict`. There stand the name of the training, and the digest of that name and of all
tensors: names, types, shapes and bytes. The keys stay those of the layers (`0.weight`, ...), and the file loads into a network
that is built by hand. Files without a digest are those of earlier versions and of other programs; of these the CRC-32 is
compared that zip archives have for each record, and that torch does not look at.
"""

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from shards.errors import InputError
from shards.files import atomic_writer, open_regular
from spkid_dist.weights.archive import all_plain, check_records, load_archive, wrong_record

ID_NAME = "training_id"
METADATA_KEY = "spkid_dist"
DIGEST_NAME = "xxh3_128"
RESTORE = "restore the file from a copy, or train again"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a weights file holds: a `state_dict`, or whatever was saved; and the training that it names, None for none.

    `has_digest` is whether the file has a digest, which is right then.
    """

    state: Any
    training: str | None
    has_digest: bool


def save_weights(model: torch.nn.Module, path: Path, training_id: str | None = None) -> None:
    """Write the model's `state_dict`, on the CPU, to `path` atomically, with the name of its training and the digest of both.

    Raises:
        InputError: it can't be written.
    """
    state = model.state_dict()
    metadata = OrderedDict(getattr(state, "_metadata", {}))
    on_cpu = OrderedDict((name, tensor.detach().cpu()) for name, tensor in state.items())
    named = {} if training_id is None else {ID_NAME: training_id}
    metadata[METADATA_KEY] = named | {DIGEST_NAME: _digest_of_file(on_cpu, training_id)}
    on_cpu._metadata = metadata  # type: ignore[attr-defined]
    with atomic_writer(path) as file:
        torch.save(on_cpu, file)


def read_weights(path: Path) -> Weights:
    """Read a weights file; nothing in it is executed.

    Raises:
        InputError: it can't be read, is no file of torch.save, or is not what was written.
    """
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as file:
            state = load_archive(file)
            written = _entry(state, DIGEST_NAME)
            has_digest = written is not None and all_plain(state)
            wrong = None if has_digest else wrong_record(file)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; give a *_weights.ckpt of a training") from None
    if wrong is not None:
        raise InputError(
            f"{path}: these weights are not what was written: the CRC-32 of the record {wrong!r} differs; {RESTORE}"
        )
    training = _entry(state, ID_NAME)
    if has_digest and written != _digest_of_file(state, training):
        raise InputError(f"{path}: these weights are not what was written: their digest differs; {RESTORE}")
    return Weights(state=state, training=training, has_digest=has_digest)


def say_no_digest(path: Path) -> str:
    """The line on a weights file that has no digest."""
    return (
        f"{path}: has no digest of its weights, as files of earlier versions and of other programs, so nothing can tell "
        "whether these are the weights that were written; only the CRC-32 of its records was compared"
    )


def name_in_weights(path: Path) -> str | None:
    """The training that a weights file names; None where it names none, or can't be read. Reads no tensors."""
    try:
        with open_regular(path) as raw, io.BufferedReader(raw) as file:
            check_records(file)
        return _entry(torch.load(path, map_location="cpu", weights_only=True, mmap=True), ID_NAME)
    except Exception:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
        return None


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The digest of a network's `state_dict`: of the names, types, shapes and bytes of all its tensors, in their order."""
    digest = xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(f"{len(name)} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(errors="surrogatepass"))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_file(state: Mapping[str, torch.Tensor], training: str | None) -> str:
    return xxhash.xxh3_128_hexdigest(f"{state_digest(state)} {training}".encode(errors="surrogatepass"))


def _entry(state: object, name: str) -> str | None:
    """What a loaded `state_dict` has of ours under a name; None where it has nothing, as those of other programs."""
    metadata = getattr(state, "_metadata", None)
    ours = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    value = ours.get(name) if isinstance(ours, Mapping) else None
    return value if isinstance(value, str) else None
