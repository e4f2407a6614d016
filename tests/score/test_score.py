"""Scoring equals the plain computation, and says what it does not know."""

import json

import numpy as np
import pytest
import torch
from conftest import shard_folder
from http_store import serve
from training import run
from twins import twin_windows

from shards import InputError, Layout, UsageError
from shards.holding import FolderHold
from shards.sources.fmatrix import read_fmatrix
from spkid_dist.config import ScoreConfig
from spkid_dist.config.choices import EDGE_CODES
from spkid_dist.model import build_model
from spkid_dist.ranks.sharing import Processes
from spkid_dist.score import open_utterances, score_utterances
from spkid_dist.scoring.scorer import Scorer
from spkid_dist.trained import load_trained, read_options
from spkid_dist.weights.file import save_weights


@pytest.fixture
def model(synthetic, tmp_path):
    """A random network's weights and options, made by hand, for windows of `in_frames` under `edge`."""

    def make(in_frames, edge):
        torch.manual_seed(1)
        network = build_model(8 * in_frames, 16, 5)
        save_weights(network, tmp_path / "w.ckpt")
        options = {"input_dim": 8, "in_frames": in_frames, "hsize": 16, "num_spks": 5}
        options |= {"spk2idx": str(synthetic / "cfg/spk2idx.json")} | ({"edge": edge} if edge else {})
        (tmp_path / "train.opts").write_text(json.dumps(options))
        return network

    return make


@pytest.fixture
def config(synthetic, tmp_path):
    return {
        "db_path": synthetic / "mcp",
        "te_list_file": synthetic / "cfg/all.test",
        "weights_ckpt": tmp_path / "w.ckpt",
        "train_cfg": tmp_path / "train.opts",
        "log_file": tmp_path / "results.log",
    }


@pytest.mark.parametrize("edge", ["zero", "edge", "valid", None])
@pytest.mark.parametrize("batch_size", [1, 100, 10_000])
def test_the_speaker_is_the_argmax_of_summed_log_probabilities(model, config, edge, batch_size):
    network = model(7, edge)
    scores = score_utterances(ScoreConfig(**config, batch_size=batch_size))
    names = [f"spk{i:04d}" for i in range(5)]
    expected, wrong = [], []
    for key in config["te_list_file"].read_text().split():
        frames = read_fmatrix(f"{config['db_path']}/{key}.mcp")
        windows = torch.from_numpy(np.stack(twin_windows(frames, 7, EDGE_CODES[edge or "valid"])))
        with torch.no_grad():
            log_probs = network(windows)
        expected.append(f"{key}\t{names[int(log_probs.sum(dim=0).argmax())]}")
        wrong.append(int((log_probs.argmax(dim=1) != names.index(key.split("/")[1])).sum()))
    assert config["log_file"].read_text().splitlines() == expected
    assert scores.wrong_windows.tolist() == wrong


def test_two_scorings_do_not_write_the_same_results(model, config, tmp_path):
    model(3, "zero")
    config = {**config, "log_file": tmp_path / "out/results.log"}
    with FolderHold(tmp_path / "out", "", [].append, name=".results.json.held-by.json"):
        for name in ("results.log", "results.txt"):  # which have their figures in one file
            with pytest.raises(InputError, match=r"out: in use by process \d+ on .*give another --log_file"):
                score_utterances(ScoreConfig(**config | {"log_file": tmp_path / "out" / name}))
        score_utterances(ScoreConfig(**config | {"log_file": tmp_path / "out/others.log"}))
    assert not config["log_file"].exists()
    score_utterances(ScoreConfig(**config))
    assert not list((tmp_path / "out").glob(".*"))


def test_an_utterance_shorter_than_the_window_gets_a_speaker(model, config):
    model(500, "valid")
    score_utterances(ScoreConfig(**config))
    assert len(config["log_file"].read_text().splitlines()) == 10


def test_utterances_of_unknown_speakers_are_left_out_of_the_rates(model, config, synthetic, tmp_path, capsys):
    model(3, "zero")
    source = synthetic / "mcp" / "SYN/spk0000/spk0000_0000.mcp"
    (tmp_path / "db/who").mkdir(parents=True)
    (tmp_path / "db/who/x.mcp").write_bytes(source.read_bytes())
    (tmp_path / "db/flat.mcp").write_bytes(source.read_bytes())
    (tmp_path / "list").write_text("who/x\nflat\n")
    score_utterances(ScoreConfig(**(config | {"db_path": tmp_path / "db", "te_list_file": tmp_path / "list"})))
    assert "no true speaker is known" in capsys.readouterr().out


def test_verbose_prints_each_speaker(model, config, capsys):
    model(3, "zero")
    score_utterances(ScoreConfig(**config, verbose=True))
    printed = capsys.readouterr().out
    assert all(line in printed for line in config["log_file"].read_text().splitlines())


def break_options(**changes):
    def change(folder):
        options = read_options(folder / "train.opts")
        (folder / "train.opts").write_text(json.dumps(options | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "w.ckpt").unlink(), r"w\.ckpt: can't read these weights: No such file"),
        (
            lambda f: (f / "w.ckpt").write_bytes(b"PK\x03\x04 no"),
            r"w\.ckpt: no file of torch\.save, or a damaged one",
        ),
        (lambda f: torch.save([1], f / "w.ckpt"), r"w\.ckpt: holds a list, expected 0\.weight, 0\.bias"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "w.ckpt"), r"w\.ckpt: holds a, expected 0\.weight"),
        (break_options(hsize=17), r"w\.ckpt: 0\.weight is \(16, 24\), but the options make it \(17, 24\)"),
        (break_options(hsize="x"), r"train\.opts: hsize is 'x', expected a whole number"),
        (break_options(activation="step"), r"train\.opts: activation is 'step', expected one of relu, gelu"),
        (break_options(normalize=None), r"train\.opts: normalize is None, expected one of none, global, utterance"),
        (break_options(dropout=1), r"train\.opts: dropout is 1, expected a number from 0, below 1"),
        (break_options(batch_norm=True), r"w\.ckpt: holds .*, expected 0\.weight, 0\.bias, 1\.weight"),
        (break_options(num_spks=6), r"num_spks is 6, but there are 5 speaker names"),
        (lambda f: (f / "train.opts").write_text("{"), r"train\.opts: the training options: not JSON: .* at line 1"),
        (lambda f: (f / "train.opts").unlink(), r"train\.opts: can't read the training options"),
    ],
)
def test_files_that_do_not_fit_are_refused(model, config, tmp_path, damage, message):
    model(3, "zero")
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        score_utterances(ScoreConfig(**config))
    assert not config["log_file"].exists()


def test_an_utterance_that_does_not_exist_is_refused(model, config, tmp_path):
    model(3, "zero")
    (tmp_path / "list").write_text("SYN/spk0000/spk0000_0000\nSYN/spk0000/nobody\n")
    with pytest.raises(InputError, match=r"nobody\.mcp: can't read this feature file: No such file"):
        score_utterances(ScoreConfig(**(config | {"te_list_file": tmp_path / "list"})))
    assert not config["log_file"].exists()


@pytest.fixture
def shards(synthetic, tmp_path):
    """The test utterances as a dataset of some blocks."""
    layout = Layout(block_frames=150)
    return shard_folder(synthetic, synthetic / "cfg/all.test", tmp_path / "shards", layout).folder


@pytest.mark.parametrize("edge", ["zero", "valid"])
def test_shards_score_as_their_files_do(model, config, shards, edge):
    model(70, edge)  # some utterances are shorter
    from_files = score_utterances(ScoreConfig(**config))
    config["log_file"].unlink()
    both = score_utterances(ScoreConfig(**(config | {"te_shards": shards})))
    assert config["log_file"].read_text().split("\n")[0].split("\t")[0] == from_files.keys[0]
    assert (both.keys, both.found.tolist()) == (from_files.keys, from_files.found.tolist())
    np.testing.assert_allclose(both.mean_log_probs, from_files.mean_log_probs, rtol=1e-5)
    np.testing.assert_array_equal(both.frames, from_files.frames)
    np.testing.assert_array_equal(both.true, from_files.true)
    whole = score_utterances(ScoreConfig(**(config | {"te_shards": shards, "te_list_file": None})))
    assert sorted(whole.keys) == sorted(from_files.keys)
    assert dict(zip(whole.keys, whole.found, strict=True)) == dict(zip(from_files.keys, from_files.found, strict=True))


def figures(folder):
    """All figures of a results file's JSON but those that tell the time."""
    facts = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in facts.items() if "second" not in name}


@pytest.mark.parametrize("listed", [True, False])
def test_shards_at_a_url_score_as_those_of_a_folder(model, config, shards, tmp_path, listed):
    model(7, "zero")
    config |= {"pictures": False} | ({} if listed else {"te_list_file": None})
    local = score_utterances(
        ScoreConfig(**(config | {"te_shards": str(shards), "log_file": tmp_path / "local/results.log"}))
    )
    with serve(shards, failing=0.2, flipped=0.1) as store:
        config |= {"te_shards": store.url, "shard_cache": tmp_path / "cache"}
        found = score_utterances(ScoreConfig(**(config | {"log_file": tmp_path / "remote/results.log"})))
        assert store.faults > 0
        ranges = [asked for name, asked in store.requests if name.endswith(".tar")]
        store.requests.clear()
        score_utterances(ScoreConfig(**(config | {"log_file": tmp_path / "again/results.log"})))
        assert store.count(".tar") == 0  # all blocks are in the cache
    assert None not in ranges
    assert len(ranges) >= 4
    np.testing.assert_array_equal(found.mean_log_probs, local.mean_log_probs)  # the same bits
    lines = (tmp_path / "local/results.log").read_bytes()
    for name in ("remote", "again"):
        assert (tmp_path / name / "results.log").read_bytes() == lines
        assert figures(tmp_path / name) == figures(tmp_path / "local")


def test_a_server_of_whole_files_needs_a_cache_to_score(model, config, shards):
    model(7, "zero")
    with serve(shards, ranges=False) as store, pytest.raises(InputError, match=r"whole files only.*give --shard_cache"):
        score_utterances(ScoreConfig(**(config | {"te_shards": store.url})))
    assert not config["log_file"].exists()


def test_a_dataset_that_is_not_at_the_url_is_one_clear_line(model, config, tmp_path):
    model(7, "zero")
    with (
        serve(tmp_path) as store,
        pytest.raises(InputError, match=r"manifest\.json: there is no such file; give the URL"),
    ):
        score_utterances(ScoreConfig(**(config | {"te_shards": store.url})))


def test_a_list_chooses_and_orders_the_utterances_of_shards(model, config, shards, tmp_path):
    model(3, "zero")
    keys = config["te_list_file"].read_text().split()[7:2:-2]
    (tmp_path / "list").write_text("\n".join(keys))
    result = score_utterances(ScoreConfig(**(config | {"te_shards": shards, "te_list_file": tmp_path / "list"})))
    assert result.keys == keys
    assert [line.split("\t")[0] for line in config["log_file"].read_text().splitlines()] == keys
    (tmp_path / "list").write_text("SYN/spk0000/nobody\n" + keys[0])
    with pytest.raises(
        InputError, match=r"list: utterance 'SYN/spk0000/nobody' is not in the dataset .*\(1 of 2 are not\)"
    ):
        score_utterances(ScoreConfig(**(config | {"te_shards": shards, "te_list_file": tmp_path / "list"})))


def test_shards_of_other_features_are_refused(model, config, shards, tmp_path):
    model(3, "zero")
    break_options(input_dim=4)(tmp_path)
    torch.save(build_model(12, 16, 5).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"shards: its features per frame are 8, but the model was trained on 4"):
        score_utterances(ScoreConfig(**(config | {"te_shards": shards})))


@pytest.mark.parametrize("edge", ["valid", "zero"])
def test_batches_as_a_gpu_has_them_give_what_batches_on_the_host_give(model, config, shards, edge, monkeypatch):
    model(7, edge)
    options = config | {"te_shards": shards, "batch_size": 64}
    expected = score_utterances(ScoreConfig(**options))
    made = Scorer.__init__

    def on_device(self, *arguments, **more):
        made(self, *arguments, **more)
        self._on_device = self.device_scores()

    monkeypatch.setattr(Scorer, "__init__", on_device)
    monkeypatch.setattr("spkid_dist.scoring.scorer.BATCHES_LAID_OUT", 1)  # several layouts
    found = score_utterances(ScoreConfig(**options))
    assert np.array_equal(found.found, expected.found)
    assert np.array_equal(found.wrong_windows, expected.wrong_windows)
    assert found.mean_log_probs == pytest.approx(expected.mean_log_probs, abs=1e-6)


def test_two_processes_write_what_one_writes(model, config, shards, tmp_path):
    model(7, "valid")
    one = score_utterances(ScoreConfig(**config, pictures=False))
    options = config | {"te_shards": shards, "log_file": tmp_path / "two.log"}
    done = run(options, processes=2, module=("-m", "spkid_dist.score", "--no-pictures"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "two.log").read_text() == config["log_file"].read_text()
    facts = json.loads((tmp_path / "two.json").read_text())
    assert facts["processes"] == 2
    assert facts["utterance_errors"]["errors"] == one.rates.utterances.errors
    assert facts["frame_errors"]["errors"] == one.wrong_windows.sum()
    assert facts["claimed_speakers"]["equal_error_rate"] == pytest.approx(one.det.equal_error[0])


@pytest.mark.parametrize("on_cpus", ["true", "false"])
def test_a_lone_process_of_several_is_refused(on_cpus, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_cpus)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2, but this process is alone.*launch .* -m spkid_dist\.score"):
        Processes("score")


def test_a_word_that_does_not_say_whether_to_use_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "perhaps")
    with pytest.raises(UsageError, match=r"ACCELERATE_USE_CPU is 'perhaps': expected true or false"):
        Processes("score")


@pytest.mark.parametrize("kind", ["files", "shards", "some of the shards"])
@pytest.mark.parametrize("world_size", [1, 3, 20])
def test_ranks_share_the_utterances_out(model, config, shards, kind, world_size):
    model(3, "zero")
    if kind != "files":
        config |= {"te_shards": shards}
    if kind == "shards":
        config |= {"te_list_file": None}
    trained = load_trained(config["weights_ckpt"], config["train_cfg"], None)
    utterances = open_utterances(ScoreConfig(**config), trained)
    positions = []
    for rank in range(world_size):
        groups = list(utterances.groups(rank, world_size, workers=2))
        assert sum(len(group.keys) for group in groups) == utterances.share_size(rank, world_size)
        positions += [position for group in groups for position in group.positions]
    assert sorted(positions) == list(range(10)) == list(range(utterances.count))


def test_figures_and_pictures_lie_beside_the_results(model, config, capsys):
    model(3, "zero")
    result = score_utterances(ScoreConfig(**config))
    facts = json.loads(config["log_file"].with_suffix(".json").read_text())
    printed = capsys.readouterr().out
    assert f"{facts['utterance_errors']['errors']} of {facts['utterance_errors']['total']}" in printed
    assert f"equal error rate of claimed speakers: {facts['claimed_speakers']['equal_error_rate']:.2%}" in printed
    assert facts["windows"] == result.windows.sum()
    for name in ("confusion", "lengths", "det"):
        assert config["log_file"].with_suffix(f".{name}.png").read_bytes().startswith(b"\x89PNG")


def test_bfloat16_scores_nearly_the_same(model, config):
    model(7, "valid")
    exact, rounded = (
        score_utterances(ScoreConfig(**config, pictures=False, mixed_precision=name)) for name in ("no", "bf16")
    )
    assert (exact.mean_log_probs != rounded.mean_log_probs).any()
    np.testing.assert_allclose(rounded.mean_log_probs, exact.mean_log_probs, atol=0.05)


def test_an_extension_that_is_given_counts_for_every_kind_of_source(model, config, synthetic, tmp_path):
    network = model(3, "zero")
    assert network is not None
    key = config["te_list_file"].read_text().split()[0]
    (tmp_path / "list").write_text(key)
    options = config | {"db_path": tmp_path / "db", "te_list_file": tmp_path / "list"}
    frames = read_fmatrix(f"{synthetic}/mcp/{key}.mcp")
    for ext in ("mcp", "other"):
        path = tmp_path / f"db/{key}.{ext}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.save(file, frames)
    break_options(source={"kind": "npy", "ext": "other"})(tmp_path)
    assert score_utterances(ScoreConfig(**options, pictures=False, ext="mcp")).frames == len(frames)
    (tmp_path / f"db/{key}.mcp").unlink()
    assert score_utterances(ScoreConfig(**options, pictures=False)).frames == len(frames)
    with pytest.raises(InputError, match=r"\.mcp: can't read this feature file"):
        score_utterances(ScoreConfig(**options, ext="mcp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_file": "x.json"}, r"--log_file x\.json: .*give another ending"),
        ({"te_shards": "x", "speaker_component": 1}, r"--speaker_component with --te_shards: a dataset has its own"),
        ({"te_shards": "x", "ext": "mcp"}, r"--ext with --te_shards"),
        ({"te_shards": "x", "shard_cache_bytes": 0}, r"--shard_cache_bytes 0: expected 1 or more"),
        ({"batch_size": 0}, r"--batch_size 0: expected 1 or more"),
        ({"workers": 0}, r"--workers 0: expected 1 or more"),
    ],
)
def test_flags_that_can_not_be_are_refused(config, changes, message):
    paths = {name: type(config["log_file"])(value) for name, value in changes.items() if isinstance(value, str)}
    with pytest.raises(UsageError, match=message):
        ScoreConfig(**(config | changes | {name: paths[name] for name in paths if name != "ext"}))


def test_half_precision_needs_a_gpu(model, config):
    model(3, "zero")
    with pytest.raises(UsageError, match="fp16: needs a GPU"):
        score_utterances(ScoreConfig(**config, mixed_precision="fp16"))


def test_features_of_another_size_are_refused(model, config, tmp_path):
    model(3, "zero")
    break_options(input_dim=4)(tmp_path)
    torch.save(build_model(12, 16, 5).state_dict(), tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=r"spk0000_0006\.mcp: 8 features per frame, but the model was trained on 4"):
        score_utterances(ScoreConfig(**config))
