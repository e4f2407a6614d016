"""The list of a folder's checkpoints names folders in it, and nothing else."""

import json

import pytest
from training import checkpoints

from spkid_dist.training.checkpoint import CheckpointFolder

pytestmark = pytest.mark.fast

CHAINS = [
    {"checkpoints": ["../../elsewhere"], "best": None},
    {"checkpoints": ["/etc"], "best": None},
    {"checkpoints": ["000001-epoch0/.."], "best": None},
    {"checkpoints": ["000001-epoch0\n"], "best": None},
    {"checkpoints": ["\u0661" * 6 + "-epoch0"], "best": None},
    {"checkpoints": ["9" * 5000 + "-epoch0"], "best": None},
    {"checkpoints": ["000001-epoch0"], "best": "../x"},
    {"checkpoints": ["000001-epoch0"] * 2, "best": None},
    {"checkpoints": [], "best": None},
    {"checkpoints": [5], "best": None},
    {"checkpoints": "000001-epoch0", "best": None},
    {"checkpoints": {"000001-epoch0": 1}, "best": None},
    {"checkpoints": ["000001-epoch0"]},
    {"best": None},
    ["000001-epoch0"],
    None,
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: repr(chain)[:40])
def test_a_list_of_checkpoints_that_names_other_places_is_not_followed(tmp_path, chain):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    folder = CheckpointFolder(tmp_path / "checkpoints", 9)
    for number in range(2):
        folder.save(number, {"number": number}, b"state", best=False)
    (tmp_path / "checkpoints/checkpoints.json").write_text(json.dumps(chain))
    said = []
    again = CheckpointFolder(tmp_path / "checkpoints", 9)
    assert again.newest(said.append).values == {"number": 1}
    (line,) = said
    assert "damaged (" in line
    assert "taking the checkpoints by their numbers" in line
    assert len(line) < 400
    again.settle()
    assert (tmp_path / "elsewhere" / "kept").exists()
    assert len(checkpoints(tmp_path)) == 2
