"""`spkid identify` decides as `spkid score` does, and answers for each file by itself."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from trained_folders import FEATURES, SPEAKERS, files_of, make_training, write_recordings, write_wav

from shards import InputError
from spkid_dist import load_model
from spkid_dist.config import ScoreConfig
from spkid_dist.score import score_utterances
from spkid_dist.scoring import scorer
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.calibrationfile import write_calibration

IDENTIFY = (sys.executable, "-m", "spkid_dist", "identify")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of recordings and their features, and their keys."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_recordings(folder)


NETWORKS = {
    "as usual": {},
    "one layer, edge frames": {"num_layers": 1, "edge": "edge"},
    "zero frames, batch norm and dropout": {"edge": "zero", "batch_norm": True, "dropout": 0.5},
    "normalised globally": {"normalize": "global", "activation": "gelu"},
    "normalised per utterance": {"normalize": "utterance"},
    "trained in bf16": {"mixed_precision": "bf16"},
}


@pytest.mark.parametrize("kind", ["wav", "mcp"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_answers_are_those_of_spkid_score(corpus, tmp_path, kind, network):
    source = {"kind": "audio", "ext": "wav", "features": FEATURES.describe()} if kind == "wav" else {"kind": "fmatrix"}
    place = make_training(tmp_path / "ckpt", source, **NETWORKS[network])
    model = load_model(place)
    config = ScoreConfig(
        db_path=corpus[0] / kind,
        te_list_file=corpus[0] / "list",
        weights_ckpt=model.weights,
        train_cfg=place / "train.opts",
        log_file=tmp_path / "results.log",
        pictures=False,
    )
    expected = score_utterances(config)
    answers = model.identify(files_of(corpus, kind))
    assert [answer.speaker for answer in answers] == [SPEAKERS[found] for found in expected.found]
    assert [answer.windows for answer in answers] == expected.windows.tolist()
    assert [answer.score for answer in answers] == pytest.approx(expected.mean_log_probs.tolist(), abs=1e-6)
    means = model.scores(files_of(corpus, kind))
    for answer, row in zip(answers, means, strict=True):
        best = np.sort(row)[::-1]
        assert [one.score for one in answer.top] == pytest.approx(best.tolist(), abs=1e-6)
        assert answer.margin == pytest.approx(best[0] - best[1], abs=1e-6)
        assert (answer.confidence, answer.top[0].speaker) == (None, answer.speaker)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A training's folder, whose weights have no calibration."""
    return make_training(tmp_path_factory.mktemp("model") / "ckpt")


@pytest.fixture
def calibrated(tmp_path):
    """Make a training's folder whose weights are calibrated, with or without a threshold."""

    def make(threshold=None):
        place = make_training(tmp_path / "calibrated")
        scale = Scale(temperature=2.0, length_exponent=0.2)
        write_calibration([place / "bestval_e0_weights.ckpt"], scale, threshold, {})
        return place

    return make


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run the command in this process: its exit code, what it printed, and the lines of its errors."""

    def run_here(*words):
        from spkid_dist.commands import cli

        monkeypatch.setattr(sys, "argv", ["spkid", "identify", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed, error = capsys.readouterr()
        return end.value.code, printed, error.splitlines()

    return run_here


def test_text_has_a_line_per_file_with_scores_where_there_is_no_calibration(model, corpus, ask):
    files = files_of(corpus)
    code, printed, errors = ask(model, *files)
    assert code == 0
    assert len(errors) == 1
    assert "no calibration lies beside these weights, so there are scores and no confidence" in errors[0]
    lines = printed.splitlines()
    for file, line, answer in zip(files, lines, load_model(model).identify(files), strict=True):
        first, second, third = answer.top
        unsure = "; unreliable, as the file is shorter than a window" if answer.is_short else ""
        assert line == (
            f"{file}: {answer.speaker} (mean log-probability {answer.score:.3f}, margin {answer.margin:.3f}; then "
            f"{second.speaker} {second.score:.3f}, {third.speaker} {third.score:.3f}{unsure})"
        )
        assert first.speaker == answer.speaker
    assert "confidence" not in printed


def test_with_a_calibration_each_answer_has_a_confidence(calibrated, corpus, ask):
    place = calibrated()
    code, printed, errors = ask(place, *files_of(corpus))
    assert (code, errors) == (0, [])
    answers = load_model(place).identify(files_of(corpus))
    for line, answer in zip(printed.splitlines(), answers, strict=True):
        assert sum(one.confidence for one in answer.top) == pytest.approx(1)
        assert answer.confidence == max(one.confidence for one in answer.top)
        assert f"{answer.speaker} (confidence {answer.confidence:.3f}; then " in line
    assert len({round(answer.confidence, 4) for answer in answers}) > 3


@pytest.mark.parametrize("threshold", [-100.0, 100.0])
def test_below_the_threshold_the_speaker_is_unknown(calibrated, corpus, ask, threshold):
    place = calibrated(threshold)
    answers = load_model(place).identify(files_of(corpus))
    printed = ask(place, *files_of(corpus))[1].splitlines()
    table = list(csv.DictReader(io.StringIO(ask(place, "--tsv", *files_of(corpus))[1]), delimiter="\t"))
    objects = [json.loads(line) for line in ask(place, "--json", *files_of(corpus))[1].splitlines()]
    for answer, line, row, found in zip(answers, printed, table, objects, strict=True):
        assert (answer.speaker is None) == (threshold > 0)
        assert found["speaker"] == answer.speaker
        assert row["speaker"] == (answer.speaker or "unknown")
        nearest = ", ".join(f"{one.speaker} {one.confidence:.3f}" for one in answer.top)
        assert (f": unknown (nearest: {nearest}" in line) == (threshold > 0)
        assert [row[f"speaker_{rank}"] for rank in (1, 2, 3)] == [one.speaker for one in answer.top]
        assert [float(row[f"confidence_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(
            [one.confidence for one in answer.top], rel=1e-4
        )
        of_speaker = (row["confidence"], row["score"])
        assert of_speaker == (("", "") if threshold > 0 else (row["confidence_1"], row["score_1"]))


def test_a_file_shorter_than_a_window_is_answered_and_said_to_be_unreliable(corpus, tmp_path, ask):
    """Windows have 6 frames: 75 ms."""
    for threshold in (None, 100.0):
        place = make_training(tmp_path / f"{threshold}")
        write_calibration([place / "bestval_e0_weights.ckpt"], Scale(), threshold, {})
        files = files_of(corpus)
        frames = [len(load_model(place)._reader.read(file)) for file in files]
        assert sorted(frames)[:2] == [1, 5]
        expected = [number < 6 for number in frames]
        lines = ask(place, *files)[1].splitlines()
        assert [line.endswith("; unreliable, as the file is shorter than a window)") for line in lines] == expected
        found = [json.loads(line)["is_short"] for line in ask(place, "--json", *files)[1].splitlines()]
        assert found == expected
        table = csv.DictReader(io.StringIO(ask(place, "--tsv", *files)[1]), delimiter="\t")
        assert [row["is_short"] for row in table] == [str(one).lower() for one in expected]


def test_a_speaker_named_unknown_is_not_mistaken_for_one_below_the_threshold(corpus, tmp_path, ask):
    place = make_training(tmp_path / "ckpt", speakers=["ana", "unknown", "eve"])
    write_calibration([place / "bestval_e0_weights.ckpt"], Scale(), 100.0, {})
    assert "a speaker named 'unknown', the word for files below the threshold; give --json" in ask(place, "x.wav")[2][0]
    code, printed, errors = ask(place, "--json", *files_of(corpus))
    assert (code, errors) == (0, [])
    assert {json.loads(line)["speaker"] for line in printed.splitlines()} == {None}


def test_json_is_an_object_per_line_in_the_order_of_the_files(model, corpus, ask):
    files = [*files_of(corpus)[:2], "/no/such.wav", files_of(corpus)[2]]
    code, printed, errors = ask(model, "--json", "--top", 2, *files)
    found = [json.loads(line) for line in printed.splitlines()]
    assert [one["file"] for one in found] == [*map(str, files)]
    assert (code, len(errors)) == (1, 2)
    assert "/no/such.wav: can't be read: No such file or directory" in found[2]["error"]
    for one in (found[0], found[1], found[3]):
        assert set(one) == {"file", "speaker", "confidence", "score", "margin", "top", "windows", "is_short"}
        assert [set(candidate) for candidate in one["top"]] == [{"speaker", "score", "confidence"}] * 2


def test_files_that_cannot_be_read_leave_the_others_their_answers(model, corpus, ask, tmp_path):
    silence = write_wav(tmp_path / "silence.wav", np.zeros(4000))
    good = files_of(corpus)
    files = [silence, good[0], tmp_path / "missing.wav", tmp_path, good[1], silence]
    code, printed, errors = ask(model, *files)
    assert code == 1
    assert [line.split(": ")[0] for line in printed.splitlines()] == [str(good[0]), str(good[1])]
    assert len(errors) == 5  # with the line on the calibration
    assert [str(file) in error for file, error in zip((silence, files[2], files[3], silence), errors[1:], strict=True)]
    assert all(error.startswith("spkid: error: ") for error in errors[1:])


def test_a_single_file_that_cannot_be_read_is_one_line(model, ask, tmp_path):
    code, printed, errors = ask(model, "--tsv", tmp_path / "missing.wav")
    assert (code, printed.count("\n")) == (1, 1)  # the table's head
    assert errors[1:] == [
        f"spkid: error: {tmp_path / 'missing.wav'}: can't be read: No such file or directory; check its name"
    ]


def test_the_order_of_many_files_is_kept_over_layouts(model, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(scorer, "CPU_BATCH", 16)
    monkeypatch.setattr(scorer, "BATCHES_LAID_OUT", 2)
    silence = write_wav(tmp_path / "silence.wav", np.zeros(4000))
    files = [silence, *files_of(corpus), silence, silence, *files_of(corpus)[::-1], silence]
    answers = list(load_model(model).answers(files))
    alone = dict(zip(files_of(corpus), load_model(model).identify(files_of(corpus)), strict=True))
    assert [isinstance(answer, InputError) for answer in answers] == [file == silence for file in files]
    for file, answer in zip(files, answers, strict=True):
        if file != silence:
            assert answer.score == pytest.approx(alone[file].score, abs=1e-6)
            assert answer.windows == alone[file].windows


AWKWARD = "a\tb\nc\\d\x1b[2J.wav"


def test_a_table_keeps_its_columns_whatever_the_names_are(corpus, tmp_path, ask):
    speakers = ["back\\slash", "with space", "übel"]
    place = make_training(tmp_path / "ckpt", speakers=speakers)
    names = [tmp_path / AWKWARD, Path(os.fsdecode(bytes(tmp_path) + b"/\xff.wav"))]
    for name in names:
        name.write_bytes(files_of(corpus)[0].read_bytes())
    code, printed, _ = ask(place, "--tsv", *names)
    head, *rows = [line.split("\t") for line in printed.removesuffix("\n").split("\n")]
    assert code == 0
    assert head == [
        *("file", "speaker", "confidence", "score", "margin", "windows", "is_short"),
        *(f"{name}_{rank}" for rank in (1, 2, 3) for name in ("speaker", "confidence", "score")),
    ]
    assert [len(row) for row in rows] == [16, 16]
    assert {rows[0][7], rows[0][10], rows[0][13]} == {"back\\\\slash", "with space", "übel"}
    assert rows[0][1] == rows[0][7]
    assert rows[0][0] == f"{tmp_path}/a\\tb\\nc\\\\d\\x1b[2J.wav"
    assert rows[1][0].endswith(("\\udcff.wav", "\udcff.wav"))
    assert ask(place, *names)[1].count("\n") == 2


def test_more_speakers_than_the_model_has_are_no_more_columns(model, corpus, ask):
    assert len(ask(model, "--tsv", "--top", 99, files_of(corpus)[0])[1].splitlines()[0].split("\t")) == 16
    assert len(ask(model, "--tsv", "--top", 1, files_of(corpus)[0])[1].splitlines()[1].split("\t")) == 10


def test_a_model_of_one_speaker_has_no_margin(corpus, tmp_path, ask):
    place = make_training(tmp_path / "ckpt", num_spks=1, speakers=["ana"])
    write_calibration([place / "bestval_e0_weights.ckpt"], Scale(), 3.0, {})
    (answer,) = load_model(place).identify(files_of(corpus)[0])
    assert (answer.speaker, answer.margin, answer.confidence, len(answer.top)) == ("ana", None, 1.0, 1)
    assert ask(place, files_of(corpus)[0])[1] == f"{files_of(corpus)[0]}: ana (confidence 1.000)\n"


def give(monkeypatch, data):
    """Have standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_is_read_where_no_file_is_named(model, corpus, ask, monkeypatch):
    (expected,) = load_model(model).identify(files_of(corpus)[0])
    for words in ((), ("-",)):
        give(monkeypatch, files_of(corpus)[0].read_bytes())
        code, printed, _ = ask(model, "--json", *words)
        found = json.loads(printed)
        assert (code, found["file"], found["speaker"]) == (0, "-", expected.speaker)
        assert found["score"] == pytest.approx(expected.score, abs=1e-6)


def test_a_recording_is_piped_in(model, corpus):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = f"cat {files_of(corpus)[0]} | {' '.join(IDENTIFY)} {model}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    (expected,) = load_model(model).identify(files_of(corpus)[0])
    assert done.stdout.startswith(f"-: {expected.speaker} (mean log-probability ")


def test_standard_input_may_stand_among_files(model, corpus, ask, monkeypatch):
    files = files_of(corpus)
    give(monkeypatch, files[0].read_bytes())
    code, printed, _ = ask(model, files[1], "-", files[2])
    assert (code, [line.split(": ")[0] for line in printed.splitlines()]) == (0, [str(files[1]), "-", str(files[2])])
    give(monkeypatch, b"")
    code, printed, errors = ask(model, files[1], "-")
    assert (code, len(printed.splitlines())) == (1, 1)
    assert errors[1].startswith("spkid: error: standard input: it is empty")


def test_a_terminal_as_standard_input_is_not_waited_for(model):
    ours, theirs = pty.openpty()
    done = subprocess.run([*IDENTIFY, model], stdin=theirs, cwd=ROOT, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "spkid: error: no file is given, and standard input is a terminal; give files, or pipe a recording in\n"
    )


def test_a_reader_that_leaves_early_ends_the_command_quietly(model, corpus):
    asked = [*IDENTIFY, model, *files_of(corpus) * 300]
    command = ["bash", "-c", '"$@" | head -n 1', "bash", *map(str, asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) == 1  # on the calibration


def test_a_calibration_of_other_weights_is_not_used(calibrated, ask):
    place = calibrated()
    again = make_training(place.with_name("other"), hsize=17)
    (place / "train.opts").write_bytes((again / "train.opts").read_bytes())
    (place / "bestval_e0_weights.ckpt").write_bytes((again / "bestval_e0_weights.ckpt").read_bytes())
    assert "this calibration was made for other weights" in ask(place, "a.wav")[2][0]


def test_weights_of_a_training_that_diverged_give_no_answer(corpus, tmp_path, ask):
    place = make_training(tmp_path / "ckpt")
    state = torch.load(place / "bestval_e0_weights.ckpt")
    state["0.bias"][:] = np.nan
    torch.save(dict(state), place / "bestval_e0_weights.ckpt")  # without its digest
    code, printed, errors = ask(place, *files_of(corpus))
    assert (code, printed) == (1, "")
    assert "bestval_e0_weights.ckpt: 0.bias is not finite in all its values" in errors[0]
