"""A calibration is found beside its weights, and never used for others."""

import json

import pytest

from shards import InputError
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.calibrationfile import calibration_path, read_calibration, write_calibration

pytestmark = pytest.mark.fast

SCALE = Scale(temperature=0.25, length_exponent=0.125)


@pytest.fixture
def weights(tmp_path):
    """Two files that stand for weights: only their bytes matter here."""
    paths = [tmp_path / "bestval_e4_weights.ckpt", tmp_path / "e9_weights.ckpt"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.mark.parametrize("threshold", [None, -1.5])
def test_a_calibration_comes_back_as_it_was_written(weights, threshold):
    path = write_calibration(weights[:1], SCALE, threshold, {"utterances": 7})
    found = read_calibration(weights[:1])
    assert (found.scale, found.threshold, found.path) == (SCALE, threshold, path)
    assert path.name == "bestval_e4_weights.calibration.json"
    assert json.loads(path.read_text())["utterances"] == 7
    assert read_calibration(weights[1:]) is None


def test_models_together_have_a_calibration_of_their_own_in_any_order(weights):
    path = write_calibration(weights, SCALE, None, {})
    assert path == calibration_path(weights[::-1])
    assert path.name == "bestval_e4_weights+1.calibration.json"
    assert read_calibration(weights[::-1]).scale == SCALE
    assert read_calibration(weights[:1]) is None


def test_a_calibration_of_other_weights_is_refused(weights):
    path = write_calibration(weights[:1], SCALE, None, {})
    weights[0].write_bytes(b"trained again")
    with pytest.raises(
        InputError, match=r"calibration\.json: this calibration was made for other weights than .*e4_weig"
    ):
        read_calibration(weights[:1])
    write_calibration(weights[:1], SCALE, None, {})
    assert read_calibration(weights[:1]).path == path


def test_weights_that_moved_with_their_calibration_are_calibrated(weights, tmp_path):
    path = write_calibration(weights[:1], SCALE, None, {})
    (tmp_path / "elsewhere").mkdir()
    for one in (weights[0], path):
        one.rename(tmp_path / "elsewhere" / one.name)
    assert read_calibration([tmp_path / "elsewhere" / weights[0].name]).scale == SCALE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", r"calibration\.json:1: the calibration is not JSON"),
        ("[]", r"temperature None and length_exponent None, expected a number above 0"),
        (
            {"temperature": 0},
            r"temperature 0 and length_exponent 0\.125, expected a number above 0, and one from 0 to 1",
        ),
        ({"temperature": True}, r"temperature True and"),
        ({"temperature": float("inf")}, r"temperature inf and"),
        ({"temperature": float("nan")}, r"temperature nan and"),
        ({"length_exponent": 1.5}, r"length_exponent 1\.5, expected"),
        ({"threshold": "high"}, r"threshold is 'high', expected a number or null; run spkid calibrate again"),
        ({"weights": None}, r"made for other weights"),
        ({"weights": [1]}, r"made for other weights"),
    ],
)
def test_a_damaged_calibration_is_one_line(weights, change, message):
    path = write_calibration(weights[:1], SCALE, None, {})
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_calibration(weights[:1])
