"""An exported model computes what ours computes, for callers that have nothing of ours."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from shards import InputError, UsageError
from spkid_dist.config import ExportConfig, ScoreConfig
from spkid_dist.config.scoring import EXPORT_FORMATS
from spkid_dist.export import export
from spkid_dist.model import build_model
from spkid_dist.score import score

# A whole caller: onnxruntime, numpy and model.json. fmatrix files are two int32 and then float32.
CALLER = """
import json, sys
import numpy as np, onnxruntime
folder, db_path, list_path = sys.argv[1:]
model = json.load(open(f"{folder}/model.json"))
session = onnxruntime.InferenceSession(f"{folder}/{model['files']['onnx']}")
C, D = model["in_frames"], model["num_features"]
for key in open(list_path).read().split():
    frames = np.fromfile(f"{db_path}/{key}.mcp", "<f4")[2:].reshape(-1, D)
    if model["edge"] != "valid" or len(frames) < C:
        mode = "constant" if model["edge"] == "zero" else "edge"
        before = (C - 1) // 2
        frames = np.pad(frames, ((before, C - 1 - before), (0, 0)), mode)
    windows = np.stack([frames[t : t + C].reshape(-1) for t in range(len(frames) - C + 1)])
    (log_probs,) = session.run([model["output"]["name"]], {model["input"]["name"]: windows})
    print(key, model["speakers"][log_probs.astype(np.float64).sum(axis=0).argmax()], sep="\\t")
assert not {"torch", "shards", "spkid_dist"} & set(sys.modules)
"""


@pytest.fixture
def trained(tmp_path):
    """Weights and options of a random network for windows of 11 frames of 8 features, under `edge`."""

    def make(edge="valid"):
        torch.manual_seed(3)
        network = build_model(88, 16, 5)
        torch.save(network.state_dict(), tmp_path / "w.ckpt")
        options = {"input_dim": 8, "in_frames": 11, "hsize": 16, "num_spks": 5, "edge": edge}
        options |= {"speakers": [f"spk{i:04d}" for i in range(5)], "source": {"kind": "fmatrix", "ext": "mcp"}}
        (tmp_path / "train.opts").write_text(json.dumps(options))
        return network

    return make


@pytest.fixture
def config(tmp_path):
    return {"weights_ckpt": tmp_path / "w.ckpt", "train_cfg": tmp_path / "train.opts", "out": tmp_path / "out"}


def test_every_format_computes_the_same_log_probabilities(trained, config, tmp_path):
    network = trained()
    model_json = export(ExportConfig(**config, format=",".join(EXPORT_FORMATS)))
    model = json.loads(model_json.read_text())
    assert set(model["files"]) == set(EXPORT_FORMATS)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    again = build_model(88, 16, 5)
    again.load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=True)
    for batch in (1, 2, 1000):
        windows = torch.randn(batch, 88) * 3
        with torch.no_grad():
            expected = network(windows)
            torch.testing.assert_close(program(windows), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(again(windows), expected, rtol=0, atol=0)
        (found,) = session.run([model["output"]["name"]], {model["input"]["name"]: windows.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_the_onnx_file_is_of_the_opset_that_is_stated(trained, config, tmp_path):
    import onnx

    trained()
    stated = json.loads(export(ExportConfig(**config, format="onnx")).read_text())["onnx_opset"]
    assert [one.version for one in onnx.load(tmp_path / "out/model.onnx").opset_import if one.domain == ""] == [stated]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.onnx"}


def test_callers_without_torch_and_without_us_find_the_same_speakers(trained, config, synthetic, tmp_path):
    for edge in ("valid", "zero"):
        trained(edge)
        out = tmp_path / edge
        export(ExportConfig(**(config | {"out": out}), format="onnx"))
        arguments = [out, synthetic / "mcp", synthetic / "cfg/all.test"]
        command = [sys.executable, "-I", "-c", CALLER, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = {"db_path": synthetic / "mcp", "te_list_file": synthetic / "cfg/all.test", "pictures": False}
        paths = {name: config[name] for name in ("weights_ckpt", "train_cfg")}
        score(ScoreConfig(**files, **paths, log_file=tmp_path / "results.log"))
        assert done.stdout == (tmp_path / "results.log").read_text()


def test_an_output_folder_that_is_not_empty_is_left_alone(trained, config, tmp_path):
    trained()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="out: exists and is not an empty folder; give --out a new one"):
        export(ExportConfig(**config))
    (tmp_path / "out/thesis.tex").unlink()
    export(ExportConfig(**config, format="safetensors"))


def test_weights_of_another_shape_leave_no_folder(trained, config, tmp_path):
    trained()
    torch.save(build_model(88, 17, 5).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"w\.ckpt: 0\.weight is \(17, 88\), but the options make it \(16, 88\)"):
        export(ExportConfig(**config))
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_and_leaves_no_folder(trained, config, tmp_path, monkeypatch):
    trained()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript can't be imported .*pip install 'spkid-dist\[onnx\]'"):
        export(ExportConfig(**config, format="safetensors,onnx"))
    assert {path.name for path in tmp_path.iterdir()} == {"w.ckpt", "train.opts"}


def test_an_unknown_format_is_refused(config):
    with pytest.raises(UsageError, match=r"--format 'onyx': expected some of safetensors,torch_export,onnx"):
        ExportConfig(**config, format="safetensors,onyx")
