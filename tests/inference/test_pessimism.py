"""Pessimism: its laws against all tuples and simulation, its limits and bounds, and a hacked reward."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from scipy.stats import chisquare

from bonlib.exact import Outcomes
from bonlib.inference.pessimism import (
    Pessimism,
    best_of_n_slope,
    hedged_n,
    pessimism_from_draws,
    pessimistic_best_of,
    pessimistic_policy,
)
from bonlib.inference.rules import TooManyOutcomesError
from bonlib.inference.stopping import reservation_value

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
H = Outcomes([0.5, 0.3, 0.17, 0.03], [0, 0.5, 1, 1.5])
GOLD = np.array([0, 0.5, 1, -1])


@st.composite
def outcomes(draw):
    size = draw(st.integers(1, 6))
    weights = np.array(draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size)))
    rewards = draw(st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size))
    return Outcomes(weights / weights.sum(), rewards)


def first_accepted(model, n, accept_of, fallback, again=False):
    """The law by all tuples: draws in order, each accepted or not, with chances that depend on them."""
    law = np.zeros(len(model))
    for drawn in itertools.product(range(len(model)), repeat=n):
        left, accept = np.prod(model.probs[list(drawn)]), accept_of(model.rewards[list(drawn)])
        tries = itertools.product(range(len(model)), repeat=n) if again else [drawn]
        for tried in tries:
            here = left * np.prod(model.probs[list(tried)]) if again else left
            for y in tried:
                law[y] += here * accept[y]
                here *= 1 - accept[y]
            if fallback == "fresh":
                law += here * model.probs
            else:
                law[tried[-1]] += here
    return law


@pytest.mark.parametrize("fallback", ["fresh", "last"])
@pytest.mark.parametrize("beta", [0.05, 0.5, 0.9, 3.0])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_law_equals_enumeration_of_all_tuples(n, beta, fallback):
    policy = pessimistic_policy(W, beta)
    ratio = policy / W.probs
    want = first_accepted(W, n, lambda rewards: ratio / ratio.max(), fallback)
    np.testing.assert_allclose(pessimistic_best_of(W, n, beta, fallback), want, rtol=0, atol=1e-14)
    one_more = pessimistic_best_of(W, n + 1, beta, "last")
    np.testing.assert_allclose(pessimistic_best_of(W, n, beta), one_more, rtol=0, atol=1e-14)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("best", [None, 3.0])
@pytest.mark.parametrize(("n", "beta"), [(1, 0.5), (2, 0.5), (3, 0.5), (3, 4.0)])
def test_the_law_with_a_threshold_from_draws_equals_enumeration(n, beta, best, again):
    def accept_of(rewards):
        low, top = float(reservation_value(rewards, beta)), rewards.max() if best is None else best
        return np.clip((W.rewards - low) / (top - low), 0, 1)

    want = first_accepted(W, n, accept_of, "fresh", again)
    np.testing.assert_allclose(pessimism_from_draws(W, n, beta, best=best, again=again), want, rtol=0, atol=1e-14)


def test_what_cannot_come_changes_nothing():
    with_more = Outcomes([0.3, 0, 0.25, 0.2, 0.15, 0.1, 0], [0, 9, 1, 1, 2, 3, 1])
    for law in (
        lambda model: pessimistic_policy(model, 0.5),
        lambda model: pessimistic_best_of(model, 3, 0.5),
        lambda model: pessimism_from_draws(model, 3, 0.5),
        lambda model: pessimism_from_draws(model, 3, 0.5, best=3.0, again=True),
        lambda model: best_of_n_slope(model, 3),
    ):
        found = law(with_more)
        np.testing.assert_allclose(found[[0, 2, 3, 4, 5]], law(W), atol=1e-15)
        assert found[[1, 6]].tolist() == [0, 0]


def test_golden_numbers():
    policy = pessimistic_policy(W, 0.5)
    threshold = reservation_value(W.rewards, 0.5, W.probs)
    np.testing.assert_allclose([threshold, max(policy / W.probs)], [0.785714285714, 4.428571428571], atol=6e-13)
    golden = [0, 0.107142857143, 0.085714285714, 0.364285714286, 0.442857142857]
    np.testing.assert_allclose(policy, golden, atol=6e-13)
    golden = [0.139209828472, 0.173433251653, 0.138746601323, 0.26485012252, 0.283760196032]
    np.testing.assert_allclose(pessimistic_best_of(W, 3, 0.5), golden, atol=6e-13)
    n = hedged_n(H, GOLD)
    np.testing.assert_allclose([n, H.best_of(n) @ GOLD], [4.677625861837, 0.538817885247], atol=6e-13)
    assert reservation_value(H.rewards, 0.25, H.probs) == pytest.approx(0.23)
    assert pessimistic_policy(H, 0.25) @ GOLD == pytest.approx(0.5332)


def test_a_hacked_reward_ruins_best_of_n_but_not_pessimism_nor_a_tuned_n():
    best = [H.best_of(n) @ GOLD for n in (1, 2, 4, 8, 16, 64)]
    assert best == pytest.approx([0.290, 0.437, 0.535, 0.482, 0.214, -0.715], abs=6e-4)
    kept = [pessimistic_best_of(H, n, 0.25) @ GOLD for n in (1, 4, 16)]
    assert kept == pytest.approx([0.338, 0.432, 0.526], abs=6e-4)
    assert min(Pessimism(n, 0.25).law(H) @ GOLD for n in (4, 8, 16, 32, 64)) > 0.5
    assert H.best_of(hedged_n(H, GOLD)) @ GOLD > pessimistic_policy(H, 0.25) @ GOLD


def test_a_threshold_from_few_draws_keeps_what_the_policy_never_does():
    worst = [pessimism_from_draws(W, 4, 0.5, best=3.0, again=again)[0] for again in (False, True)]
    assert worst == pytest.approx([0.084, 0.110], abs=6e-4)
    assert pessimistic_policy(W, 0.5)[0] == 0


@given(outcomes(), st.floats(-2, 1))
def test_no_policy_has_more_reward_less_chi_squared(model, log_beta):
    beta = 10**log_beta
    policy = pessimistic_policy(model, beta)

    def objective(p):
        return p @ model.rewards - beta / 2 * (p**2 / model.probs).sum()

    rng = np.random.default_rng(0)
    for other in rng.dirichlet(np.ones(len(model)), size=20):
        for share in (1.0, 1e-3):
            assert objective((1 - share) * policy + share * other) <= objective(policy) + 1e-12


def test_the_policy_is_what_a_general_optimiser_finds():
    found = minimize(
        lambda p: 0.25 * (p**2 / W.probs).sum() - p @ W.rewards,
        W.probs,
        bounds=[(0, 1)] * 5,
        constraints=[LinearConstraint(np.ones(5), 1, 1)],
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(pessimistic_policy(W, 0.5), found.x, atol=1e-6)


def test_limits():
    centred = W.rewards - W.probs @ W.rewards
    for beta in (W.probs @ W.rewards, 2.0, 1e9):  # the least reward is 0
        np.testing.assert_allclose(pessimistic_policy(W, beta), W.probs * (1 + centred / beta), atol=1e-8)
    for beta in (1e-3, 1e-30):
        np.testing.assert_allclose(pessimistic_policy(W, beta), [0, 0, 0, 0, 1])
    for one in (Pessimism(1, 0.5).law(W), pessimistic_best_of(W, 1, 0.5, "last")):
        np.testing.assert_allclose(one, W.probs)
    np.testing.assert_allclose(pessimistic_best_of(W, 10**6, 0.5), pessimistic_policy(W, 0.5))
    np.testing.assert_allclose(pessimism_from_draws(W, 6, 1e-30), W.best_of(6), rtol=1e-12)


@given(outcomes(), st.floats(1.01, 50))
def test_the_slope_is_the_difference_of_neighbours(model, n):
    step = 1e-5 * n
    near = (model.best_of(n + step) - model.best_of(n - step)) / (2 * step)
    np.testing.assert_allclose(best_of_n_slope(model, n), near, atol=1e-9)


def test_hedging_ends_where_gold_only_falls_or_only_rises():
    assert hedged_n(W, -W.rewards) == 1
    assert hedged_n(W, W.rewards, most=50) == pytest.approx(50)
    assert best_of_n_slope(W, 3).sum() == pytest.approx(0, abs=1e-15)


def test_choices_follow_the_law():
    rng = np.random.default_rng(0)
    drawn = rng.choice(5, size=(100_000, 4), p=W.probs)
    rows, rule = np.arange(len(drawn)), Pessimism(4, 0.5)
    kept, spent = rule.choose(W.rewards[drawn], seed=1)
    assert chisquare(np.bincount(drawn[rows, kept], minlength=5), rule.law(W) * len(drawn)).pvalue > 0.01
    assert (spent == rule.cost(W)).all()


def test_a_small_beta_keeps_the_first_best_and_a_large_one_the_first():
    rewards = np.array([[1.0, 3.0, 3.0, 0.0], [5.0, 2.0, 1.0, 5.0]])
    assert Pessimism(4, 1e-30).choose(rewards).kept.tolist() == [1, 0]
    assert Pessimism(4, 1e30).choose(rewards).kept.tolist() == [0, 0]


def test_bad_arguments_are_named():
    for beta in (0, -1, np.nan):
        for make in (
            lambda b: Pessimism(2, b),
            lambda b: pessimistic_policy(W, b),
            lambda b: pessimism_from_draws(W, 2, b),
        ):
            with pytest.raises(ValueError, match="beta is"):
                make(beta)
    with pytest.raises(ValueError, match="n is 0"):
        Pessimism(0, 1)
    for best in (2.5, np.nan):
        with pytest.raises(ValueError, match=r"best is .* at least 3"):
            pessimism_from_draws(W, 2, 1, best=best)
    with pytest.raises(ValueError, match="fallback is 'none'"):
        pessimistic_best_of(W, 2, 1, "none")
    with pytest.raises(TooManyOutcomesError, match="5 different ones, on which 100 draws"):
        pessimism_from_draws(Outcomes(np.full(5, 0.2), range(5)), 100, 1)
    with pytest.raises(ValueError, match=r"gold has shape \(2,\)"):
        hedged_n(W, [1, 2])
