"""An exported model computes what ours computes, for callers that have nothing of ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from shards import FeatureOptions, InputError, UsageError
from shards.sources.audio import read_audio
from shards.sources.features import compute_features, kaldi_options, make_extractor
from shards.sources.featuresteps import feature_steps
from shards.sources.fmatrix import write_fmatrix
from spkid_dist.config import ExportConfig, ScoreConfig
from spkid_dist.config.choices import EDGE_CODES, EXPORT_FORMATS, Normalization
from spkid_dist.export import export_model
from spkid_dist.model import ACTIVATIONS, build_model, model_from_options, set_moments
from spkid_dist.score import score_utterances

EXAMPLES = Path(__file__).parents[2] / "examples"

# The caller of the examples, which is written from model.json alone, with the exported networks of all formats. Each job
# is the folder of a model, the folder of the files, the list and the format of the network; a line of JSON for each.
CALLER = r"""
import json, math, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from onnx_caller import identify, open_onnx

def open_layers(folder, model):
    from safetensors.numpy import load_file
    state = load_file(f"{folder}/{model['files']['safetensors']}")
    def run(x):
        for layer in model["layers"]:
            tensors = {name: state.get(value) for name, value in layer.items() if isinstance(value, str)}
            kind = layer["layer"]
            if kind == "linear":
                x = x @ tensors["weight"].T + tensors["bias"]
            elif kind == "normalize":
                mean, deviation = (np.tile(tensors[name], model["in_frames"]) for name in ("mean", "deviation"))
                x = (x - mean) / deviation
            elif kind == "batch_norm":
                x = (x - tensors["mean"]) / np.sqrt(tensors["variance"] + np.float32(layer["epsilon"]))
                x = x * tensors["weight"] + tensors["bias"]
            elif kind == "relu":
                x = np.maximum(x, 0)
            elif kind == "gelu":
                x = (x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2).astype(np.float32)
            elif kind == "silu":
                x = x / (1 + np.exp(-x))
            elif kind == "tanh":
                x = np.tanh(x)
            elif kind == "leaky_relu":
                x = np.where(x > 0, x, np.float32(layer["negative_slope"]) * x)
            elif kind == "log_softmax":
                x = x - x.max(axis=1, keepdims=True)
                x = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
            else:
                raise ValueError(kind)
        assert x.dtype == np.float32
        return x
    return run

def open_program(folder, model):
    import torch
    program = torch.export.load(f"{folder}/{model['files']['torch_export']}").module()
    return lambda x: program(torch.from_numpy(x)).numpy(force=True)

for folder, db_path, list_path, form in json.loads(sys.argv[1]):
    model = json.load(open(f"{folder}/model.json"))
    open_network = {"safetensors": open_layers, "onnx": open_onnx, "torch_export": open_program}[form]
    network = open_network(folder, model)
    print(json.dumps([(key, *identify(model, network, db_path, key)) for key in open(list_path).read().split()]))
assert not {"shards", "spkid_dist", "kaldi_native_fbank"} & set(sys.modules)
assert "torch" not in sys.modules or any(job[3] == "torch_export" for job in json.loads(sys.argv[1]))
"""

RATE, SPEAKERS = 8000, ["ana", "bob", "eve"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Utterances of many lengths, of a single frame too, as files of each kind: kind -> (source, folder, list)."""
    import kaldiio
    import soundfile

    folder = tmp_path_factory.mktemp("recordings")
    draw = np.random.default_rng(5)
    seconds = {
        "ana/short": 0.025,
        "bob/two": 0.036,
        "ana/long": 0.4,
        "bob/long": 0.3,
        "eve/long": 0.31,
        "eve/silent": 0.2,
    }
    features = FeatureOptions(sample_rate=RATE, num_bins=8, shift_ms=8, channel=2)
    matrices = {}
    for number, (name, length) in enumerate(seconds.items()):
        key = f"x/{name}"
        for kind in ("audio", "fmatrix", "npy"):
            (folder / kind / key).parent.mkdir(parents=True, exist_ok=True)
        samples = draw.standard_normal((round(length * RATE), 2)).astype(np.float32) * 0.1
        samples[:, 1] += 0.2 * np.sin(np.arange(len(samples)) * (0.1 + 0.2 * number))
        if name == "eve/silent":
            samples[:] = 0  # each feature is constant
        soundfile.write(folder / "audio" / f"{key}.wav", samples, RATE, subtype="FLOAT")
        frames = compute_features(samples[:, 1], features, key)
        frames[:, 3] += 1e5  # far from 0, as an unnormalised energy may be
        frames[:, 4] = 0.1
        frames[:, 5] = 1e5
        frames[::2, 5] = np.nextafter(np.float32(1e5), np.float32(2e5))  # varies by what float32 resolves: constant
        matrices[key] = frames
        write_fmatrix(folder / "fmatrix" / f"{key}.mcp", frames)
        np.save(folder / "npy" / f"{key}.npy", frames.astype(np.float64))
    (folder / "kaldi").mkdir()
    kaldiio.save_ark(str(folder / "kaldi/feats.ark"), matrices, scp=str(folder / "kaldi/feats.scp"))
    (folder / "list").write_text("".join(f"{key}\n" for key in matrices))
    sources = {"fmatrix": {"ext": "mcp"}, "npy": {"ext": "npy"}, "kaldi": {}}
    sources["audio"] = {"ext": "wav", "features": features.describe()}
    return {kind: ({"kind": kind} | more, folder / kind, folder / "list") for kind, more in sources.items()}


def random_model(folder, **changes):
    """Weights and options of a random network for windows of 6 frames of 8 features, whose batch norm has seen batches."""
    folder.mkdir()
    options = {"input_dim": 8, "in_frames": 6, "hsize": 16, "num_spks": 3, "speakers": SPEAKERS} | changes
    torch.manual_seed(7)
    network = model_from_options(options)
    set_moments(network, [*range(6), 0.0, -3.0], [0.5, 0.0, *range(1, 7)])
    network.train()
    network(torch.randn(50, 48) * 5)
    torch.save(network.state_dict(), folder / "w.ckpt")
    (folder / "train.opts").write_text(json.dumps(options))
    return {"weights_ckpt": folder / "w.ckpt", "train_cfg": folder / "train.opts"}


def compare_with_score(jobs):
    """Run the caller on (paths of the model, folder of the export, source's folder, list, format) each; as `spkid score`."""
    arguments = [[str(out), str(db_path), str(listed), form] for _, out, db_path, listed, form in jobs]
    command = [sys.executable, "-I", "-c", CALLER, json.dumps(arguments), str(EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for (paths, out, db_path, listed, _), found in zip(jobs, results, strict=True):
        files = {"db_path": db_path, "te_list_file": listed, "pictures": False}
        expected = score_utterances(ScoreConfig(**files, **paths, log_file=out / "results.log"))
        keys, speakers, values, confidences = zip(*found, strict=True)
        assert list(keys) == expected.keys
        decisions = expected.decisions
        accepted = [True] * len(keys) if decisions is None else decisions.accepted
        names = [SPEAKERS[index] if known else None for index, known in zip(expected.found, accepted, strict=True)]
        assert list(speakers) == names
        np.testing.assert_allclose(values, expected.mean_log_probs, rtol=2e-5, atol=2e-5)
        if decisions is None:
            assert set(confidences) == {None}
        else:
            np.testing.assert_allclose(confidences, decisions.posteriors, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fmatrix", "npy", "kaldi", "audio"])
def test_a_caller_written_from_model_json_decides_as_spkid_score(recordings, tmp_path, kind):
    source, db_path, listed = recordings[kind]
    jobs = []
    for normalize in get_args(Normalization):
        for edge in EDGE_CODES:
            name = f"{normalize}-{edge}"
            paths = random_model(tmp_path / name, normalize=normalize, edge=edge, source=source)
            out = tmp_path / f"{name}-out"
            export_model(ExportConfig(**paths, out=out, format="safetensors"))
            jobs.append((paths, out, db_path, listed, "safetensors"))
    compare_with_score(jobs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_layers_of_model_json_are_those_of_the_network(recordings, tmp_path, activation):
    source, db_path, listed = recordings["fmatrix"]
    options = {"batch_norm": True, "dropout": 0.5, "num_layers": 2, "normalize": "global", "source": source}
    paths = random_model(tmp_path / "model", activation=activation, **options)
    export_model(ExportConfig(**paths, out=tmp_path / "out", format="safetensors"))
    compare_with_score([(paths, tmp_path / "out", db_path, listed, "safetensors")])


@pytest.mark.parametrize("normalize", ["global", pytest.param("utterance", marks=pytest.mark.long)])
def test_the_graphs_follow_the_same_model_json(recordings, tmp_path, normalize):
    """An utterance of one window, a batch of 1, too; batch norm as it is after training, no dropout."""
    source, db_path, listed = recordings["fmatrix"]
    options = {"normalize": normalize, "edge": "valid", "batch_norm": True, "dropout": 0.5}
    paths = random_model(tmp_path / "model", source=source, **options)
    forms = ("onnx", "torch_export")
    export_model(ExportConfig(**paths, out=tmp_path / "out", format=",".join(forms)))
    compare_with_score([(paths, tmp_path / "out", db_path, listed, form) for form in forms])


def test_audio_options_of_cepstra_are_all_in_model_json(recordings, tmp_path):
    _, db_path, listed = recordings["audio"]
    features = FeatureOptions(
        kind="mfcc", sample_rate=RATE, num_bins=20, num_ceps=8, window_ms=20, channel=1
    ).describe()
    source = {"kind": "audio", "ext": "wav", "features": features}
    paths = random_model(tmp_path / "model", normalize="utterance", edge="zero", source=source)
    export_model(ExportConfig(**paths, out=tmp_path / "out", format="safetensors"))
    compare_with_score([(paths, tmp_path / "out", db_path, listed, "safetensors")])


def test_steps_after_the_features_are_all_in_model_json(recordings, tmp_path):
    """Mixed channels, edges, energy, deltas, sliding means, and the choice of frames, each by the caller of NumPy alone."""
    _, db_path, listed = recordings["audio"]
    jobs = []
    steps = {"use_energy": True, "delta_order": 1, "cmvn": "sliding", "cmvn_window": 20}
    for name, changes in {
        "voiced": {"kind": "mfcc", "num_ceps": 4, "vad": "energy", "vad_energy_threshold": -20.0, **steps},
        "edges": {"num_bins": 3, "reflect_edges": True, "low_freq": 100.0, "high_freq": -200.0, **steps},
    }.items():
        features = FeatureOptions(sample_rate=RATE, downmix=True, **changes)
        assert features.num_features == 8
        source = {"kind": "audio", "ext": "wav", "features": features.describe()}
        paths = random_model(tmp_path / name, source=source)
        export_model(ExportConfig(**paths, out=tmp_path / f"{name}-out", format="safetensors"))
        jobs.append((paths, tmp_path / f"{name}-out", db_path, listed, "safetensors"))
    compare_with_score(jobs)


@pytest.mark.parametrize(
    "options",
    [
        FeatureOptions(sample_rate=RATE, num_bins=24),
        FeatureOptions(sample_rate=RATE, num_bins=40, window_ms=32, shift_ms=7.3),  # 58 samples, and no zeros to pad
        FeatureOptions(sample_rate=RATE, num_bins=23, window_ms=25.5, kind="mfcc", num_ceps=23),
        FeatureOptions(sample_rate=RATE, num_bins=30, window_ms=20.2, kind="mfcc", num_ceps=13),
    ],
    ids=["log mel", "log mel of odd sizes", "all cepstra", "some cepstra"],
)
def test_features_computed_by_the_steps_of_model_json_are_ours(digits, tmp_path, options, monkeypatch):
    """Those of real speech; sums in another order and in float64 differ most where a bin's energy is least."""
    source = {"kind": "audio", "ext": "wav", "features": options.describe()}
    num_features = options.num_bins if options.kind == "fbank" else options.num_ceps
    torch.save(build_model(num_features * 3, 4, 2).state_dict(), tmp_path / "w.ckpt")
    train_opts = {"input_dim": num_features, "in_frames": 3, "hsize": 4, "num_spks": 2, "speakers": ["a", "b"]}
    (tmp_path / "train.opts").write_text(json.dumps(train_opts | {"source": source}))
    paths = {"weights_ckpt": tmp_path / "w.ckpt", "train_cfg": tmp_path / "train.opts"}
    model = json.loads(export_model(ExportConfig(**paths, out=tmp_path / "out", format="safetensors")).read_text())
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import onnx_caller

    files = sorted((digits / "wav").rglob("*.wav"))[::24]
    assert len(files) == 10
    for path in map(str, files):
        found = onnx_caller.compute_features(model["steps"][0], path)
        expected = compute_features(read_audio(path, options), options, path)
        assert found.dtype == expected.dtype == np.float32
        assert found.shape == expected.shape
        difference = np.abs(found - expected)
        assert np.median(difference) < 1e-4
        assert difference.max() < 1e-2


@pytest.mark.parametrize("kind", ["fbank", "mfcc"])
def test_model_json_names_every_option_of_the_feature_library(kind):
    """With its value, the usual ones too, so that no other version of it computes other features."""
    import kaldi_native_fbank

    library = {"fbank": kaldi_native_fbank.FbankOptions, "mfcc": kaldi_native_fbank.MfccOptions}[kind]().as_dict()
    given = kaldi_options(FeatureOptions(kind=kind))
    for ours, theirs in ((given, library), *((given[name], library[name]) for name in ("frame_opts", "mel_opts"))):
        assert ours.keys() == theirs.keys()
    changed = {"dither", "num_bins", "num_ceps", "use_energy"}  # from the library's usual values
    flat = {**library["frame_opts"], **library["mel_opts"], **library}
    for name, value in {**given["frame_opts"], **given["mel_opts"], **given}.items():
        if name not in changed | {"frame_opts", "mel_opts"}:
            assert value == (flat[name] if isinstance(value, str | bool) else pytest.approx(flat[name], rel=1e-6)), name


@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]) | st.integers(4000, 50_000),
    milliseconds=st.floats(20, 60) | st.integers(20, 60),
    shift=st.floats(1, 60) | st.integers(1, 60),
)
@settings(max_examples=60)
def test_sizes_in_samples_are_those_of_the_feature_library(rate, milliseconds, shift):
    options = FeatureOptions(sample_rate=rate, num_bins=3, window_ms=milliseconds, shift_ms=shift)
    cut = next(step for step in feature_steps(options) if step["step"] == "cut")

    def num_frames(count):
        extractor = make_extractor(options)
        extractor.accept_waveform(rate, np.zeros(count, np.float32))
        extractor.input_finished()
        return extractor.num_frames_ready

    size, step = cut["size"], cut["shift"]
    assert [num_frames(count) for count in (size - 1, size, size + step - 1, size + step)] == [0, 1, 1, 2]


def test_damaged_audio_features_leave_no_folder(tmp_path):
    source = {"kind": "audio", "ext": "wav", "features": {"kind": "plp"}}
    paths = random_model(tmp_path / "model", source=source)
    with pytest.raises(InputError, match=r"train\.opts: the audio features in train\.opts .*are damaged"):
        export_model(ExportConfig(**paths, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


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
    model_json = export_model(ExportConfig(**config, format=",".join(EXPORT_FORMATS)))
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
    stated = json.loads(export_model(ExportConfig(**config, format="onnx")).read_text())["onnx_opset"]
    assert [one.version for one in onnx.load(tmp_path / "out/model.onnx").opset_import if one.domain == ""] == [stated]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.onnx"}


def test_an_output_folder_that_is_not_empty_is_left_alone(trained, config, tmp_path):
    trained()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="out: exists and is not an empty folder; give --out a new one"):
        export_model(ExportConfig(**config))
    (tmp_path / "out/thesis.tex").unlink()
    export_model(ExportConfig(**config, format="safetensors"))


def test_weights_of_another_shape_leave_no_folder(trained, config, tmp_path):
    trained()
    torch.save(build_model(88, 17, 5).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"w\.ckpt: 0\.weight is \(17, 88\), but the options make it \(16, 88\)"):
        export_model(ExportConfig(**config))
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_and_leaves_no_folder(trained, config, tmp_path, monkeypatch):
    trained()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UsageError, match=r"onnxscript can't be imported .*-m pip install 'onnx>=1.17' 'onnxscript>=0.5'"
    ):
        export_model(ExportConfig(**config, format="safetensors,onnx"))
    assert {path.name for path in tmp_path.iterdir()} == {"w.ckpt", "train.opts"}


def test_an_unknown_format_is_refused(config):
    with pytest.raises(UsageError, match=r"--format 'onyx': expected some of safetensors,torch_export,onnx"):
        ExportConfig(**config, format="safetensors,onyx")
