"""JSON of a training's folder with anything in the place of each value: one line, or an answer; never a traceback."""

import json

import numpy as np
import pytest
from trained_folders import SPEAKERS, make_training

from shards import InputError, SpkidError
from shards.corpus import read_speakers
from spkid_dist import load_model
from spkid_dist.commands.report import report
from spkid_dist.commands.results import results
from spkid_dist.config import ReportConfig, ResultsConfig
from spkid_dist.scoring.modeljson import describe_export
from spkid_dist.scoring.trainedon import trained_on
from spkid_dist.trained import load_trained, read_options
from spkid_dist.trainedfolder import best_weights, read_statistics

pytestmark = pytest.mark.fast

TEXTS = {
    "empty": b"",
    "half an object": b"{",
    "a list": b"[1]",
    "null": b"null",
    "a number": b"5",
    "a text": b'"text"',
    "an empty object": b"{}",
    "deep lists": b"[" * 50_000 + b"]" * 50_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "5,000 digits": b'{"input_dim": ' + b"1" * 5000 + b"}",
    "400 digits": b'{"input_dim": ' + b"1" * 400 + b"}",
    "a number too large": b'{"input_dim": 1e999}',
    "NaN": b'{"input_dim": NaN}',
    "a name twice": b'{"input_dim": 8, "input_dim": 8}',
    "half a character": b'{"input_dim": "\\ud800"}',
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "bytes": bytes(range(256)),
    "zeros": bytes(5000),
    "many items": b"[" + b"1," * 100_000 + b"1]",
}
STRANGE = [
    None, True, -1, 0, 1.5, 2**63, 10**400, 1e308, "", "text", "../../x", "a\x1b[2Jb\nc\td", "\udc80", "NaN",
    [], [None], [[[[]]]], {}, {"a": {"b": 1}}, ["a"] * 3, ["ana", "ana", "eve"], [1, 2, 3], "\0", "x" * 400,
]  # fmt: skip
OPTIONS = {
    "tr_shards": "data/train", "tr_list_file": "cfg/list", "cache_dir": "cache", "save_path": "ckpt", "best_by": "loss",
    "edge": "valid", "normalize": "none", "num_layers": 3, "activation": "relu", "dropout": 0.0, "batch_norm": False,
    "tr_utterances": None, "tr_speakers": None, "tr_fingerprint": "a", "tr_keys": "1:2", "training_id": "a",
    "speaker_component": 2, "spk2idx": "cfg/spk2idx.json", "ext": "mcp",
}  # fmt: skip
SUMMARY = {
    "windows": 5, "run_windows_per_second": 5.0, "run_waiting_share": 0.1, "run_training_seconds": 5.0,
    "run_validation_seconds": 5.0, "run_checkpoint_seconds": 5.0, "environment": {"python": "3"},
}  # fmt: skip
RATE = {"errors": 1, "total": 2, "rate": 0.5, "low": 0.1, "high": 0.9}
SCORING = {
    "weights_ckpt": "w.ckpt", "utterances": 5, "utterance_errors": RATE, "frame_errors": RATE,
    "claimed_speakers": {"equal_error_rate": 0.1}, "confidence": {"nll": 0.1, "expected_calibration_error": 0.1},
    "open_set": {"false_acceptances": RATE},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_training(tmp_path_factory.mktemp("json") / "ckpt")


def written(path, value):
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())


def use_options(place):
    """All that reads train.opts."""
    opts = place / "train.opts"
    options = read_options(opts)
    trained_on(options, np.arange(3, dtype=np.uint64), "a")
    trained = load_trained(place / "bestval_e0_weights.ckpt", opts, None)
    json.dumps(describe_export(trained, {}, "w.ckpt", None))
    load_model(place)


def use_folder(place):
    """What shows a training."""
    report(ReportConfig(save_path=place, score=place / "scoring.json", out=place / "x.html"))
    results(ResultsConfig(folder=place))
    best_weights(place)


def check(use, *arguments):
    """An answer, or one line."""
    try:
        use(*arguments)
    except SpkidError as error:
        message = str(error)
        assert "\n" not in message
        assert message.isprintable()
        assert len(message) < 1500, message[:2000]
        return message
    return None


@pytest.mark.parametrize("name", ["train.opts", "train_stats.json", "summary.json", "scoring.json"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_file_that_is_no_json_of_ours_is_one_line(place, name, text, monkeypatch):
    monkeypatch.chdir(place)
    before = {path: path.read_bytes() for path in place.iterdir()}
    written(place / "summary.json", SUMMARY)
    written(place / "scoring.json", SCORING)
    (place / name).write_bytes(TEXTS[text])
    message = check(use_folder, place)
    assert message is None or name in message
    assert message is not None or name in ("summary.json", "scoring.json")
    if name == "train.opts":
        assert name in check(use_options, place)
    for path in place.iterdir():
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)


def replaced(values, strange_values=STRANGE):
    """The object with each value of it, and of objects in it, replaced by each strange one, or left out."""
    for name, value in values.items():
        for strange in strange_values:
            yield values | {name: strange}
        if isinstance(value, dict):
            for inner in replaced(value, strange_values):
                yield values | {name: inner}
        yield {one: other for one, other in values.items() if one != name}


def test_any_value_in_the_place_of_an_option_is_one_line_or_an_answer(place, monkeypatch):
    monkeypatch.chdir(place)
    opts = place / "train.opts"
    sound = json.loads(opts.read_text())
    refused = 0
    for options in replaced(sound | OPTIONS):
        written(opts, options)
        refused += check(use_options, place) is not None
    written(opts, sound)
    assert refused > 100


def test_any_value_in_the_place_of_what_a_page_shows_is_one_line_or_shown(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("spkid_dist.commands.report.draw_curves", lambda _: b"")
    opts, stats = place / "train.opts", place / "train_stats.json"
    sound, statistics = json.loads(opts.read_text()), json.loads(stats.read_text())
    written(place / "summary.json", SUMMARY)
    written(place / "scoring.json", SCORING)
    for name, values in (("scoring.json", SCORING), ("summary.json", SUMMARY), ("train_stats.json", statistics)):
        before = (place / name).read_bytes()
        for changed in replaced(values, STRANGE[::4]):
            written(place / name, changed)
            check(use_folder, place)
        (place / name).write_bytes(before)
    for strange in STRANGE:
        written(
            opts,
            sound
            | {"best_by": strange, "source": strange, "tr_fingerprint": strange, "lr": strange, "save_path": strange},
        )
        check(use_folder, place)
        written(opts, sound | {"lr": strange})
        assert check(use_folder, place) is None
    written(opts, sound)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"va_loss": "x"}, "va_loss is 'x', expected a list"),
        ({"va_loss": [True]}, r"va_loss\[0\] is True, expected a number or null"),
        ({"va_acc": []}, "1 values of va_loss, 0 of va_acc"),
        ({"tr_acc": [0.5]}, "0 values of tr_loss, 1 of tr_acc"),
        ({"va_wrong": [1.5]}, r"va_wrong is \[1\.5\], expected a list or null"),
        ({"va_wrong": [-1]}, r"va_wrong is \[-1\], expected a list or null"),
        ({"avg_loss": [10**400]}, r"avg_loss is \[10+\.\.\., expected a list or null"),
    ],
)
def test_statistics_of_other_values_name_the_place(tmp_path, columns, message):
    sound = {"tr_loss": [], "tr_acc": [], "va_loss": [0.5], "va_acc": [0.9]}
    written(tmp_path / "train_stats.json", sound | columns)
    with pytest.raises(InputError, match=rf"train_stats\.json: not the statistics of a training: {message}"):
        read_statistics(tmp_path, {})


@pytest.mark.parametrize("text", TEXTS)
def test_a_speaker_map_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "spk2idx.json").write_bytes(TEXTS[text])
    assert "spk2idx.json" in check(read_speakers, tmp_path / "spk2idx.json")


def test_a_speaker_stands_in_the_map_once(tmp_path):
    (tmp_path / "spk2idx.json").write_text('{"ana": 0, "bob": 1, "ana": 1}')
    with pytest.raises(
        InputError, match=r"spk2idx\.json: the speaker map: 'ana' stands twice in one object; give a JSON file"
    ):
        read_speakers(tmp_path / "spk2idx.json")


def test_the_sound_files_are_read(place):
    use_options(place)
    assert read_options(place / "train.opts")["speakers"] == SPEAKERS
