"""A calibration is found beside its weights, and never used for others."""

import json
import re
import zipfile
from pathlib import Path

import pytest

from shards import InputError
from shards.contentdigest import without_digest
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.calibrationfile import (
    calibration_path,
    other_calibration,
    read_calibration,
    write_calibration,
)

pytestmark = pytest.mark.fast

SCALE = Scale(temperature=0.25, length_exponent=0.125)


def write_weights(path, text):
    """An archive that stands for weights."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", text)


@pytest.fixture
def weights(tmp_path):
    """Two files that stand for weights: only their bytes matter here."""
    paths = [tmp_path / "bestval_e4_weights.ckpt", tmp_path / "e9_weights.ckpt"]
    for path in paths:
        write_weights(path, path.name)
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
    assert re.fullmatch(r"(bestval_e4|e9)_weights\+[0-9a-f]{16}\.calibration\.json", path.name)
    assert read_calibration(weights[::-1]).scale == SCALE
    assert read_calibration(weights[:1]) is None


def test_models_together_are_known_however_their_paths_are_spelled(weights, tmp_path, monkeypatch):
    """The order of relative and absolute paths is another one, which must not decide."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mA").mkdir()
    (tmp_path / "mB").mkdir()
    first, second = weights[0].rename("mA/x.ckpt"), weights[1].rename("mB/y.ckpt")
    write_calibration([Path("mA/x.ckpt"), Path("mB/y.ckpt")], SCALE, None, {})
    (tmp_path / "link").symlink_to(tmp_path / "mA")
    (tmp_path / "best.ckpt").symlink_to("mB/y.ckpt")
    for one in (first, first.absolute(), Path("mB/../mA/x.ckpt"), Path("link/x.ckpt")):
        for other in (second, second.absolute(), Path("best.ckpt")):
            assert read_calibration([one, other]).scale == SCALE, (one, other)
            assert read_calibration([other, one]).scale == SCALE, (one, other)
    write_calibration([second], Scale(temperature=3.0), None, {})
    assert read_calibration([Path("best.ckpt")]).scale.temperature == 3.0


def test_each_set_of_models_keeps_its_calibration(weights, tmp_path):
    third = tmp_path / "e11_weights.ckpt"
    write_weights(third, "third")
    sets = [weights, [weights[0], third], [weights[1], third], [*weights, third]]
    for number, one in enumerate(sets, start=2):
        write_calibration(one, Scale(temperature=number), None, {})
    assert [read_calibration(one).scale.temperature for one in sets] == [2, 3, 4, 5]


def test_weights_of_any_ending_have_a_calibration_of_their_own(tmp_path):
    names = ["foo.ckpt", "foo.pt", "foo", "foo.pt.ckpt", "foo.bin", "foo-calibration.json.ckpt"]
    paths = [tmp_path / name for name in names]
    for number, path in enumerate(paths, start=1):
        write_weights(path, path.name)
        write_calibration([path], Scale(temperature=number), None, {})
    assert [read_calibration([path]).scale.temperature for path in paths] == [1, 2, 3, 4, 5, 6]


def test_a_calibration_of_other_weights_beside_these_is_known(weights):
    assert other_calibration(weights) is None
    path = write_calibration(weights[:1], SCALE, None, {})
    assert other_calibration(weights[1:]) == (path, [weights[0].name])
    assert other_calibration(weights) == (path, [weights[0].name])
    assert other_calibration(weights[:1]) is None
    path.write_text("{}")
    assert other_calibration(weights[1:]) is None


def test_a_calibration_of_other_weights_is_refused(weights):
    path = write_calibration(weights[:1], SCALE, None, {})
    write_weights(weights[0], "trained again")
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
        ("{", r"calibration\.json: the calibration: not JSON: .* at line 1, column 2; run spkid calibrate again"),
        ("[]", r"the value is \[\], expected an object"),
        ("[" * 50_000, r"nested deeper"),
        ('{"temperature": 1, "temperature": 2}', r"'temperature' stands twice"),
        ('{"temperature": ' + "1" * 5000 + "}", r"the calibration: "),
        ('{"temperature": "\\ud800"}', r"the calibration: "),
        ("\ufeff{}", r"the calibration: "),
        ({"temperature": 0}, r"temperature 0\.0 and length_exponent 0\.125, expected numbers"),
        ({"temperature": 1e-320}, r"temperature 1e-320 and"),
        ({"temperature": 1e300}, r"temperature 1e\+300 and"),
        ({"temperature": 10**400}, r"temperature is 10{39}\.\.\., expected a number"),
        ({"temperature": True}, r"temperature is True, expected a number"),
        ({"temperature": float("inf")}, r"Infinity is no number"),
        ({"temperature": float("nan")}, r"NaN is no number"),
        ({"temperature": "1"}, r"temperature is '1', expected a number"),
        ({"length_exponent": 1.5}, r"length_exponent 1\.5, expected"),
        ({"length_exponent": -1e-9}, r"length_exponent -1e-09, expected"),
        ({"length_exponent": None}, r"length_exponent is None, expected a number"),
        ({"threshold": "high"}, r"threshold is 'high', expected a number or null; run spkid calibrate again"),
        ({"threshold": float("inf")}, r"Infinity is no number"),
        ({"threshold": 10**400}, r"threshold is 10{39}\.\.\., expected a number or null"),
        ({"weights": None}, r"weights is None, expected a list"),
        ({"weights": []}, r"weights have the digests \[\], expected"),
        ({"weights": [1]}, r"weights\[0\] is 1, expected an object"),
        ({"weights": [{"name": "w.ckpt"}]}, r"weights\[0\]\.digest is missing"),
        ({"weights": [{"name": "w.ckpt", "digest": "12"}]}, r"weights have the digests \['12'\], expected 32 digits"),
    ],
)
def test_a_damaged_calibration_is_one_line(weights, change, message):
    path = write_calibration(weights[:1], SCALE, None, {})
    text = change if isinstance(change, str) else json.dumps(without_digest(json.loads(path.read_text())) | change)
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_calibration(weights[:1])


def test_a_calibration_with_another_number_is_refused_unless_its_digest_is_deleted(weights):
    path = write_calibration(weights[:1], SCALE, -1.5, {"utterances": 7})
    written = json.loads(path.read_text())
    for name, value in (("temperature", 0.5), ("threshold", None), ("utterances", 8)):
        path.write_text(json.dumps(written | {name: value}))
        with pytest.raises(
            InputError,
            match=r"calibration\.json: the calibration: its digest is .* edited it, delete its field 'digest'",
        ):
            read_calibration(weights[:1])
    del written["digest"]
    path.write_text(json.dumps(written | {"temperature": 0.5}))
    assert read_calibration(weights[:1]).scale.temperature == 0.5


def test_a_file_that_is_larger_than_its_records_is_not_hashed(weights):
    with weights[0].open("r+b") as file:
        file.truncate(2**42)
    with pytest.raises(InputError, match=r"e4_weights\.ckpt: no file of torch\.save"):
        calibration_path(weights[:1] * 2)
    with weights[1].open("r+b") as file:
        archive = file.read()
        file.truncate(0)
        file.seek(2**42)
        file.write(archive)
    with pytest.raises(
        InputError, match=r"e9_weights\.ckpt: damaged: its records have 15 bytes, but the file has 4398046"
    ):
        calibration_path(weights[1:] * 2)
