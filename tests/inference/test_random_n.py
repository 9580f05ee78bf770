"""Best of a random number of draws: each member's law, its continuous limit, and what is chosen by it."""

import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from test_exact import outcomes

from bonlib.bounds import kl_bound, win_rate_frontier
from bonlib.estimates import best_of_n_mean, best_of_random_n_mean, best_of_random_n_win_rate
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.draw_counts import (
    FixedCount,
    GeometricCount,
    LogSeries,
    OnePlusPoisson,
    TruncatedPoisson,
    lifted_reward,
)
from bonlib.inference.random_n import BestOfRandomN
from bonlib.inference.rules import RULES, choose_in_groups, make_rule

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0.0, 1.0, 1.0, 2.0, 3.0])
COUNTS = [FixedCount(3), TruncatedPoisson(2.0), OnePlusPoisson(1.5), GeometricCount(0.6), LogSeries(2.0)]
exp, log = mpmath.exp, mpmath.log
GENERATING = {  # G(x) of each member, from its parameter
    FixedCount: lambda n, x: x**n,
    TruncatedPoisson: lambda t, x: (exp(t * x) - 1) / (exp(t) - 1),
    OnePlusPoisson: lambda mu, x: x * exp(mu * (x - 1)),
    GeometricCount: lambda q, x: (1 - q) * x / (1 - q * x),
    LogSeries: lambda t, x: -log(1 - (1 - exp(-t)) * x) / t,
}


@pytest.mark.parametrize(
    ("count", "law"),
    [
        (TruncatedPoisson(2), [0.128676096697, 0.231260927433, 0.185008741946, 0.24541315177, 0.209641082153]),
        (LogSeries(2), [0.150146910321, 0.20701321849, 0.165610574792, 0.230214942375, 0.247014354022]),
        (GeometricCount(0.6), [0.146341463415, 0.221729490022, 0.177383592018, 0.237154150198, 0.217391304348]),
        (FixedCount(2.5), W.best_of(2.5)),
    ],
)
def test_laws_of_the_small_world(count, law):
    np.testing.assert_allclose(count.law(W), law, rtol=0, atol=5e-13)


@pytest.mark.parametrize("count", COUNTS)
def test_the_law_is_that_of_all_tuples_of_each_number_of_draws(count):
    for n in (1, 4):
        enumerated = np.zeros(5)
        for k, chance in enumerate(count.chances(n), 1):
            for drawn in itertools.product(range(5), repeat=k):
                enumerated[max(drawn, key=lambda y: W.rewards[y])] += chance * np.prod(W.probs[list(drawn)])
        np.testing.assert_allclose(BestOfRandomN(n, count).law(W), enumerated, atol=1e-15)
    np.testing.assert_allclose(BestOfRandomN(400, count).law(W), count.law(W), atol=1e-14)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("member", GENERATING)
def test_logarithms_are_right_to_the_last_digits(member, seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 10))
    weights = np.exp(rng.uniform(-60, 0, size)) if seed % 2 else rng.dirichlet(np.ones(size))
    model = Outcomes(weights / weights.sum(), rng.integers(0, size, size).astype(float))
    value = 1 - 10 ** rng.uniform(-9, -0.1) if member is GeometricCount else 10 ** rng.uniform(0, 2.5)
    count, exact = member(value), mpmath.mpf(value)
    with mpmath.workdps(400):
        total = mpmath.fsum(map(mpmath.mpf, model.probs.tolist()))
        p = [mpmath.mpf(x) / total for x in model.probs.tolist()]
        for y, reward in enumerate(model.rewards):
            below = mpmath.fsum(q for q, r in zip(p, model.rewards, strict=True) if r < reward)
            above = mpmath.fsum(q for q, r in zip(p, model.rewards, strict=True) if r > reward)
            upto = 1 - above
            want = log((GENERATING[member](exact, upto) - GENERATING[member](exact, below)) * p[y] / (upto - below))
            assert abs(count.log_law(model)[y] - want) <= 4e-15 * max(1, abs(want))


@settings(max_examples=30)
@given(outcomes(), st.sampled_from(COUNTS))
def test_a_law_is_a_distribution_and_better_outcomes_gain(model, count):
    law = count.law(model)
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert (law <= count.mean * model.probs * (1 + 1e-12)).all()
    lift = (law / np.maximum(model.probs, 1e-300))[model.probs > 0][np.argsort(model.rewards[model.probs > 0])]
    assert (np.diff(lift) >= -1e-9 * lift.max()).all()


@pytest.mark.parametrize("t", [1e-6, 0.3, 4, 700])
def test_a_poisson_number_above_zero_is_the_tilt_of_highest_win_rate(t):
    fine = Outcomes(np.full(50, 0.02), np.arange(50.0))
    count = TruncatedPoisson(t)
    np.testing.assert_allclose(count.law(fine), fine.tilt(1 / t, "calibrated"), rtol=1e-11, atol=1e-300)
    assert count.win_rate == pytest.approx(float(win_rate_frontier(count.kl)), abs=1e-9)
    u = np.linspace(0, 1, 9)
    np.testing.assert_allclose(count.density(u), np.exp(t * (u - 1)) * t / -np.expm1(-t), rtol=1e-12)


@given(outcomes(), st.floats(1e-3, 300))
def test_the_lifted_reward_makes_the_tilt_exact_whatever_the_ties(model, t):
    lift = lifted_reward(model, t)
    normaliser = np.log(np.expm1(t) / t) if t < 700 else t - np.log(t)
    held = model.probs > 0
    want = TruncatedPoisson(t).log_law(model)[held]
    np.testing.assert_allclose((model.log_probs + lift)[held] - normaliser, want, atol=1e-11)
    # No outcome that weighs something gains more than t F≤ says, or less than t F.
    assert (lift <= t * model.cdf + 1e-11).all()
    assert (lift >= t * model.strict_cdf - 1e-11).all()


def gap_at_equal_win_rate(t):
    """KL that best-of-Poisson pays above the tilt."""
    tilt = TruncatedPoisson(t)
    mu = brentq(lambda mu: OnePlusPoisson(mu).win_rate - tilt.win_rate, 0, 2 * t, xtol=1e-13)
    return OnePlusPoisson(mu).kl - tilt.kl


def test_one_more_than_poisson_is_near_the_tilt_and_above_zero_is_on_it():
    assert gap_at_equal_win_rate(4.0) == pytest.approx(6.56e-4, abs=5e-7)
    gaps = [gap_at_equal_win_rate(t) for t in np.geomspace(0.1, 100, 60)]
    assert min(gaps) > -1e-13
    assert 6.7e-4 < max(gaps) < 6.76e-4  # Khalaf et al. have less than 8e-4


def test_the_pools_of_a_random_number_of_draws():
    """Forward KL to best-of-N for random N pools to the mixture; reverse KL, continuous, to best-of-E[N]."""
    chances, u = np.array([0.2, 0.5, 0.0, 0.3]), np.linspace(0.001, 1, 50)
    numbers = np.arange(1, 5)
    pooled = np.exp(chances @ (np.log(numbers)[:, None] + (numbers - 1)[:, None] * np.log(u)))
    best = FixedCount(chances @ numbers).density(u)
    np.testing.assert_allclose(pooled / best, (pooled / best)[0], rtol=1e-12)
    mixture = sum(chance * W.best_of(n) for n, chance in zip(numbers, chances, strict=True))
    cost = sum(chance * kl_divergence(W.best_of(n), mixture) for n, chance in zip(numbers, chances, strict=True))
    for direction in np.random.default_rng(0).normal(size=(20, 5)):
        other = mixture * np.exp(0.1 * direction)
        other /= other.sum()
        assert sum(c * kl_divergence(W.best_of(n), other) for n, c in zip(numbers, chances, strict=True)) > cost


@pytest.mark.parametrize("mean", [1.5, 40, 1e6, 1e12])
@pytest.mark.parametrize("member", GENERATING)
def test_what_a_reward_without_ties_has(member, mean):
    value = {
        FixedCount: mean,
        TruncatedPoisson: brentq(lambda t: TruncatedPoisson(t).mean / mean - 1, 1e-6, 2 * mean),
        OnePlusPoisson: mean - 1,
        GeometricCount: 1 - 1 / mean,
        LogSeries: brentq(lambda t: LogSeries(t).mean / mean - 1, 1e-6, 40),
    }[member]
    count = member(value)
    with mpmath.workdps(40):
        value = mpmath.mpf(value)
        density = {  # of 1 − u
            FixedCount: lambda v: value * (1 - v) ** (value - 1),
            TruncatedPoisson: lambda v: value * exp(-value * v) / (1 - exp(-value)),
            OnePlusPoisson: lambda v: (1 + value * (1 - v)) * exp(-value * v),
            GeometricCount: lambda v: (1 - value) / (1 - value * (1 - v)) ** 2,
            LogSeries: lambda v: (1 - exp(-value)) / (value * (exp(-value) + (1 - exp(-value)) * v)),
        }[member]
        at = [float(log(mean)) + shift for shift in (-6, -4, -2, -1, 0, 1, 2, 4, 8, 30)]
        points = [0, *np.linspace(0, 3, 7)[1:], *(s for s in at if s > 3.1)]
        points = sorted(map(float, points))
        win_rate = 1 - mpmath.quad(lambda s: exp(-2 * s) * density(exp(-s)), [*points, points[-1] + 40])
        kl = mpmath.quad(lambda s: exp(-s) * density(exp(-s)) * log(density(exp(-s)) or 1), [*points, points[-1] + 40])
    assert count.mean == pytest.approx(float(density(mpmath.mpf(0))), rel=1e-12)
    assert count.win_rate == pytest.approx(float(win_rate), abs=1e-13)
    assert count.kl == pytest.approx(float(kl), rel=1e-12, abs=1e-13)


def test_closed_forms_of_the_continuous_case():
    for beta in (0.1, 0.25, 2.0):
        wind, tilt = LogSeries(1 / beta), TruncatedPoisson(1 / beta)
        a = -np.expm1(-1 / beta)
        assert wind.win_rate == pytest.approx(1 / a - beta, abs=1e-13) == tilt.win_rate
        assert wind.kl == pytest.approx(1 / (2 * beta) + np.log(beta * a), abs=1e-12)
        assert wind.mean == pytest.approx(beta * np.expm1(1 / beta))
        assert wind.kl > tilt.kl
    wind = LogSeries(4.0)
    np.testing.assert_allclose(
        [wind.win_rate, wind.kl, wind.mean], [0.768657360364, 0.595220192054, 13.399537508286], atol=5e-13
    )
    assert LogSeries(5.0).kl == pytest.approx(0.884, abs=5e-4)
    assert TruncatedPoisson(5.0).kl == pytest.approx(0.650, abs=5e-4)
    assert FixedCount(7).kl == pytest.approx(float(kl_bound(7)), abs=1e-13)
    q = 0.8
    assert GeometricCount(q).kl == pytest.approx(-np.log(1 - q) * (2 / q - 1) - 2, abs=1e-13)
    for none in (TruncatedPoisson(1e-9), OnePlusPoisson(0), GeometricCount(0), LogSeries(1e-9), FixedCount(1)):
        assert (none.kl, none.win_rate) == pytest.approx((0, 0.5), abs=1e-9)
        np.testing.assert_allclose(none.law(W), W.probs, atol=1e-9)


@pytest.mark.parametrize("count", COUNTS)
def test_numbers_of_draws_come_as_often_as_they_should(count):
    drawn = np.minimum(count.sample((200, 100), seed=3), 8)
    chances = count.chances(8)
    seen = np.bincount(drawn.ravel(), minlength=9)[1:]
    possible = chances > 0
    assert seen[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(seen[possible], 20_000 * chances[possible]).pvalue > 1e-3
    assert chances @ np.arange(1, 9) == pytest.approx(BestOfRandomN(8, count).cost(W))


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_chosen_follows_the_law(count):
    rule, rng = BestOfRandomN(4, count), np.random.default_rng(1)
    drawn = rng.choice(5, p=W.probs, size=(40_000, 4))
    kept, spent = rule.choose(W.rewards[drawn], seed=2)
    seen = np.bincount(np.take_along_axis(drawn, kept[:, None], axis=1)[:, 0], minlength=5)
    assert stats.chisquare(seen, 40_000 * rule.law(W)).pvalue > 1e-3
    assert (kept < spent).all()
    assert spent.max() <= 4
    assert spent.mean() == pytest.approx(rule.cost(W), abs=0.03)
    again = rule.choose(W.rewards[drawn], seed=2)
    np.testing.assert_array_equal(again.kept, kept)
    assert choose_in_groups(rule, W.rewards[drawn[:5]], seed=1).kept.shape == (5, 1)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3).map(float), min_size=2, max_size=6), st.sampled_from(COUNTS))
def test_estimates_are_the_mean_over_all_subsets_and_opponents(rewards, count):
    rewards, m = np.array(rewards), len(rewards)
    chances = count.chances(m - 1)
    other = np.random.default_rng(m).normal(size=m)
    mean = win_rate = 0.0
    for k, chance in enumerate(chances, 1):
        subsets = list(itertools.combinations(range(m), k))
        for subset in subsets:
            best = max(rewards[list(subset)])
            mean += chance / len(subsets) * np.mean([other[i] for i in subset if rewards[i] == best])
            apart = [i for i in range(m) if i not in subset]
            wins = np.mean([(best > rewards[i]) + (best == rewards[i]) / 2 for i in apart])
            win_rate += chance / len(subsets) * wins
    assert best_of_random_n_mean(rewards, chances, other) == pytest.approx(mean, abs=1e-12)
    assert best_of_random_n_win_rate(rewards, chances) == pytest.approx(win_rate, abs=1e-12)


def test_the_estimates_are_those_of_best_of_n_for_a_fixed_number_and_unbiased_for_another():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 20))
    np.testing.assert_allclose(best_of_random_n_mean(rewards, FixedCount(5).chances(20)), best_of_n_mean(rewards, 5))
    count = TruncatedPoisson(2.0)
    drawn = rng.choice(W.rewards, p=W.probs, size=(20_000, 12))
    exact, chances = count.law(W), count.chances(11, most_beyond=1e-4)
    for found, want in (
        (best_of_random_n_mean(drawn, chances), W.mean_reward(exact)),
        (best_of_random_n_win_rate(drawn, chances), W.win_rate(exact)),
    ):
        assert found.mean() == pytest.approx(want, abs=4 * found.std() / np.sqrt(len(found)))


def test_what_needs_more_draws_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"n is 3; N is larger with chance 0\.58, above 0\.01: give more draws"):
        TruncatedPoisson(4.0).chances(3, most_beyond=0.01)
    with pytest.raises(ValueError, match="chances has 4 entries; there are 3 samples"):
        best_of_random_n_mean([1.0, 2.0, 3.0], [0.25] * 4)
    with pytest.raises(ValueError, match="chances has 3 entries; there are 3 samples"):
        best_of_random_n_win_rate([1.0, 2.0, 3.0], [0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="chances sums to"):
        best_of_random_n_mean([1.0, 2.0, 3.0], [0.25, 0.25])


def test_the_table_makes_them_by_their_parameter():
    assert make_rule("truncated-poisson", n=8, t=2.0) == BestOfRandomN(8, TruncatedPoisson(2.0))
    for name in ("truncated-poisson", "one-plus-poisson", "geometric", "log-series"):
        entry = RULES[name]
        for value in entry.grid:
            assert make_rule(name, n=8, **{entry.knob: value}).cost(W) <= 8
    with pytest.raises(ValueError, match="truncated-poisson lacks t; it takes n, t: give t="):
        make_rule("truncated-poisson", n=8)
    with pytest.raises(ValueError, match="mu is no setting of truncated-poisson; it takes n, t"):
        make_rule("truncated-poisson", n=8, mu=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedCount(0.5), "n is 0.5"),
        (lambda: TruncatedPoisson(0), "t is 0"),
        (lambda: OnePlusPoisson(-1), "mu is -1"),
        (lambda: GeometricCount(1), "q is 1"),
        (lambda: LogSeries(701), "t is 701"),
        (lambda: BestOfRandomN(0, FixedCount(1)), "n is 0"),
        (lambda: BestOfRandomN(2, 1.5), "count is 1.5; it must be a DrawCount"),
        (lambda: FixedCount(1.5).chances(3), "n is 1.5"),
        (lambda: TruncatedPoisson(1).chances(0), "n is 0"),
        (lambda: TruncatedPoisson(1).density([0.5, 1.5]), "u is 1.5"),
        (lambda: TruncatedPoisson(1).sample(3, seed=-1), "seed is -1"),
        (lambda: BestOfRandomN(3, FixedCount(1)).choose([1.0, 2.0]), r"rewards has shape \(2,\)"),
        (lambda: lifted_reward(W, 0), "t is 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
