"""Exports whose files are not those that model.json was written with, and frames that have no answer, in another program."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from flippedbits import flipped
from trained_folders import make_training

from shards.sources.fmatrix import write_fmatrix
from spkid_dist.config import ExportConfig
from spkid_dist.export import export_model

EXAMPLES = Path(__file__).parents[2] / "examples"
FMATRIX = {"kind": "fmatrix", "ext": "mcp"}


@pytest.fixture
def exported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    place = make_training(tmp_path / "ckpt", FMATRIX)
    path = export_model(ExportConfig(model=place, out=tmp_path / "out", format="onnx,safetensors"))
    return path.parent, json.loads(path.read_text())


def test_model_json_has_the_checksums_of_its_files(exported):
    folder, model = exported
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in model["files"].values()}
    assert model["sha256"] == digests


def test_a_caller_refuses_a_network_that_is_not_what_was_written(exported):
    from onnx_caller import open_onnx

    folder, model = exported
    open_onnx(folder, model)
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(flipped(data, len(data) // 2, 3))
    with pytest.raises(ValueError, match=r"model\.onnx: not the file that model\.json was written with"):
        open_onnx(folder, model)


@pytest.mark.parametrize("value", [np.nan, 3.4e38])
def test_a_caller_names_nobody_where_no_score_is_finite(exported, tmp_path, value):
    from onnx_caller import identify, open_onnx

    folder, model = exported
    frames = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    write_fmatrix(tmp_path / "good.mcp", frames)
    write_fmatrix(tmp_path / "odd.mcp", np.where(frames > 0, value, -value).astype(np.float32))
    network = open_onnx(folder, model)
    assert identify(model, network, tmp_path, "good")[0] in model["speakers"]
    with pytest.raises(ValueError, match="odd: its frames have values that are too large to compute with"):
        identify(model, network, tmp_path, "odd")
