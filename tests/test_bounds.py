"""The formulas for KL and win rate, and the estimator from the winner's probability."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_exact import outcomes

from bonlib.bounds import (
    blockwise_kl_bound,
    kl_bound,
    kl_crude,
    kl_from_winner,
    kl_gap_lower,
    kl_gap_upper,
    rewind_kl,
    tilted_mean,
    win_rate_bound,
    win_rate_frontier,
    win_rate_gap_lower,
    win_rate_gap_upper,
)
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.rewind import rewind_at


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


@given(outcomes(), st.floats(1, 1e12))
def test_the_gaps_lie_between_their_bounds(model, n):
    policy = model.best_of(n, ties="order")
    top = model.probs[np.lexsort((np.arange(len(model)), np.where(model.probs > 0, model.rewards, -np.inf)))[-1]]
    gap = kl_bound(n) - kl_divergence(policy, model.probs)
    assert kl_gap_lower(n, top) - 1e-9 <= gap
    assert 1 < n < 2 or gap <= kl_gap_upper(n, model.probs) + 1e-9
    missing = win_rate_bound(n) - model.win_rate(policy)
    assert win_rate_gap_lower(n, model.probs[model.rewards == best_reward(model)].sum()) - 1e-9 <= missing
    if len(set(model.rewards)) == len(model):  # Σ π² counts no ties
        assert missing <= win_rate_gap_upper(n, model.probs) + 1e-9


def best_reward(model):
    return model.rewards[model.probs > 0].max()


@given(outcomes(), st.floats(1, 1e9))
def test_the_crude_estimator_is_on_average_at_most_a_nat_above_the_kl(model, n):
    policy = model.best_of(n, ties="order")
    possible = model.probs > 0
    crude = policy[possible] @ kl_crude(np.minimum(model.log_probs[possible], 0), n)
    assert kl_divergence(policy, model.probs) - 1e-9 <= crude <= kl_divergence(policy, model.probs) + 1 + 1e-9


@given(st.floats(-1e4, 0), st.floats(1, 1e12))
def test_the_estimator_equals_its_formula_in_many_digits(log_prob, n):
    with mpmath.workdps(4400):
        eps, count = mpmath.exp(mpmath.mpf(log_prob)), mpmath.mpf(n)
        missed = (1 - eps) ** count
        want = (1 - missed) * mpmath.log((1 - missed) / eps)
        if missed > 0:
            want += missed * (mpmath.log(count) + (count - 1) * mpmath.log(1 - eps) - (count - 1) / count)
        crude = mpmath.log((1 - missed) / eps)
    assert float(kl_from_winner(log_prob, n)) == pytest.approx(float(want), abs=1e-10)
    assert float(kl_crude(log_prob, n)) == pytest.approx(float(crude), abs=1e-10)


@given(st.floats(-700, 0).map(np.exp), st.floats(1, 1e12))
def test_the_lower_gaps_equal_their_formulas_in_many_digits(top, n):
    with mpmath.workdps(800):
        eps, count = mpmath.mpf(top), mpmath.mpf(n)
        missed = (1 - eps) ** count
        kl = kl_bound(n) - kl_from_winner(np.log(top), n)
        win = count / (count + 1) * (1 - missed * (1 - eps)) - (1 - missed) * (1 - eps / 2)
    assert float(kl_gap_lower(n, top)) == pytest.approx(float(kl), abs=1e-10)
    assert float(win_rate_gap_lower(n, top)) == pytest.approx(float(win), abs=1e-12)


@pytest.mark.parametrize("kl", [1e-14, 1e-10, 1e-5, 4.1e-4, 4.2e-4, 0.01, 0.3, 1, 3, 10, 45])
def test_the_frontier_equals_its_formula_in_many_digits(kl):
    with mpmath.workdps(60):

        def win(t):
            return 1 / (1 - mpmath.exp(-t)) - 1 / t

        low, high = mpmath.mpf(10) ** -12, mpmath.mpf(10) ** 30
        for _ in range(300):
            t = mpmath.sqrt(low * high)
            low, high = (t, high) if t * win(t) - mpmath.log((mpmath.exp(t) - 1) / t) < kl else (low, t)
        want = win(low)
    assert float(win_rate_frontier(kl)) == pytest.approx(float(want), abs=1e-12)


@given(outcomes(), st.floats(0.01, 100), st.floats(1, 1e6))
def test_no_policy_is_above_the_frontier(model, beta, n):
    for policy in (model.tilt(beta, "calibrated"), model.best_of(n), rewind_at(model, 1 / n)):
        assert model.win_rate(policy) <= win_rate_frontier(kl_divergence(policy, model.probs)) + 1e-9


def test_the_frontier_is_that_of_a_fine_uniform_reward():
    fine = Outcomes(np.full(20_000, 1 / 20_000), np.arange(20_000.0))
    curve = fine.trade_off(lambda beta: fine.tilt(beta, "calibrated"), np.geomspace(0.02, 30, 20))
    np.testing.assert_allclose(win_rate_frontier(curve.kl), curve.win_rate, atol=1e-6)
    assert win_rate_frontier([0.0, np.inf]).tolist() == [0.5, 1.0]


def test_rewind_kl_is_unbiased():
    assert rewind_kl([1, 2, 3]).tolist() == pytest.approx([0, 1, 1.5])
    for alpha in (0.9, 0.3, 0.05):
        trials = np.arange(1, 2000)
        chance = alpha * (1 - alpha) ** (trials - 1)
        assert chance @ rewind_kl(trials) == pytest.approx(-np.log(alpha), abs=1e-9)


def test_the_blockwise_bound_counts_whole_blocks():
    assert blockwise_kl_bound(4, [10, 12], 4) == pytest.approx(3 * kl_bound(4))
    assert blockwise_kl_bound(4, [1, 5], 4) == pytest.approx(1.5 * kl_bound(4))
    assert blockwise_kl_bound([2, 4], [3, 4], [[1], [2], [4]]).shape == (3, 2)
    np.testing.assert_allclose(blockwise_kl_bound([2, 4], 7, 100), kl_bound([2, 4]))


@given(outcomes(), st.floats(-1e3, 1e3))
def test_the_tilted_mean_moves_from_the_least_to_the_most(model, t):
    got = tilted_mean(model.rewards, model.probs, t)
    possible = model.rewards[model.probs > 0]
    assert possible.min() - 1e-9 <= got <= possible.max() + 1e-9
    with mpmath.workdps(400):
        tilt = mpmath.mpf(t)
        terms = [p * mpmath.exp(tilt * r) for p, r in zip(model.probs.tolist(), model.rewards.tolist(), strict=True)]
        want = (
            mpmath.log(mpmath.fsum(terms) / mpmath.fsum(model.probs.tolist())) / tilt
            if t
            else model.probs @ model.rewards
        )
    assert float(got) == pytest.approx(float(want), abs=1e-9)


def test_the_tilted_mean_has_its_limits_and_broadcasts():
    values, weights = [0.0, 1.0, 5.0], [0.5, 0.5, 0.0]
    np.testing.assert_allclose(tilted_mean(values, weights, [-np.inf, 0, np.inf]), [0, 0.5, 1])
    assert tilted_mean(np.zeros((4, 3)), weights, np.ones((2, 1))).shape == (2, 4)


def test_everything_broadcasts():
    n, probs = np.array([[1.0], [1e12]]), np.full((5, 4), 0.25)
    for value in (
        kl_gap_upper(n, probs),
        kl_gap_lower(n, np.linspace(0, 1, 5)),
        kl_crude(np.linspace(-9, 0, 5), n),
        win_rate_gap_upper(n, probs),
        win_rate_gap_lower(n, np.linspace(0, 1, 5)),
    ):
        assert value.shape == (2, 5)
        assert np.isfinite(value).all()


@given(st.floats(-700, 0), st.floats(1, 1e12))
def test_one_gap_and_its_estimator_make_up_the_bound(log_prob, n):
    eps = np.exp(log_prob)
    assert kl_gap_lower(n, eps) + kl_from_winner(np.log(eps), n) == pytest.approx(float(kl_bound(n)), abs=1e-12)


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
        for function in (kl_from_winner, kl_crude):
            with pytest.raises(ValueError, match="log_prob is"):
                function(log_prob, 2)
    for function in (kl_gap_upper, win_rate_gap_upper):
        with pytest.raises(ValueError, match="divide by the sum"):
            function(2, [0.5, 0.6])
        with pytest.raises(ValueError, match="probs holds nan"):
            function(2, [0.5, np.nan])
    for function in (kl_gap_lower, win_rate_gap_lower):
        with pytest.raises(ValueError, match=r"top_prob is 1\.1"):
            function(2, 1.1)
    with pytest.raises(ValueError, match="kl is -1"):
        win_rate_frontier([0.5, -1])
    with pytest.raises(ValueError, match="lengths is"):
        blockwise_kl_bound(2, [], 1)
    with pytest.raises(ValueError, match="block is"):
        blockwise_kl_bound(2, [3], 1.5)
    with pytest.raises(ValueError, match="trials is 0"):
        rewind_kl([1, 0])
    with pytest.raises(ValueError, match="last axes must agree"):
        tilted_mean([1.0, 2.0], [1.0], 1)
    with pytest.raises(ValueError, match="must be finite"):
        tilted_mean([1.0, np.nan], [0.5, 0.5], 1)
