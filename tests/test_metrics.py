"""Win rates with ties, and standard errors over prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonlib.metrics import mean_over_prompts, win_probability, win_rate

TABLE = st.lists(st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3), min_size=2, max_size=4)


@given(TABLE, TABLE)
def test_win_probability_counts_pairs_with_ties_one_half(mine, theirs):
    count = min(len(mine), len(theirs))
    mine, theirs = np.array(mine[:count]), np.array(theirs[:count])
    pairs = (mine[:, :, None] > theirs[:, None, :]) + 0.5 * (mine[:, :, None] == theirs[:, None, :])
    np.testing.assert_allclose(win_probability(mine, theirs), pairs.mean(axis=2))
    assert win_rate(mine, theirs).value == pytest.approx(1 - win_rate(theirs, mine).value)


def test_standard_error_treats_prompts_as_the_units():
    estimate = mean_over_prompts([1.0, 2.0, 3.0, 4.0])
    assert estimate.value == 2.5
    assert estimate.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least two prompts"):
        mean_over_prompts([1.0])
    with pytest.raises(ValueError, match="same"):
        win_rate([[1.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="opponents has a reward"):
        win_rate([[1.0], [2.0]], [[1.0], [np.nan]])
