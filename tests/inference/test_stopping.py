"""When to stop drawing: laws by enumeration, the value by dynamic programming."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import beta
from test_exact import outcomes

from bonlib.exact import Outcomes
from bonlib.inference.best_of_n import BestOfN
from bonlib.inference.rewind import rewind
from bonlib.inference.rules import RULES, choose_in_groups, make_rule
from bonlib.inference.stopping import (
    StopAt,
    StopByGain,
    expected_excess,
    plug_in_gain,
    prior_gain,
    reservation_value,
    spacing_gain,
    value_after_costs,
    value_without_recall,
    worthwhile_attempts,
)

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0.0, 1.0, 1.0, 2.0, 3.0])


def test_the_reservation_value_is_where_the_gain_of_a_draw_is_its_cost():
    assert reservation_value(W.rewards, 0.2, W.probs) == pytest.approx(1.6, abs=1e-15)
    assert reservation_value(W.rewards, 0.5, W.probs) == pytest.approx(0.785714285714, abs=1e-12)
    assert reservation_value([0, 0.5, 1, 1.5], 0.25, [0.5, 0.3, 0.17, 0.03]) == pytest.approx(0.23, abs=1e-15)
    draws = np.random.default_rng(0).normal(size=(3, 5, 40)).round(1)
    values = reservation_value(draws, 0.1)
    assert values.shape == (3, 5)
    np.testing.assert_allclose(np.maximum(draws - values[..., None], 0).mean(axis=-1), 0.1, rtol=1e-12)
    np.testing.assert_allclose(reservation_value(draws, 0.1, np.full(40, 1 / 40)), values, atol=1e-14)


@given(outcomes(), st.floats(1e-9, 10))
def test_the_reservation_value_solves_its_equation_in_any_world(model, cost):
    value = reservation_value(model.rewards, cost, model.probs)
    assert model.probs @ np.maximum(model.rewards - value, 0) == pytest.approx(cost, rel=1e-6)


@pytest.mark.parametrize("cost", [0, -1, np.nan])
def test_a_draw_must_cost_something(cost):
    with pytest.raises(ValueError, match="cost is"):
        reservation_value(W.rewards, cost)


def test_what_is_no_world_is_named():
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        reservation_value([1.0, np.nan], 0.1)
    for probs in ([0.5, 0.4], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="probs has shape"):
            reservation_value([1.0, 2.0], 0.1, probs)


def test_the_law_of_the_small_world():
    rule = StopAt(4, float(reservation_value(W.rewards, 0.2, W.probs)))
    np.testing.assert_allclose(rule.law(W), [0.0081, 0.17128125, 0.137025, 0.41015625, 0.2734375], atol=1e-15)
    assert rule.cost(W) == pytest.approx(2.734375, abs=1e-15)
    assert value_after_costs(rule, W, 0.2) == pytest.approx(1.40205625, abs=1e-14)
    long = StopAt(2000, rule.threshold)
    assert (long.cost(W), value_after_costs(long, W, 0.2)) == pytest.approx((4, 1.6), abs=1e-13)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0, 1.6, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_law_is_that_of_all_tuples(threshold, n):
    law, cost = np.zeros(5), 0.0
    for drawn in itertools.product(range(5), repeat=n):
        chance = np.prod(W.probs[list(drawn)])
        spent = next((k for k, y in enumerate(drawn, 1) if W.rewards[y] >= threshold), n)
        law[max(drawn[:spent], key=lambda y: W.rewards[y])] += chance
        cost += chance * spent
    rule = StopAt(n, threshold)
    np.testing.assert_allclose(rule.law(W), law, atol=1e-15)
    assert rule.cost(W) == pytest.approx(cost, abs=1e-14)


@given(outcomes(), st.integers(1, 60))
def test_limits_of_stopping_at_a_threshold(model, n):
    low, high = model.rewards.min(), model.rewards[model.probs > 0].max()
    np.testing.assert_allclose(StopAt(n, low).law(model), model.probs, atol=1e-15)
    np.testing.assert_allclose(StopAt(n, high + 1).law(model), model.best_of(n), atol=1e-15)
    assert StopAt(n, high + 1).cost(model) == n
    middle = float(np.median(model.rewards[model.probs > 0]))
    if model.probs[model.rewards >= middle].sum() > 0.01:
        np.testing.assert_allclose(StopAt(10_000, middle).law(model), rewind(model, middle), atol=1e-12)
        assert StopAt(n, middle).law(model).sum() == pytest.approx(1, abs=1e-12)


@settings(max_examples=40)
@given(outcomes(max_size=5), st.floats(0.01, 3), st.integers(1, 7))
def test_the_same_threshold_is_optimal_for_every_horizon(model, cost, n):
    @cache
    def best_value(so_far, left):
        """Of going on optimally from a best reward so far, by dynamic programming."""
        if not left:
            return so_far
        drawn = sum(p * best_value(max(so_far, r), left - 1) for p, r in zip(model.probs, model.rewards, strict=True))
        return max(so_far, drawn - cost)

    first = sum(p * best_value(r, n - 1) for p, r in zip(model.probs, model.rewards, strict=True)) - cost
    threshold = float(reservation_value(model.rewards, cost, model.probs))
    assert value_after_costs(StopAt(n, threshold), model, cost) == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize(("cost", "threshold", "draws"), [(0.02, 0.8, 5), (0.08, 0.6, 2.5)])
def test_a_uniform_reward_has_closed_forms(cost, threshold, draws):
    fine = Outcomes(np.full(20_000, 1 / 20_000), (np.arange(20_000) + 0.5) / 20_000)
    assert reservation_value(fine.rewards, cost) == pytest.approx(1 - np.sqrt(2 * cost), abs=1e-4)
    assert reservation_value(fine.rewards, cost) == pytest.approx(threshold, abs=1e-4)
    rule = StopAt(10_000, threshold)
    assert rule.cost(fine) == pytest.approx(draws, abs=1e-3)
    assert value_after_costs(rule, fine, cost) == pytest.approx(threshold, abs=1e-3)
    best = max(value_after_costs(BestOfN(n), fine, cost) for n in range(1, 20))
    assert best == pytest.approx(max(n / (n + 1) - cost * n for n in range(1, 20)), abs=1e-4)
    assert cost != 0.02 or best == pytest.approx(0.737, abs=5e-4)


def test_what_learning_the_distribution_costs_on_the_small_world():
    known = StopAt(6, float(reservation_value(W.rewards, 0.2, W.probs)))
    assert value_after_costs(known, W, 0.2) == pytest.approx(1.4925, abs=5e-5)
    fixed = [value_after_costs(BestOfN(n), W, 0.2) for n in range(1, 7)]
    assert (max(fixed), np.argmax(fixed) + 1) == (pytest.approx(1.2221, abs=5e-5), 3)
    assert value_after_costs(StopByGain(6, 0.2, spacing_gain), W, 0.2) == pytest.approx(0.9560, abs=5e-5)
    plug_in = StopByGain(6, 0.2, plug_in_gain)
    assert (value_after_costs(plug_in, W, 0.2), plug_in.cost(W)) == (pytest.approx(0.85), pytest.approx(1))
    # A prior of four draws' worth brings most of it back, be it the truth or just as likely each.
    for prior, value in ((W, 1.4110), (Outcomes(np.full(4, 0.25), [0.0, 1.0, 2.0, 3.0]), 1.4775)):
        assert value_after_costs(StopByGain(6, 0.2, prior_gain(prior, 4)), W, 0.2) == pytest.approx(value, abs=5e-5)
    sure = StopByGain(6, 0.2, prior_gain(W, 1e12))
    assert value_after_costs(sure, W, 0.2) == pytest.approx(value_after_costs(known, W, 0.2), abs=1e-12)


def test_the_plug_in_rule_stops_at_once_since_its_threshold_is_below_its_best():
    draws = np.random.default_rng(0).normal(size=(50, 9))
    for k in range(1, 10):
        assert (reservation_value(draws[:, :k], 0.1) < draws[:, :k].max(axis=1)).all()
    assert (StopByGain(9, 0.1, plug_in_gain).choose(draws).spent == 1).all()


def test_the_spacing_is_what_the_latest_draw_has_gained():
    for k in range(2, 6):
        series = np.array(list(itertools.product(range(5), repeat=k)))
        gain = spacing_gain(W.rewards[series])[:, -1]
        exact = W.mean_reward(W.best_of(k)) - W.mean_reward(W.best_of(k - 1))
        assert W.probs[series].prod(axis=1) @ gain == pytest.approx(exact, abs=1e-14)
    assert spacing_gain(np.array([[2.0, 5.0, 4.0, 5.0]])).tolist() == [[np.inf, 1.5, pytest.approx(1 / 3), 0]]


@pytest.mark.parametrize("cost", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("strength", [0.5, 2.0, 7.0])
def test_with_a_prior_stopping_is_bayes_optimal(strength, cost):
    """Against dynamic programming over all that may be seen, draws being those of a Dirichlet process."""
    prior, n = Outcomes([0.5, 0.3, 0.2], [0.0, 1.0, 2.5]), 5

    @cache
    def best_value(counts, left):
        so_far = max((r for r, c in zip(prior.rewards, counts, strict=True) if c), default=-np.inf)
        if not left:
            return so_far
        chance = (strength * prior.probs + counts) / (strength + sum(counts))
        seen = [tuple(np.add(counts, np.eye(3, dtype=int)[y])) for y in range(3)]
        return max(so_far, sum(p * best_value(each, left - 1) for p, each in zip(chance, seen, strict=True)) - cost)

    rule, value = StopByGain(n, cost, prior_gain(prior, strength)), 0.0
    series = np.array(list(itertools.product(range(3), repeat=n)))
    kept, spent = rule.choose(prior.rewards[series])
    for drawn, best, made in zip(series, kept, spent, strict=True):
        chance, counts = 1.0, np.zeros(3)
        for y in drawn:
            chance *= (strength * prior.probs[y] + counts[y]) / (strength + counts.sum())
            counts[y] += 1
        value += chance * (prior.rewards[drawn[best]] - cost * made)
    assert value == pytest.approx(best_value((0, 0, 0), n), abs=1e-13)


@pytest.mark.parametrize(
    "rule", [StopAt(4, 1.6), StopByGain(4, 0.2, spacing_gain), StopByGain(4, 0.2, prior_gain(W, 2.0))]
)
def test_what_is_chosen_follows_the_law(rule):
    drawn = np.random.default_rng(0).choice(5, p=W.probs, size=(2, 20_000, 4))
    kept, spent = rule.choose(W.rewards[drawn])
    assert kept.shape == spent.shape == (2, 20_000)
    seen = np.bincount(np.take_along_axis(drawn, kept[..., None], axis=-1).ravel(), minlength=5)
    assert stats.chisquare(seen, 40_000 * rule.law(W)).pvalue > 1e-3
    assert spent.mean() == pytest.approx(rule.cost(W), abs=0.03)
    assert (kept < spent).all()
    assert choose_in_groups(rule, W.rewards[drawn[0, :3]]).kept.shape == (3, 1)


def test_long_series_are_looked_at_as_far_as_needed():
    draws = np.random.default_rng(0).normal(size=(300, 200))
    rule = StopByGain(200, 0.01, spacing_gain)
    kept, spent = rule.choose(draws)
    assert spent.min() < 16 < 64 < spent.max()
    for row, place, made in zip(draws, kept, spent, strict=True):
        gains = spacing_gain(row[None])[0]
        assert made == next((k for k, gain in enumerate(gains, 1) if gain < 0.01), 200)
        assert place == row[:made].argmax()


@given(outcomes(), st.floats(-4, 4))
def test_the_expected_excess_is_summed(model, at):
    levels = np.array([[at, -5.0, 5.0], *[model.rewards[:1].repeat(3)]])
    want = [[model.probs @ np.maximum(model.rewards - each, 0) for each in row] for row in levels]
    np.testing.assert_allclose(expected_excess(model, levels), want, atol=1e-12)


def test_without_recall_more_is_lost_than_stopping_saves():
    assert value_without_recall(W, 4) == pytest.approx(1.83046875, abs=1e-14)
    assert W.mean_reward(W.best_of(4)) == pytest.approx(2.019, abs=5e-4)
    assert value_without_recall(W, 1) == pytest.approx(W.mean_reward(W.probs))


def test_a_verifier_is_asked_as_long_as_its_chance_is_worth_it():
    assert worthwhile_attempts(1, 2, 1, 0.07).most == 12
    for a, b, prize, cost in ((1, 2, 1.0, 0.07), (0.5, 3, 2.0, 0.05), (2, 1, 1.0, 0.9), (1, 9, 1.0, 0.2)):

        def value(draws, a=a, b=b, prize=prize, cost=cost):
            chance = [beta(a, b + t) / beta(a, b) for t in range(draws + 1)]
            return prize * (1 - chance[-1]) - cost * sum(chance[:-1])

        found = worthwhile_attempts(a, b, prize, cost)
        assert found.value == pytest.approx(value(found.most), abs=1e-12)
        assert found.value >= max(map(value, range(60))) - 1e-12


def test_the_table_makes_them_by_their_setting():
    assert make_rule("stop-at", n=4, threshold=1.6) == StopAt(4, 1.6)
    assert make_rule("stop-by-spacing", n=4, cost_per_draw=0.2) == StopByGain(4, 0.2, spacing_gain)
    assert RULES["stop-by-spacing"].scale == "reward"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StopAt(0, 1.0), "n is 0"),
        (lambda: StopAt(2, np.nan), "threshold is nan"),
        (lambda: StopAt(2, 1.0).choose([1.0]), r"rewards has shape \(1,\)"),
        (lambda: StopByGain(2, 0, spacing_gain), "cost_per_draw is 0"),
        (lambda: StopByGain(2, 1, 0.5), "gain is 0.5; it must be a function"),
        (lambda: StopByGain(20, 1, spacing_gain).law(W), "n is 20, for which 5 outcomes"),
        (lambda: prior_gain(W, 0), "strength is 0"),
        (lambda: value_without_recall(W, 0), "n is 0"),
        (lambda: worthwhile_attempts(1, 0, 1, 1), "failures is 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_stops_by_rewards_of_other_prompts():
    others = np.random.default_rng(0).normal(size=(3, 5))
    rewards = np.random.default_rng(1).normal(size=(40, 12))
    found = make_rule("stop-by-prior", n=12, cost_per_draw=0.05, prior=others, strength=2).choose(rewards)
    by_hand = StopByGain(12, 0.05, prior_gain(Outcomes(np.full(15, 1 / 15), others.ravel()), 2)).choose(rewards)
    np.testing.assert_array_equal(found, by_hand)
    assert 1 < found.spent.mean() < 12
    for bad in ([], [np.nan], ["a"], [[1], [2, 3]]):
        with pytest.raises(ValueError, match="prior is"):
            make_rule("stop-by-prior", n=2, cost_per_draw=0.1, prior=bad)
