"""Read and write a trained model: the options of its training (`train.opts`) and its weights.

Weights are the network's plain `state_dict`. The name of their training lies where only those who ask for it look: in the
`_metadata` that torch keeps with a `state_dict`. The keys stay those of the layers (`0.weight`, ...), and the file loads into a
network that is built by hand. Scoring, export and tables of results open a trained model, and need nothing of training.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from shards.corpus import read_speakers
from shards.errors import InputError
from shards.files import atomic_writer, read_text
from shards.names import check_speakers_names
from shards.plaintext import shown_place
from spkid_dist.config import TrainConfig
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.model import model_from_options
from spkid_dist.process.memory import is_out_of_memory

OPTIONS_NAME = "train.opts"
# Where data and results lie: what the data are is told by their fingerprints, and the choice among them by its own.
_PLACES = {"db_path", "tr_list_file", "va_list_file", "ext", "spk2idx", "speaker_component"}
_PLACES |= {
    "tr_shards",
    "va_shards",
    "tr_utterances",
    "cache_dir",
    "cache_bytes",
    "fingerprint",
    "shard_cache",
    "shard_cache_bytes",
    "save_path",
}
_PLACES |= {"max_frames"}  # which decides what is refused, and not what is read
# How the training is run.
_RUN = {"log_freq", "accumulation", "resume", "overwrite", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"}
_RUN |= {"timeout_minutes", "log_with", "profile", "engine", "device_memory"}
# When it ends; --epoch not to below what is trained already.
_END = {"epoch", "patience"}
MAY_CHANGE = frozenset(_PLACES | _RUN | _END)
"""The options that a training may change when it goes on; what is not among them changes results."""

_NOTHING = object()
# Options that came later, with the defaults that do as was done before: these are no part of a training's name.
_LATER = {name: TrainConfig.__dataclass_fields__[name].default for name in ("average", "best_by")}

ID_NAME = "training_id"


def training_id(options: Mapping[str, Any], data: Mapping[str, str | None]) -> str:
    """The name of the training with these options (as JSON has them) on these data (what -> fingerprint, None for all)."""
    decisive = {
        name: value for name, value in options.items() if name not in MAY_CHANGE and _LATER.get(name, _NOTHING) != value
    }
    return xxhash.xxh3_128_hexdigest(json.dumps([decisive, dict(data)], sort_keys=True).encode())


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


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The digest of a network's `state_dict`: of the bytes of all its tensors, in their order."""
    digest = xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network (B, C*D) -> (B, num_spks) log-probabilities, on the CPU and in evaluation mode; speakers in class order.

    `options` are those of train.opts; `in_frames` is C, `num_features` D and `edge` the rule of the training.
    """

    network: torch.nn.Module
    speakers: list[str]
    in_frames: int
    num_features: int
    edge: str
    options: dict[str, Any]


def load_trained(weights_ckpt: Path, train_cfg: Path, spk2idx: Path | None) -> TrainedModel:
    """Load weights with the train.opts that belongs to them; `spk2idx` names the speakers where train.opts does not.

    Raises:
        InputError: a file is missing, damaged, or they do not fit together.
    """
    options = read_options(train_cfg)
    speakers = _speakers(options, train_cfg, spk2idx)
    network = model_from_options(options, str(train_cfg))
    name = options.get(ID_NAME)
    load_weights(network, weights_ckpt, train_cfg, name if isinstance(name, str) else None)
    return TrainedModel(
        network=network.eval(),
        speakers=speakers,
        in_frames=options["in_frames"],
        num_features=options["input_dim"],
        edge=options.get("edge", "valid"),
        options=options,
    )


def _speakers(options: dict[str, Any], train_cfg: Path, spk2idx: Path | None) -> list[str]:
    """Speaker names in class order: of train.opts, or of the map that it or the flag names."""
    if spk2idx is None and isinstance(options.get("speakers"), list):
        speakers = [str(name) for name in options["speakers"]]
        check_speakers_names(speakers, str(train_cfg))
    else:
        speakers = read_speakers(spk2idx or Path(str(options.get("spk2idx", "cfg/spk2idx.json"))))
    if len(speakers) != options["num_spks"]:
        raise InputError(
            f"{train_cfg}: num_spks is {options['num_spks']}, but there are {len(speakers)} speaker names; "
            "give --spk2idx as it was in the training"
        )
    return speakers


def options_of(config: TrainConfig) -> dict[str, Any]:
    """All options as JSON has them; of the places of datasets without what may be secret.

    They go into files that others may read, and into the names of trainings, which so outlive a change of passwords.
    """
    return {name: _as_json(value) for name, value in asdict(config).items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, str):
        return shown_place(value)
    return str(value) if isinstance(value, Path) else value


def read_options(path: Path) -> dict[str, Any]:
    """Read a `train.opts` file, as a training of ours or of the same command line wrote it.

    Raises:
        InputError: it is missing, not JSON, or lacks what describes the network.
    """
    text = read_text(path, "the training options", "give the train.opts beside the weights (--train_cfg)")
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}; give the train.opts of a training") from None
    needed = ("input_dim", "in_frames", "hsize", "num_spks")
    for name in needed:
        value = options.get(name) if isinstance(options, dict) else None
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {name} is {value!r}, expected a whole number; give the train.opts of a training")
    component, edge = options.get("speaker_component"), options.get("edge", "valid")
    if not (component is None or (isinstance(component, int) and component >= 1)):
        raise InputError(f"{path}: speaker_component is {component!r}, expected a whole number from 1")
    if edge not in EDGE_CODES:
        raise InputError(f"{path}: edge is {edge!r}, expected one of {', '.join(EDGE_CODES)}")
    return dict(options)


def load_weights(model: nn.Sequential, path: Path, train_cfg: Path, training: str | None) -> None:
    """Load a weights file into `model`; nothing in the file is executed.

    `training` is the training that the options in `train_cfg` name; None where they name none, as those of other programs.

    Raises:
        InputError: the file is missing, not a weights file, or of another training or network.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: can't read these weights: {error.strerror}; check --weights_ckpt") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # torch raises whatever the damaged bytes lead it to
        raise InputError(
            f"{path}: not a weights file of torch, or a damaged one ({type(error).__name__}); "
            "give a *_weights.ckpt of a training"
        ) from None
    found = name_in(state)
    if training is not None and found is not None and found != training:
        raise InputError(
            f"{path}: these weights are of another training than the options in {train_cfg}: their training_id is {found}, "
            f"that of the options {training}; give the train.opts beside the weights (--train_cfg)"
        )
    expected = model.state_dict()
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise InputError(f"{path}: holds {_keys(state)}, expected {_keys(expected)}; {_other_network(state, expected)}")
    for name, tensor in expected.items():
        if getattr(state[name], "shape", None) != tensor.shape:
            shape = tuple(getattr(state[name], "shape", ()))
            raise InputError(
                f"{path}: {name} is {shape}, but the options make it {tuple(tensor.shape)}; "
                "give the train.opts that belongs to these weights (--train_cfg)"
            )
    model.load_state_dict(state, strict=True)


def _other_network(state: Any, expected: Mapping[str, Any]) -> str:
    """How the weights' network differs, where it shows, and what to give."""
    for mark, option in (("normalize.mean", "--normalize global"), ("1.running_mean", "--batch_norm")):
        has, wanted = isinstance(state, Mapping) and mark in state, mark in expected
        if has != wanted and isinstance(state, Mapping) and any(str(key).endswith(".weight") for key in state):
            these, options = ("with", "without") if has else ("without", "with")
            return (
                f"the weights are of a training {these} {option}, the options of one {options}; give the train.opts that "
                "belongs to these weights (--train_cfg)"
            )
    return "give weights of this kind of network"


def _keys(state: Any) -> str:
    return ", ".join(map(str, list(state)[:8])) if isinstance(state, Mapping) else f"a {type(state).__name__}"
