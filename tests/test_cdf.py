"""The unbiased best-of-n estimator, against the mean over all subsets and against exact expectations."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.cdf import best_of_n_reward
from bonlib.exact import Outcomes

REWARDS = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(REWARDS, st.data())
def test_it_is_the_mean_over_all_subsets(rewards, data):
    n = data.draw(st.integers(1, len(rewards)))
    want = np.mean([max(subset) for subset in itertools.combinations(rewards, n)])
    assert best_of_n_reward(rewards, n).value == pytest.approx(want, abs=1e-12)


@settings(max_examples=30)
@given(REWARDS.filter(lambda rewards: len(rewards) > 1), st.data())
def test_its_error_is_the_jackknifes(rewards, data):
    m, n = len(rewards), data.draw(st.integers(1, len(rewards) - 1))
    left_out = [best_of_n_reward(np.delete(rewards, j), n).value for j in range(m)]
    assert best_of_n_reward(rewards, n).standard_error == pytest.approx(np.sqrt((m - 1) * np.var(left_out)), abs=1e-9)


def test_it_is_unbiased_and_its_error_is_honest():
    model = Outcomes([0.5, 0.3, 0.2], [0.0, 1.0, 3.0])
    draws = np.random.default_rng(0).choice(model.rewards, p=model.probs, size=(4000, 40))
    for n in (1, 4, 16):
        value, error = best_of_n_reward(draws, n)
        assert value.shape == error.shape == (4000,)
        assert value.mean() == pytest.approx(model.mean_reward(model.best_of(n)), abs=5 * value.std() / np.sqrt(4000))
        ratio = np.sqrt(np.mean(error**2)) / value.std()
        assert 0.9 < ratio < (1.1 if n < 16 else 1.5)  # the jackknife errs on the safe side as n nears m


def test_with_as_many_draws_as_samples_it_is_the_maximum_and_claims_no_error():
    estimate = best_of_n_reward([[3.0, 1.0, 2.0]], 3)
    assert estimate.value[0] == pytest.approx(3.0)
    assert np.isnan(estimate.standard_error[0])


@pytest.mark.parametrize("n", [0, 4, 1.5])
def test_bad_n_is_named(n):
    with pytest.raises(ValueError, match="n is"):
        best_of_n_reward([1.0, 2.0, 3.0], n)


@pytest.mark.parametrize("samples", [[1.0, np.nan], [np.inf, 0.0], 3.0])
def test_bad_samples_are_named(samples):
    with pytest.raises(ValueError, match="samples"):
        best_of_n_reward(samples, 1)
