"""The formulas for KL and win rate, and the estimator from the winner's probability."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exact import outcomes

from bonlib.bounds import kl_bound, kl_from_winner, win_rate_bound
from bonlib.exact import Outcomes, kl_divergence


@given(outcomes(), st.floats(1, 1e6))
def test_the_bounds_hold(model, n):
    policy = model.best_of(n, ties="order")
    assert kl_divergence(policy, model.probs) <= kl_bound(n) + 1e-9
    assert model.win_rate(policy) <= win_rate_bound(n) + 1e-9


@given(outcomes(), st.floats(1, 1e6))
def test_the_estimator_is_on_average_at_least_the_kl(model, n):
    policy = model.best_of(n, ties="order")
    possible = model.probs > 0
    estimate = policy[possible] @ kl_from_winner(np.minimum(model.log_probs[possible], 0), n)
    assert kl_divergence(policy, model.probs) - 1e-9 <= estimate <= kl_bound(n) + 1e-9


@given(st.floats(-700, 0), st.floats(1, 1e12))
def test_the_estimator_equals_its_formula_in_many_digits(log_prob, n):
    with mpmath.workdps(400):
        eps, count = mpmath.exp(mpmath.mpf(log_prob)), mpmath.mpf(n)
        missed = (1 - eps) ** count
        want = (1 - missed) * mpmath.log((1 - missed) / eps)
        if missed > 0:
            want += missed * (mpmath.log(count) + (count - 1) * mpmath.log(1 - eps) - (count - 1) / count)
    assert float(kl_from_winner(log_prob, n)) == pytest.approx(float(want), abs=1e-10)


def test_the_estimator_has_its_limits_and_broadcasts():
    n = np.array([1.0, 2.0, 1e3, 1e12])
    np.testing.assert_allclose(kl_from_winner(-1e4, n), kl_bound(n), atol=1e-12)
    np.testing.assert_allclose(kl_from_winner(-np.inf, n), kl_bound(n), atol=1e-12)
    np.testing.assert_allclose(kl_from_winner(0.0, n), 0, atol=1e-12)
    assert kl_from_winner(np.zeros((3, 1)), n).shape == (3, 4)


def test_the_estimator_is_exact_when_only_the_best_outcome_is_an_atom():
    best, n = 0.2, 5
    fine = Outcomes(np.append(np.full(200_000, 0.8 / 200_000), best), np.arange(200_001.0))
    policy = fine.best_of(n)
    assert kl_divergence(policy, fine.probs) == pytest.approx(float(kl_from_winner(np.log(best), n)), abs=1e-4)


def test_bad_arguments_are_named():
    for function in (kl_bound, win_rate_bound):
        for n in (0.5, np.nan, np.inf, [2, 0]):
            with pytest.raises(ValueError, match="n is"):
                function(n)
    for log_prob in (0.1, np.nan):
        with pytest.raises(ValueError, match="log_prob is"):
            kl_from_winner(log_prob, 2)
