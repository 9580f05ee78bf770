"""Soft best-of-n: its law against all tuples, quadrature and simulation, its limits, and how fast it nears them."""

import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare, entropy

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.best_of_n import best_of_n
from bonlib.inference.regret import chi_squared
from bonlib.inference.rules import choose_in_groups
from bonlib.inference.soft_best_of_n import (
    SoftBestOfN,
    _lift,
    approach_to_tilt,
    reward_gap_bound,
    soft_best_of,
    soft_kl_bound,
)

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
H = Outcomes([0.5, 0.3, 0.17, 0.03], [0, 0.5, 1, 1.5])
GOLD = np.array([0, 0.5, 1, -1])


@st.composite
def outcomes(draw, max_size=8, smallest=-12):
    """Any order, ties, zero probabilities and small ones."""
    size = draw(st.integers(1, max_size))
    weight = st.one_of(st.just(0.0), st.floats(smallest, 0).map(lambda e: 10**e))
    weights = np.array(draw(st.lists(weight, min_size=size, max_size=size)))
    assume(weights.sum() > 0)
    rewards = draw(st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size))
    return Outcomes(weights / weights.sum(), rewards)


def by_enumeration(model, n, temperature):
    result = np.zeros(len(model))
    for drawn in itertools.product(range(len(model)), repeat=n):
        weights = np.exp((model.rewards[list(drawn)] - model.rewards.max()) / temperature)
        np.add.at(result, list(drawn), np.prod(model.probs[list(drawn)]) * weights / weights.sum())
    return result


@given(outcomes(max_size=4), st.integers(1, 4), st.floats(-1.5, 2))
def test_the_law_equals_enumeration_of_all_tuples(model, n, log_temperature):
    want = by_enumeration(model, n, 10**log_temperature)
    np.testing.assert_allclose(SoftBestOfN(n, 10**log_temperature).law(model), want, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("n", [1, 1.5, 7.3, 1e6])
def test_the_law_is_known_for_real_n(n):
    model, temperature = Outcomes([0.2, 0.3, 0.5], [1.0, 3.0, 2.0]), 0.7
    w = np.exp((model.rewards - 3) / temperature)

    def integrand(s, y):  # in s = log t
        phi = mpmath.fsum(p * mpmath.exp(-mpmath.exp(s) * v) for p, v in zip(model.probs, w, strict=True))
        return mpmath.exp(s - mpmath.exp(s) * w[y]) * phi ** (n - 1)

    got = soft_best_of(model, n, temperature)
    for y in range(3):
        integral = mpmath.quad(lambda s, y=y: integrand(s, y), np.linspace(-60, 9, 31).tolist())
        assert got[y] == pytest.approx(float(n * model.probs[y] * w[y] * integral), rel=1e-12)


@pytest.mark.parametrize("n", [2, 7.3, 1000, 1e6])
@pytest.mark.parametrize("temperature", [0.03, 0.5, 5.0])
def test_interpolation_loses_few_digits_where_outcomes_are_many(n, temperature):
    rng = np.random.default_rng(0)
    weights, rewards = 10 ** rng.uniform(-12, 0, 4000), np.sort(rng.normal(size=4000))
    model = Outcomes(weights / weights.sum(), rewards)
    one_by_one = _lift((rewards - rewards.max()) / temperature, model.probs, n) * model.probs
    np.testing.assert_allclose(soft_best_of(model, n, temperature), one_by_one, rtol=2e-12)


def test_many_outcomes_of_few_rewards_are_those_rewards():
    model, rng = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0]), np.random.default_rng(0)
    place = rng.permutation(np.repeat(np.arange(3), [3000, 5000, 2000]))
    for temperature in (0.01, 1):
        many = soft_best_of(Outcomes(np.full(10_000, 1e-4), model.rewards[place]), 5, temperature)
        np.testing.assert_allclose(
            np.bincount(place, many), soft_best_of(model, 5, temperature), rtol=1e-12, atol=1e-300
        )


@given(outcomes(), st.floats(1, 1e12))
def test_it_is_between_the_reference_and_best_of_n(model, n):
    np.testing.assert_allclose(soft_best_of(model, 1, 0.3), model.probs, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(soft_best_of(model, min(n, 1e3), 1e12), model.probs, rtol=1e-6, atol=1e-9)
    cold = soft_best_of(model, n, 1e-3)  # a gap of one unit of reward weighs e^1000
    np.testing.assert_allclose(cold, model.best_of(n), rtol=1e-8, atol=1e-9)
    assert model.mean_reward(soft_best_of(model, n, 1.0)) <= model.mean_reward(cold) + 1e-7


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 3e-15, 1e-300])
def test_the_limit_of_temperature_0_loses_no_digits(temperature):
    model = Outcomes([0.3, 0.5, 0.2], [0.0, 1.0, 2.0])
    np.testing.assert_allclose(soft_best_of(model, 4, temperature), model.best_of(4), rtol=1e-12)
    far = Outcomes([0.3, 0.5, 0.2], [0.0, 1e6, 2e6])
    np.testing.assert_allclose(soft_best_of(far, 4, temperature), far.best_of(4), rtol=1e-12)


def test_golden_numbers():
    law, tilt, near = soft_best_of(W, 3, 1), W.tilt(1), approach_to_tilt(W, 1)
    golden = [0.134680468176, 0.230461476415, 0.184369181132, 0.233674054802, 0.216814819476]
    np.testing.assert_allclose(law, golden, atol=6e-13)
    got = kl_divergence(law, W.probs), kl_divergence(tilt, law), near.chi_squared, np.log1p(near.chi_squared / 3)
    np.testing.assert_allclose(got, [0.129752749277, 0.137558647277, 1.422458097191, 0.388083383424], atol=6e-13)
    np.testing.assert_allclose([near.kl_rate, near.gap_rate], [1.470781047811, 1.594668439377], atol=6e-13)


def test_the_kl_to_the_tilt_falls_with_the_square_of_n_both_ways():
    law, tilt, n = soft_best_of(W, 1e4, 1), W.tilt(1), 1e4
    assert n**2 * kl_divergence(tilt, law) == pytest.approx(1.47116, abs=6e-6)
    assert n**2 * kl_divergence(law, tilt) == pytest.approx(approach_to_tilt(W, 1).kl_rate, rel=3e-4)
    assert n * (W.mean_reward(tilt) - W.mean_reward(law)) == pytest.approx(1.59490, abs=6e-6)


@given(outcomes(smallest=-3), st.integers(1, 40), st.floats(-1, 1))
def test_the_bounds_hold(model, n, log_temperature):
    temperature = 10**log_temperature
    law, tilt, near = soft_best_of(model, n, temperature), model.tilt(temperature), approach_to_tilt(model, temperature)
    assert chi_squared(tilt, model.probs) == pytest.approx(near.chi_squared, rel=1e-9, abs=1e-12)
    assert kl_divergence(tilt, law) <= np.log1p(near.chi_squared / n) + 1e-12
    gap = model.mean_reward(tilt) - model.mean_reward(law)
    assert gap <= reward_gap_bound(model, n, temperature) + 1e-12
    spread = np.ptp(model.rewards[model.probs > 0]) / temperature
    kl = kl_divergence(law, model.probs)
    assert kl <= min(soft_kl_bound(n, spread), kl_divergence(model.best_of(n), model.probs)) + 1e-12


def test_the_kl_is_at_most_what_the_softmax_leaves_of_log_n():
    left = sum(
        np.prod(W.probs[list(drawn)]) * entropy(softmax(W.rewards[list(drawn)] / 0.7))
        for drawn in itertools.product(range(5), repeat=4)
    )
    assert kl_divergence(soft_best_of(W, 4, 0.7), W.probs) <= np.log(4) - left


def test_where_the_reward_is_hacked_smoothing_helps_only_at_the_same_large_n():
    knobs = np.geomspace(0.1, 10, 400)
    soft = max(soft_best_of(H, 16, knob) @ GOLD for knob in knobs)
    raw = max(H.tilt(knob) @ GOLD for knob in knobs)
    assert [soft, raw, H.best_of(16) @ GOLD] == pytest.approx([0.3830, 0.3668, 0.2144], abs=6e-5)
    assert H.best_of(4.68) @ GOLD == pytest.approx(0.5388, abs=6e-5)


def test_choices_follow_the_law():
    rng = np.random.default_rng(0)
    drawn = rng.choice(5, size=(100_000, 6), p=W.probs)
    kept = SoftBestOfN(6, 0.8).choose(W.rewards[drawn], seed=1).kept
    counts = np.bincount(drawn[np.arange(len(drawn)), kept], minlength=5)
    assert chisquare(counts, SoftBestOfN(6, 0.8).law(W) * counts.sum()).pvalue > 0.01


def test_choices_in_groups_keep_each_as_often_as_its_softmax_says():
    rewards = np.tile([0.0, 1.0, 2.5], (1, 40_000))
    kept = choose_in_groups(SoftBestOfN(3, 0.8), rewards).kept
    shares = np.bincount(kept[0] % 3) / 40_000
    np.testing.assert_allclose(shares, softmax(rewards[0, :3] / 0.8), atol=0.01)
    np.testing.assert_array_equal(choose_in_groups(SoftBestOfN(3, 1e-300), rewards, seed=1).kept, best_of_n(rewards, 3))


def test_bad_arguments_are_named():
    for temperature in (0, -1, np.nan):
        for make in (lambda t: SoftBestOfN(3, t), lambda t: soft_best_of(W, 2, t), lambda t: approach_to_tilt(W, t)):
            with pytest.raises(ValueError, match="temperature is"):
                make(temperature)
    with pytest.raises(ValueError, match="n is 0"):
        soft_best_of(W, 0, 1)
    with pytest.raises(ValueError, match=r"temperature is 1e-300, with 3,000 rewards.*take best_of\(4\)"):
        soft_best_of(Outcomes(np.full(3000, 1 / 3000), np.arange(3000)), 4, 1e-300)
    with pytest.raises(ValueError, match="spread is -1"):
        soft_kl_bound(2, -1)
