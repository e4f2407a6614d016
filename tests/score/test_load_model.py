"""A model in Python identifies files and arrays alike, and says what it was given instead."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trained_folders import FEATURES, RATE, SPEAKERS, files_of, make_training, voice, write_recordings

from shards import InputError, UsageError
from shards.sources.features import compute_features
from spkid_dist import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of recordings and their features, and their keys."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_recordings(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A training's folder."""
    return make_training(tmp_path_factory.mktemp("model") / "ckpt")


def test_arrays_are_identified_as_their_files(model, corpus):
    opened = load_model(str(model))
    assert opened.speakers == SPEAKERS
    file = files_of(corpus)[4]
    samples = voice(1.0, 4, seed=4)
    (expected,) = opened.identify(str(file))
    assert opened.identify(file) == opened.identify([file]) == [expected]
    assert opened.identify(samples, sample_rate=RATE) == [expected]
    assert opened.identify([samples, file], sample_rate=RATE)[0].score == pytest.approx(expected.score, abs=1e-6)
    assert opened.identify(compute_features(samples, FEATURES, "x")) == [expected]
    assert opened.identify(iter([file]), top=1)[0].top == expected.top[:1]
    assert opened.identify([]) == []
    assert opened.scores([]).shape == (0, 3)


def test_in_python_a_recording_that_cannot_be_read_is_an_error(model, corpus):
    opened = load_model(model)
    for call in (opened.identify, opened.scores):
        with pytest.raises(InputError, match=r"gone\.wav: can't be read"):
            call([*files_of(corpus), "gone.wav"])
        with pytest.raises(UsageError, match=r"array of shape \(3200,\): samples without their sample rate"):
            call(voice())
    with pytest.raises(UsageError, match=r"an array of shape \(2, 30, 8\): .*give a list of arrays for several"):
        opened.identify(np.zeros((2, 30, 8)))
    with pytest.raises(UsageError, match=r"top is 0; expected 1 or more"):
        opened.identify(files_of(corpus), top=0)


def test_the_command_starts_without_what_only_trainings_need(model, corpus):
    program = (
        "import sys; from spkid_dist import load_model; load_model(sys.argv[1]).identify(sys.argv[2]); "
        "print(sorted({'accelerate', 'matplotlib', 'sklearn', 'pyarrow', 'spkid_dist.training'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, model, files_of(corpus)[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_there_is_named(model, device):
    with pytest.raises(UsageError, match=rf"device '{device}': .*; give cpu, or a device of this machine"):
        load_model(model, device=device)
