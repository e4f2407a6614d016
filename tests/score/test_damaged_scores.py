"""No flipped bit of a file of scores changes what is read, or ends the process."""

from dataclasses import replace

import numpy as np
import pytest
from flippedbits import random_flips
from test_scorefile import KINDS, assert_same, made

from shards.errors import InputError
from spkid_dist.scoring.scorefile import read_scores, write_scores

pytestmark = pytest.mark.fast


@KINDS
def test_no_flipped_bit_of_a_file_changes_what_is_read(tmp_path, kind):
    scores, path = replace(made(5, 3), threshold=0.5, accepted=np.arange(5) > 2), tmp_path / f"x{kind}"
    write_scores(path, scores)
    data = path.read_bytes()
    for _at, flipped in random_flips(data, 600):
        path.write_bytes(flipped)
        try:
            found = read_scores(path)
        except InputError:
            continue
        assert_same(found, scores)
