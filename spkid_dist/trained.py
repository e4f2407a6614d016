"""Read and write a trained model: the options of its training (`train.opts`) and its weights.

Scoring, export and tables of results open a trained model, and need nothing of training. Options and weights must agree before
memory is taken for a network: options alone can describe one of any size.
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

from shards.contentdigest import without_digest
from shards.corpus import read_speakers
from shards.errors import InputError
from shards.jsontext import read_json, shown
from shards.names import check_speakers_names
from shards.plaintext import shown_place
from spkid_dist.config import TrainConfig
from spkid_dist.config.checks import Options
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.model import model_from_options
from spkid_dist.weights.archive import not_plain
from spkid_dist.weights.file import ID_NAME, read_weights, say_no_digest

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

LARGEST_SIZE = 2**31 - 1  # of a layer, or of a window
GIVE_OPTIONS = "give the train.opts of a training"


def training_id(options: Mapping[str, Any], data: Mapping[str, str | None]) -> str:
    """The name of the training with these options (as JSON has them) on these data (what -> fingerprint, None for all)."""
    decisive = {
        name: value for name, value in options.items() if name not in MAY_CHANGE and _LATER.get(name, _NOTHING) != value
    }
    return xxhash.xxh3_128_hexdigest(json.dumps([decisive, dict(data)], sort_keys=True).encode())


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network (B, C*D) -> (B, num_spks) log-probabilities, on the CPU and in evaluation mode; speakers in class order.

    `options` are those of train.opts; `in_frames` is C, `num_features` D and `edge` the rule of the training.
    `remarks` are lines on what could not be checked.
    """

    network: torch.nn.Module
    speakers: list[str]
    in_frames: int
    num_features: int
    edge: str
    options: dict[str, Any]
    remarks: tuple[str, ...] = ()


def load_trained(weights_ckpt: Path, train_cfg: Path, spk2idx: Path | None) -> TrainedModel:
    """Load weights with the train.opts that belongs to them; `spk2idx` names the speakers where train.opts does not.

    Raises:
        InputError: a file is missing, damaged, or they do not fit together.
    """
    options = read_options(train_cfg)
    speakers = _speakers(options, train_cfg, spk2idx)
    network = model_from_options(options, str(train_cfg), empty=True)
    name = options.get(ID_NAME)
    has_digest = load_weights(network, weights_ckpt, train_cfg, name if isinstance(name, str) else None)
    return TrainedModel(
        network=network.eval(),
        speakers=speakers,
        in_frames=options["in_frames"],
        num_features=options["input_dim"],
        edge=options.get("edge", "valid"),
        options=options,
        remarks=() if has_digest else (say_no_digest(weights_ckpt),),
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


def options_of(config: Options) -> dict[str, Any]:
    """All options of a command as JSON has them; of the places of datasets without what may be secret.

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
    """Read a `train.opts` file, as a training of ours or of the same command line wrote it, without its digest.

    Raises:
        InputError: it is missing, not JSON, not what was written, or lacks what describes the network.
    """
    options = read_json(path, "the training options", GIVE_OPTIONS, undecodable=True)  # paths stand in them
    if not isinstance(options, dict):
        raise InputError(f"{path}: the training options are {shown(options)}, expected a JSON object; {GIVE_OPTIONS}")
    try:
        options = without_digest(options)
    except ValueError as error:
        raise InputError(f"{path}: the training options: {error}; or {GIVE_OPTIONS}") from None
    for name in ("input_dim", "in_frames", "hsize", "num_spks"):
        value = options.get(name)
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            raise InputError(
                f"{path}: {name} is {shown(value)}, expected a whole number from 1 to {LARGEST_SIZE}; {GIVE_OPTIONS}"
            )
    component, edge = options.get("speaker_component"), options.get("edge", "valid")
    if not (component is None or (type(component) is int and component >= 1)):
        raise InputError(f"{path}: speaker_component is {shown(component)}, expected a whole number from 1")
    if not isinstance(edge, str) or edge not in EDGE_CODES:
        raise InputError(f"{path}: edge is {shown(edge)}, expected one of {', '.join(EDGE_CODES)}")
    return options


def load_weights(model: nn.Sequential, path: Path, train_cfg: Path, training: str | None) -> bool:
    """Load a weights file into `model`; nothing in the file is executed.

    `training` is the training that the options in `train_cfg` name; None where they name none, as those of other programs.

    Returns whether the file has a digest of its weights, which is right then.

    Raises:
        InputError: the file is missing, not a weights file, not what was written, or of another training or network.
    """
    weights = read_weights(path)
    if training is not None and weights.training is not None and weights.training != training:
        raise InputError(
            f"{path}: these weights are of another training than the options in {train_cfg}: their training_id is "
            f"{weights.training}, that of the options {training}; give the train.opts beside the weights (--train_cfg)"
        )
    state, expected = weights.state, model.state_dict()
    if not isinstance(state, Mapping) or set(state) != set(expected):
        raise InputError(f"{path}: holds {_keys(state)}, expected {_keys(expected)}; {_other_network(state, expected)}")
    for name, tensor in expected.items():
        problem = _misfit(name, state[name], tensor)
        if problem is not None:
            raise InputError(f"{path}: {problem}")
    # Without what torch keeps with a state_dict, which may be damaged; the tensors that were read become the network's.
    taken = OrderedDict((name, state[name].detach().to(tensor.dtype).contiguous()) for name, tensor in expected.items())
    model.load_state_dict(taken, strict=True, assign=True)
    return weights.has_digest


def _misfit(name: str, found: Any, expected: torch.Tensor) -> str | None:
    """What is wrong with a tensor that is loaded in the place of `expected`, and what to do; None where nothing is."""
    problem = not_plain(found)
    if problem is not None:
        return f"{name} is {problem}; give a *_weights.ckpt of a training"
    if found.shape != expected.shape:
        return (
            f"{name} is {tuple(found.shape)}, but the options make it {tuple(expected.shape)}; give the train.opts that "
            "belongs to these weights (--train_cfg)"
        )
    if found.is_floating_point() != expected.is_floating_point() or found.is_complex():
        return f"{name} is of {found.dtype}, expected {expected.dtype}; give a *_weights.ckpt of a training"
    if not bool(torch.isfinite(found).all()):
        return f"{name} is not finite in all its values: these are the weights of a training that diverged; give others"
    return None


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
    return (
        ", ".join(str(name)[:40] for name in list(state)[:8])
        if isinstance(state, Mapping)
        else f"a {type(state).__name__}"
    )
