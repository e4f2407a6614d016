"""The best speakers and their margin, against sorting everything."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spkid_dist.scoring.ranking import best_speakers, margins_of

pytestmark = pytest.mark.fast

FEW_VALUES = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(-3, 0))


@given(FEW_VALUES, st.integers(1, 12))
def test_the_best_speakers_are_the_beginning_of_a_stable_sort(means, most):
    expected = np.argsort(-means, axis=1, kind="stable")[:, :most]
    found = best_speakers(means, most)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[:, 0], means.argmax(axis=1))


def test_the_best_speakers_of_distinct_scores_are_the_beginning_of_a_sort():
    means = -np.random.default_rng(0).gamma(2, size=(50, 300))
    for most in (1, 2, 10, 299, 300, 1000):
        np.testing.assert_array_equal(best_speakers(means, most), np.argsort(-means, axis=1)[:, :most])


@given(FEW_VALUES)
def test_the_margin_is_the_best_minus_the_second_best(means):
    before = means.copy()
    found = margins_of(means, means.argmax(axis=1))
    np.testing.assert_array_equal(means, before)
    if means.shape[1] == 1:
        assert (found == np.inf).all()
    else:
        ordered = np.sort(means, axis=1)
        np.testing.assert_array_equal(found, ordered[:, -1] - ordered[:, -2])
