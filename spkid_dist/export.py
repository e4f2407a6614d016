"""The command `spkid export`: write a trained model for programs that have nothing of this project.

The folder holds the network in the formats asked for, and `model.json`, which says all that a caller needs: how frames become
the network's inputs, and its outputs a speaker (`spkid_dist.scoring.modeljson`). The folder appears whole, or not at all.
"""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shards.errors import InputError
from shards.extras import import_extra
from shards.files import staging_folder, write_atomic, write_json
from spkid_dist.config import ExportConfig
from spkid_dist.ranks.console import RunLog
from spkid_dist.scoring.calibrationfile import read_calibration
from spkid_dist.scoring.modeljson import INPUT, OUTPUT, ExportedFile, describe_export, normalization
from spkid_dist.scoring.models import find_models, load_models
from spkid_dist.trained import TrainedModel

MODEL_JSON = "model.json"
ONNX_OPSET = 18  # what torch's exporter makes without converting; onnxruntime has it since 1.14
EXAMPLE_WINDOWS = 2  # the exporters take a size of 1 for a constant


def export_model(config: ExportConfig) -> Path:
    """Write the model of `config` into its `out` folder; returns the path of its model.json.

    Raises:
        InputError: weights or train.opts missing, damaged or not fitting together, or a calibration is damaged or of other
            weights; `out` holds something, or can't be written.
        UsageError: a library that a format needs is not installed.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise InputError(f"{config.out}: exists and is not an empty folder; give --out a new one")
    (chosen,) = find_models(config.models, config.weights, config.train_cfg)
    log, model = RunLog(shown=True), load_models([chosen], config.spk2idx)
    calibration = read_calibration([chosen.weights])
    files: dict[str, ExportedFile] = {}
    with staging_folder(config.out.absolute()) as staging:
        for name in config.formats:
            file_name, write = WRITERS[name]
            data = write(model)
            write_atomic(staging / file_name, data)
            files[name] = ExportedFile(file_name, hashlib.sha256(data).hexdigest())
        opset = ONNX_OPSET if "onnx" in files else None
        facts = describe_export(model, files, chosen.weights.name, opset, calibration)
        write_json(staging / MODEL_JSON, facts)
        try:
            staging.replace(config.out)
        except OSError as error:
            raise InputError(f"{config.out}: can't be written: {error.strerror}; choose another --out") from error
    for line in model.remarks:
        log.line(line)
    log.line(f"{config.out}: {', '.join((MODEL_JSON, *(file.name for file in files.values())))}")
    return config.out / MODEL_JSON


def _safetensors(model: TrainedModel) -> bytes:
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    metadata = {"format": "pt", "in_frames": str(model.in_frames), "speakers": json.dumps(model.speakers)}
    metadata |= {"edge": model.edge, "normalize": normalization(model)}
    return bytes(save(state, metadata))


def _torch_export(model: TrainedModel) -> bytes:
    program = torch.export.export(model.network, _example(model), dynamic_shapes=_dynamic_batch(), strict=True)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(model: TrainedModel) -> bytes:
    for module in ("onnx", "onnxscript"):
        import_extra(module, "onnx", "exporting to ONNX")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own use of what it has deprecated
        program = torch.onnx.export(
            model.network,
            _example(model),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_dynamic_batch(),
            opset_version=ONNX_OPSET,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _example(model: TrainedModel) -> tuple[torch.Tensor]:
    return (torch.zeros(EXAMPLE_WINDOWS, model.in_frames * model.num_features),)


def _dynamic_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("B", min=1)},)


# format: (its file, the bytes of that)
WRITERS: dict[str, tuple[str, Callable[[TrainedModel], bytes]]] = {
    "safetensors": ("model.safetensors", _safetensors),
    "torch_export": ("model.pt2", _torch_export),
    "onnx": ("model.onnx", _onnx),
}
