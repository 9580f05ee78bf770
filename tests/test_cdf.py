"""The CDF counted from samples, and ties that rounding told apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import betabinom, binom

from bonlib.cdf import EmpiricalCdf, ExponentialCdf, snapped
from bonlib.estimates import best_of_n_kl, best_of_n_weights, best_of_n_win_rate
from bonlib.methods.dpo import Dpo
from bonlib.methods.jbond import jbond_reward
from bonlib.metrics import win_probability
from bonlib.training.quantile import leave_one_out_cdf

SMOOTHINGS = ["posterior", "add_one", "add_half", "clamp", "none"]


@given(
    st.lists(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=7), min_size=1, max_size=4),
    st.lists(st.integers(-12, 12).map(lambda x: x / 2), min_size=1, max_size=5),
)
def test_counting_is_right_for_every_prompt_whatever_its_number_of_samples(samples, rewards):
    estimate = EmpiricalCdf(samples, "none")
    table = np.tile(rewards, (len(samples), 1))
    weak, strict = estimate.weak(table), estimate.strict(table)
    for row, values in enumerate(samples):
        for place, reward in enumerate(rewards):
            assert weak[row, place] == np.mean(np.array(values) <= reward)
            assert strict[row, place] == np.mean(np.array(values) < reward)
        alone = EmpiricalCdf(values, "none")
        np.testing.assert_array_equal(alone.weak(rewards), weak[row])


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_each_smoothing_is_what_its_name_says(smoothing):
    samples, m = [3.0, 1.0, 2.0, 2.0], 4
    k = np.array([0, 1, 3, 4])  # not above 0, 1.5, 2, 9
    values = {
        "posterior": (k + 1) / (m + 2),
        "add_one": (k + 1) / (m + 1),
        "add_half": (k + 0.5) / (m + 1),
        "clamp": np.maximum(k, 1) / m,
        "none": k / m,
    }
    estimate = EmpiricalCdf(samples, smoothing)
    np.testing.assert_allclose(estimate.weak([0, 1.5, 2, 9]), values[smoothing])
    with np.errstate(divide="ignore"):
        logs = digamma(k + 1) - digamma(m + 2) if smoothing == "posterior" else np.log(values[smoothing])
    np.testing.assert_allclose(estimate.log_weak([0, 1.5, 2, 9]), logs)
    assert estimate.strict(2.0) == pytest.approx(estimate.weak(1.5))
    assert np.isfinite(estimate.log_strict(-9.0)) == (smoothing != "none")


def mean_over_counts(m, chance, log_estimate):
    """Expectation over M samples of an estimate of log F that depends on the count, exactly."""
    k = np.arange(m + 1)
    return binom.pmf(k, m, chance) @ log_estimate(k)


def log_estimates(m, **options):
    """The estimate of log F for each possible count."""
    estimate = EmpiricalCdf(np.arange(m), **options)
    return lambda k: estimate.log_strict(k - 0.5)


@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("n", [1, 4])
def test_the_posterior_mean_is_unbiased_for_draws_of_best_of_n_under_its_prior(m, n):
    # F of a draw of best-of-n is Beta(n, 1), so E log F = −1/n, and k given F is binomial: together beta-binomial.
    k = np.arange(m + 1)
    got = betabinom.pmf(k, m, n, 1) @ log_estimates(m, prior=(n, 1))(k)
    assert got == pytest.approx(-1 / n)


@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("chance", [0.05, 0.4, 0.95])
def test_the_bias_of_the_harmonic_estimate_is_its_series(m, chance):
    j = np.arange(m + 1, 4000)
    bias = mean_over_counts(m, chance, log_estimates(m, prior=(1, 0))) - np.log(chance)
    assert bias == pytest.approx(np.sum((1 - chance) ** j / j), abs=1e-12)


def test_the_add_half_estimate_has_half_a_count_of_bias():
    m = 2000
    bias = mean_over_counts(m, 0.6, log_estimates(m, smoothing="add_half")) - np.log(0.6)
    assert bias == pytest.approx(-1 / (2 * m), rel=0.02)


def test_options_change_what_they_say():
    assert EmpiricalCdf([1.0, 2.0], "clamp", floor=0.5).strict(0) == 0.25
    assert EmpiricalCdf([1.0, 2.0], prior=(2, 1)).log_weak(1.5) == pytest.approx(digamma(3) - digamma(5))


def test_the_exponential_fit_finds_a_curve_of_its_form():
    a, b, u = 2.0, 0.7, (np.arange(20_000) + 1) / 20_000
    samples = np.log(a / -np.log(np.minimum(u, 1 - 1e-9))) / b  # quantiles of exp(−a e^{−b r})
    fitted = ExponentialCdf.fit([samples, samples + 100])
    np.testing.assert_allclose(fitted.b, b, rtol=1e-2)
    r = np.array([-1.0, 0.5, 3.0])
    np.testing.assert_allclose(fitted.log_weak([r, r + 100]), [-a * np.exp(-b * r)] * 2, rtol=2e-2)
    single = ExponentialCdf.fit(samples)
    assert single.log_strict(0.5).shape == ()
    assert (np.diff(single.log_weak(np.linspace(-50, 50, 200))) >= 0).all()
    assert single.weak(1.0) == single.strict(1.0) == pytest.approx(np.exp(single.log_weak(1.0)))


def test_bad_arguments_of_a_cdf_are_named():
    for samples in ([], [[1.0], []], [1.0, np.nan], [[1.0], [np.inf]]):
        with pytest.raises(ValueError, match="samples"):
            EmpiricalCdf(samples)
    with pytest.raises(ValueError, match="smoothing is 'laplace'"):
        EmpiricalCdf([1.0], "laplace")
    with pytest.raises(ValueError, match="prior is"):
        EmpiricalCdf([1.0], prior=(0, 1))
    with pytest.raises(ValueError, match="first axis must hold the 2 prompts"):
        EmpiricalCdf([[1.0], [2.0]]).weak([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="r holds NaN"):
        EmpiricalCdf([1.0]).weak(np.nan)
    with pytest.raises(ValueError, match="rewards are all 1"):
        ExponentialCdf.fit([1.0, 1.0])
    with pytest.raises(ValueError, match="both must be positive"):
        ExponentialCdf(1.0, -1.0)


PROBS, LEVELS = np.array([0.8, 0.1, 0.1]), np.array([0.5, 0.0, 1.0])
WHICH = np.random.default_rng(0).choice(3, p=PROBS, size=64)


def blurred(rewards, size=1e-8):
    """Every second reward a little higher, as from another batch."""
    rewards = np.array(rewards, dtype=np.float64)
    rewards[..., ::2] += size
    return rewards


def test_ties_survive_rounding():
    rewards = blurred(LEVELS[WHICH])
    assert EmpiricalCdf(rewards, "none").weak(0.5 - 1e-8) == pytest.approx(59 / 64)
    assert win_probability([[0.5 - 1e-8]], [rewards])[0, 0] == pytest.approx(0.523, abs=1e-3)
    for options in ({}, {"responses": WHICH}):
        found = best_of_n_kl(rewards, 8, log_probs=np.log(PROBS)[WHICH], **options)
        assert found == pytest.approx(0.7240, abs=1e-4)
    exact = EmpiricalCdf(rewards, "none", rounding=0.0).weak(0.5 - 1e-8)
    assert exact == pytest.approx(8 / 64)  # who wants every digit has them


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=9),
    st.sampled_from([1e-9, 1.0, 1e9]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_rounding_changes_nothing_that_is_told_of_rewards_of_any_size(levels, scale, seed, outlier):
    clean = np.array([*levels, 2, 5, -1e9 if outlier else 9], dtype=np.float64) * scale
    noise = np.random.default_rng(seed).uniform(-2e-7, 2e-7, len(clean)) * scale
    noisy, other = clean + noise, clean + noise[::-1]
    for told in (
        lambda r, asked: EmpiricalCdf(r, "none").weak(asked),
        lambda r, asked: EmpiricalCdf(r, "none").strict(asked),
        lambda r, asked: win_probability([asked], [r]),
        lambda r, asked: best_of_n_weights(r, 2),
        lambda r, asked: best_of_n_kl(r, 2),
        lambda r, asked: best_of_n_win_rate(r, 2),
        lambda r, asked: leave_one_out_cdf([r]),
        lambda r, asked: Dpo(0.1, generations=3, pairs=3).examples(np.array([r]), seed=0)[1],
    ):
        np.testing.assert_allclose(told(noisy, other), told(clean, clean), rtol=1e-12)


def test_dense_rewards_do_not_hang_together():
    rewards = np.random.default_rng(0).random(1_000_000)
    found = snapped(rewards)
    assert (rewards - found).min() >= 0
    assert (rewards - found).max() <= 1e-6
    assert len(np.unique(found)) > 400_000
    np.testing.assert_array_equal(snapped([1.0, 1.0 + 1e-9], rounding=0.0), [1.0, 1.0 + 1e-9])
    with pytest.raises(ValueError, match="rounding is -1"):
        snapped([1.0, 2.0], rounding=-1)


def test_jbond_takes_rounding_for_a_tie():
    rewards = torch.tensor([0.5 - 1e-8, 0.4], dtype=torch.float64)
    anchor = torch.tensor([[0.5, 0.7], [0.5, 0.7]], dtype=torch.float64)
    assert jbond_reward(rewards, anchor).tolist() == [0.0, pytest.approx(-np.log(16))]


def test_an_outlier_makes_no_ties_of_other_rewards():
    for penalty in (-1e3, -1e6, -1e9, 1e12):
        assert EmpiricalCdf([0.0, 1.0, penalty], "none").weak(0.5) == (np.array([0.0, 1.0, penalty]) <= 0.5).mean()
        assert len(np.unique(snapped([0.0, 1.0, 0.0, 1.0, penalty, penalty]))) == 3
