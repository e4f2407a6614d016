"""`spkid info`: hours are by the frame shift that the dataset knows, or the user, and say whose it is."""

import json

import pytest
from conftest import make_corpus

from shards.sources.audio import AudioSource
from shards.sources.featureoptions import FeatureOptions
from shards.sources.fmatrix import FmatrixSource


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Make a dataset of 36,000 frames, whose manifest has the options of audio features where they are given."""

    def make(features=None):
        if features is not None:
            description = AudioSource(tmp_path, "wav", features).describe()
            monkeypatch.setattr(FmatrixSource, "describe", lambda _: description)
        return make_corpus(tmp_path / "c", [18_000, 18_000]).dataset.folder

    return make


@pytest.mark.parametrize(
    ("features", "flags", "hours", "said"),
    [
        (FeatureOptions(shift_ms=20.0), (), 0.2, "0.2 at a frame shift of 20 ms, as the dataset says"),
        (FeatureOptions(shift_ms=20.0), ("--frame_shift_ms", "20"), 0.2, "20 ms, as the dataset says"),
        (None, (), 0.1, "0.1 at a frame shift of 10 ms (assumed)"),
        (None, ("--frame_shift_ms", "12.5"), 0.125, "0.125 at a frame shift of 12.5 ms"),
    ],
)
def test_hours_are_by_the_frame_shift_that_is_known(dataset, spkid, features, flags, hours, said):
    folder = dataset(features)
    assert said in spkid("info", folder, *flags)[1]
    facts = json.loads(spkid("info", folder, *flags, "--json")[1])
    assert facts["hours"] == hours
    assert facts["frame_shift_from"] == ("dataset" if features else flags[0] if flags else "assumed")


def test_another_frame_shift_than_the_datasets_is_used_wrongly(dataset, spkid):
    code, _, error = spkid("info", dataset(FeatureOptions(shift_ms=20.0)), "--frame_shift_ms", "10")
    assert code == 2
    assert "--frame_shift_ms 10: the dataset's frames are 20 ms apart" in error


@pytest.mark.parametrize("value", ["0", "nan", "inf", "-1"])
def test_a_frame_shift_that_is_no_time_is_used_wrongly(spkid, value):
    code, _, error = spkid("info", "data", f"--frame_shift_ms={value}")
    assert code == 2
    assert "expected a finite number, more than 0" in error
