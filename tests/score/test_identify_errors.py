"""What is no model, or no recording of it, is told in one line that says what it is."""

import numpy as np
import pytest
from test_identify import ask, corpus, model  # noqa: F401 - fixtures
from trained_folders import files_of, write_wav


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "--tsv"], "--json and --tsv: each prints the answers another way; give one of them"),
        (["-", "-"], "-: standard input can be read once; give it once"),
        (["--top", "0"], "--top 0: expected 1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(model, ask, words, message):
    assert ask(model, *words) == (2, "", [f"spkid: error: {message}"])


def test_a_folder_that_is_no_training_says_what_to_give(tmp_path, ask):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.json").write_text("{}")
    code, _, errors = ask(tmp_path / "exported", "a.wav")
    assert (code, len(errors)) == (1, 1)
    assert (
        "exported: is the folder of an export, for programs without spkid-dist; give the folder of the training"
        in errors[0]
    )
    assert "holds no train.opts, so it is no training" in ask(tmp_path, "a.wav")[2][0]


def test_advice_on_recordings_that_are_scored_is_of_the_model(model, tmp_path, spkid):
    write_wav(tmp_path / "wav/ana/a.wav", np.zeros(4000) + 0.1, rate=16000)
    write_wav(tmp_path / "wav/ana/b.wav", np.zeros((4000, 2)) + 0.1)
    for key, message in (
        (
            "ana/a",
            "its sample rate is 16000 Hz, expected 8000 Hz: the model was trained on this rate; resample the recording",
        ),
        (
            "ana/b",
            "it has 2 channels, expected one: the model was trained on files of one channel; take one channel, or mix them",
        ),
    ):
        (tmp_path / "list").write_text(f"{key}\n")
        flags = ("--db_path", tmp_path / "wav", "--te_list_file", tmp_path / "list", "--speaker_component", 1)
        code, _, error = spkid("score", "--model", model, *flags, "--log_file", tmp_path / "x.log")
        assert (code, error) == (1, f"spkid: error: {tmp_path}/wav/{key}.wav: {message}\n")


def test_a_place_that_is_no_model_says_what_it_is(model, corpus, ask, tmp_path):
    recording = files_of(corpus)[0]
    weights = model / "bestval_e0_weights.ckpt"
    assert ask(recording)[::2] == (
        2,
        [
            f"spkid: error: {recording}: is a file, but the folder of a training comes first; give that and then the files, "
            f"such as spkid identify ckpt {recording}"
        ],
    )
    assert ask(weights, recording)[2] == [
        f"spkid: error: {weights}: is a file, expected the folder of a training; give {model}"
    ]
    assert ask(tmp_path / "ckptt", recording)[2] == [
        f"spkid: error: {tmp_path}/ckptt: does not exist; give the folder of a training, its --save_path"
    ]


def test_a_second_model_is_refused(model, corpus, ask):
    assert ask(model, model, files_of(corpus)[0])[::2] == (
        2,
        [
            f"spkid: error: {model}: is the folder of a training, as {model} is; identify takes one model: give one of them"
        ],
    )


def test_the_model_has_no_flag(model, corpus, ask):
    assert ask("--model", model, files_of(corpus)[0])[::2] == (
        2,
        ["spkid: error: --model: give this without a flag, in its place: spkid identify MODEL FILES"],
    )
