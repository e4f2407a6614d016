"""An embedding is the mean and the deviation of the last hidden layer's outputs, whatever else is embedded with it."""

import json
import struct

import kaldiio
import numpy as np
import pytest
import torch
from conftest import random_dataset
from trained_folders import make_training
from training import run
from twins import twin_windows

from shards import InputError, ShardDataset, UsageError
from shards.sources.fmatrix import read_fmatrix, write_fmatrix
from spkid_dist.commands.embed import embed_utterances as embed
from spkid_dist.config import EmbedConfig
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.model import model_from_options
from spkid_dist.scoring import scorefile
from spkid_dist.scoring.embeddingfile import WRITERS, read_embeddings, write_embeddings
from spkid_dist.streaming.normalization import normalize_frames

SPEAKERS = ["ana", "bß", "çé"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A dataset of utterances of 1 to 59 frames of 3 features, and the folder of its files."""
    folder = tmp_path_factory.mktemp("embed")
    dataset = random_dataset(folder)
    data = ShardDataset(dataset)
    keys = sorted(key for block in range(len(data.blocks)) for key in data.keys(block, data.read_block(block)))
    (folder / "list").write_text("".join(f"{key}\n" for key in keys[::-1]))
    return folder


def options_of(corpus, place, **changes):
    return {"model": place, "db_path": corpus / "mcp", "te_list_file": corpus / "list"} | changes


def training(tmp_path, **changes):
    source = {"kind": "fmatrix", "ext": "mcp"}
    usual = {"input_dim": 3, "in_frames": 16, "speakers": SPEAKERS, "hsize": 5}
    return make_training(tmp_path / "ckpt", source, **usual | changes)


NETWORKS = {
    "as usual": {},
    "one layer": {"num_layers": 1, "edge": "edge"},
    "batch norm and dropout": {"batch_norm": True, "dropout": 0.5, "edge": "zero", "activation": "tanh"},
    "normalised globally": {"normalize": "global"},
    "normalised per utterance": {"normalize": "utterance", "edge": "edge"},
}


def twin(frames, options, state):
    """The embedding of frames (T, D), written to be obviously right."""
    network = model_from_options(options)
    network.load_state_dict(state)
    network.eval()
    edge = options.get("edge", "valid")
    if options.get("normalize") == "utterance":
        frames = normalize_frames(frames, np.array([len(frames)], np.int32))
    if edge == "valid" and len(frames) < options["in_frames"]:
        edge = "edge"
    outputs = torch.from_numpy(np.stack(twin_windows(frames, options["in_frames"], EDGE_CODES[edge])))
    with torch.no_grad():
        for layer in list(network)[:-2]:
            outputs = layer(outputs)
    outputs = outputs.double().numpy()
    return np.concatenate((outputs.mean(axis=0), outputs.std(axis=0)))


@pytest.mark.parametrize("network", NETWORKS)
def test_an_embedding_is_mean_and_deviation_of_the_last_hidden_layer(corpus, tmp_path, network):
    place = training(tmp_path, **NETWORKS[network])
    embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / "out.npz", batch_size=7)))
    found = read_embeddings(tmp_path / "out.npz")
    assert found.keys == (corpus / "list").read_text().split()
    assert (found.vectors.shape, found.vectors.dtype) == ((36, 10), np.float32)
    options, state = json.loads((place / "train.opts").read_text()), torch.load(place / "bestval_e0_weights.ckpt")
    for key, vector in zip(found.keys, found.vectors, strict=True):
        expected = twin(read_fmatrix(f"{corpus}/mcp/{key}.mcp"), options, state)
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)
    assert found.vectors[:, 5:].max() > 0.01


def test_an_embedding_does_not_depend_on_what_is_embedded_with_it(corpus, tmp_path, monkeypatch):
    """Its bits: from files and from shards, alone, in pieces, by two processes, by one thread and by two."""
    place = training(tmp_path, normalize="global")
    embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / "files.npz")))
    expected = (tmp_path / "files.npz").read_bytes()
    dataset = {"te_shards": str(corpus / "dataset")}
    monkeypatch.setattr(scorefile, "PIECE_BYTES", 4 * 10 * 5)
    torch.set_num_threads(2)
    try:
        embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / "shards.npz", **dataset)))
    finally:
        torch.set_num_threads(1)
    assert (tmp_path / "shards.npz").read_bytes() == expected
    options = options_of(corpus, place, out=tmp_path / "two.npz", te_shards=corpus / "dataset")
    done = run(options, processes=2, module=("-m", "spkid_dist", "embed"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two.npz").read_bytes() == expected
    (tmp_path / "one").write_text((corpus / "list").read_text().splitlines()[3] + "\n")
    embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / "one.npz", te_list_file=tmp_path / "one")))
    np.testing.assert_array_equal(
        read_embeddings(tmp_path / "one.npz").vectors[0], read_embeddings(tmp_path / "files.npz").vectors[3]
    )


def test_all_utterances_of_a_dataset_are_embedded_where_no_list_chooses(corpus, tmp_path):
    place = training(tmp_path)
    embed(EmbedConfig(model=place, te_shards=str(corpus / "dataset"), out=tmp_path / "out.npz"))
    assert sorted(read_embeddings(tmp_path / "out.npz").keys) == sorted((corpus / "list").read_text().split())


def test_bfloat16_is_near_to_float32(corpus, tmp_path):
    place = training(tmp_path)
    for precision in ("no", "bf16"):
        embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / f"{precision}.npz", mixed_precision=precision)))
    full, half = (read_embeddings(tmp_path / f"{name}.npz").vectors for name in ("no", "bf16"))
    assert 0 < np.abs(full - half).max() < 0.02 * np.abs(full).max()


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)


KEYS = [f"B/ü{number}" for number in range(7)]


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_file_holds_the_same(tmp_path, vectors, ending):
    path = tmp_path / f"out{ending}"
    write_embeddings(path, KEYS, [vectors[:3], vectors[3:4], vectors[4:]], 6)
    found = read_embeddings(path)
    assert found.keys == KEYS
    np.testing.assert_array_equal(found.vectors, vectors)
    first = path.read_bytes()
    write_embeddings(path, KEYS, [vectors], 6)
    assert path.read_bytes() == first


def test_numpy_and_kaldi_read_the_files_themselves(tmp_path, vectors, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ending in WRITERS:
        write_embeddings((tmp_path / f"out{ending}").relative_to(tmp_path), KEYS, [vectors], 6)
    with np.load("out.npz", allow_pickle=False) as arrays:
        assert arrays["keys"].tolist() == KEYS
        np.testing.assert_array_equal(arrays["embeddings"], vectors)
    np.testing.assert_array_equal(np.load("out.npy"), vectors)
    assert (tmp_path / "out.keys").read_text().splitlines() == KEYS
    by_ark, by_scp = dict(kaldiio.load_ark("out.ark")), kaldiio.load_scp("out.scp")
    assert list(by_ark) == list(by_scp) == KEYS
    for key, vector in zip(KEYS, vectors, strict=True):
        np.testing.assert_array_equal(by_ark[key], vector)
        np.testing.assert_array_equal(by_scp[key], vector)


def damage_npz(path, **arrays):
    np.savez(path, **arrays)


def kaldi_vector(key, values, count=None):
    return key.encode() + b" \0BFV \4" + struct.pack("<i", len(values) if count is None else count) + values.tobytes()


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
DAMAGED = {
    "not there": ("a.npz", lambda _: None, r"a\.npz: can't read these embeddings: No such file"),
    "no zip": ("a.npz", lambda p: p.write_bytes(b"PK\x03\x04 no"), r"a\.npz: not a sound file of embeddings"),
    "no keys": ("a.npz", lambda p: np.savez(p, embeddings=ROWS), r"a\.npz: not a sound file of embeddings: .*keys"),
    "objects": (
        "a.npz",
        lambda p: np.savez(p, keys=np.array([{}]), embeddings=ROWS),
        r"a\.npz: not a sound .*object of shape \(1,\), expected numbers or text",
    ),
    "numbers as keys": (
        "a.npz",
        lambda p: np.savez(p, keys=[1, 2], embeddings=ROWS),
        r"keys is int64 of shape \(2,\), expected a list of text",
    ),
    "fewer keys": ("a.npz", lambda p: np.savez(p, keys=["a"], embeddings=ROWS), r"of shape \(2, 3\), expected 1 rows"),
    "a key twice": ("a.npz", lambda p: np.savez(p, keys=["a", "a"], embeddings=ROWS), r"utterance 'a' occurs twice"),
    "NaN": (
        "a.npz",
        lambda p: np.savez(p, keys=["a", "b"], embeddings=ROWS * np.nan),
        r"embedding of 'a' has values that",
    ),
    "no companion": ("a.npy", lambda p: np.save(p, ROWS), r"a\.keys: can't read the keys of these embeddings"),
    "an archive": (
        "a.npy",
        lambda p: np.savez(p.with_suffix(".npz"), ROWS) or p.with_suffix(".npz").rename(p),
        r"a\.(npy|keys)",
    ),
    "a matrix": (
        "a.ark",
        lambda p: kaldiio.save_ark(str(p), {"a": ROWS}),
        r"b'.*FM .*' follows the key at byte 0, expected",
    ),
    "a pickle": (
        "a.ark",
        lambda p: p.write_bytes(b"a PKL\x80\x04K\x01." + bytes(20)),
        r"expected a binary float vector",
    ),
    "half a vector": (
        "a.ark",
        lambda p: p.write_bytes(kaldi_vector("a", ROWS[0])[:-1]),
        r"the vector at byte 2 should have 3",
    ),
    "a length below 0": ("a.ark", lambda p: p.write_bytes(kaldi_vector("a", ROWS[0], -3)), r"should have -3 values"),
    "two sizes": (
        "a.ark",
        lambda p: p.write_bytes(kaldi_vector("a", ROWS[0]) + kaldi_vector("b", ROWS[0, :2])),
        r"no vectors, or of several sizes",
    ),
    "empty": ("a.ark", lambda p: p.write_bytes(b""), r"no vectors, or of several sizes"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_embeddings_is_one_line(tmp_path, case):
    name, write, message = DAMAGED[case]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / name)


def test_a_file_of_no_known_ending_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(UsageError, match=r"out\.txt: expected a name that ends in \.npz, \.npy, \.ark"):
        embed(EmbedConfig(model=tmp_path / "gone", out=tmp_path / "out.txt"))
    with pytest.raises(UsageError, match=r"a\.scp: expected embeddings in a file that ends in"):
        read_embeddings(tmp_path / "a.scp")


def test_a_key_that_kaldi_cannot_hold_leaves_no_file(tmp_path):
    place = training(tmp_path)
    (tmp_path / "mcp/B").mkdir(parents=True)
    write_fmatrix(tmp_path / "mcp/B/a b.mcp", np.ones((30, 3), np.float32))
    (tmp_path / "list").write_text("B/a b\n")
    files = {"db_path": tmp_path / "mcp", "te_list_file": tmp_path / "list", "out": tmp_path / "out/e.ark"}
    with pytest.raises(InputError, match=r"e\.ark: key 'B/a b' has white space, .*give a file that ends in \.npz"):
        embed(EmbedConfig(model=place, **files))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_utterance_leaves_the_former_file_as_it_was(tmp_path, corpus):
    place = training(tmp_path)
    (tmp_path / "out.npy").write_bytes(b"former")
    (tmp_path / "list").write_text((corpus / "list").read_text() + "B/ana/nobody\n")
    with pytest.raises(InputError, match=r"nobody\.mcp: can't read this feature file"):
        embed(EmbedConfig(**options_of(corpus, place, te_list_file=tmp_path / "list", out=tmp_path / "out.npy")))
    assert {path.name for path in tmp_path.iterdir()} == {"ckpt", "list", "out.npy"}
    assert (tmp_path / "out.npy").read_bytes() == b"former"


def test_weights_of_a_training_that_diverged_give_no_embeddings(tmp_path, corpus):
    place = training(tmp_path)
    state = torch.load(place / "bestval_e0_weights.ckpt")
    state["0.weight"][:] = np.nan
    torch.save(dict(state), place / "bestval_e0_weights.ckpt")  # without its digest
    with pytest.raises(
        InputError, match=r"bestval_e0_weights\.ckpt: 0\.weight is not finite in all its values: .*; give others"
    ):
        embed(EmbedConfig(**options_of(corpus, place, out=tmp_path / "out.npz")))
    assert not (tmp_path / "out.npz").exists()
