"""No dataset, however it was forged, makes a kernel leave its arrays, or ends in anything but one of our errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"


def forge(cache, first, count):
    """What was answered of so many forged datasets, in a process with its own kernels, which check their bounds."""
    command = [sys.executable, HELPERS / "forgeries.py", "--first", str(first), "--count", str(count)]
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(HELPERS.parents[1]))))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_forged_datasets_are_refused_or_used_as_they_are(tmp_path):
    answers = forge(tmp_path, 0, 60)
    for what in ("open", "count", "stream", "score", "spoil"):
        assert answers[f"{what}: true"] > 0
        assert answers[f"{what}: refused"] > 0


@pytest.mark.long
@pytest.mark.parametrize("first", [10**6, 2 * 10**6])
def test_many_more_forged_datasets(tmp_path, first):
    forge(tmp_path, first, 2500)
