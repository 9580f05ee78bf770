"""Estimated reward CDFs: counted right, biased as theory says; and the mean best-of-n reward over all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import betabinom, binom

from bonlib.cdf import EmpiricalCdf, ExponentialCdf
from bonlib.estimates import best_of_n_kl, best_of_n_reward, best_of_n_weights
from bonlib.exact import Outcomes, kl_divergence

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


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_best_of_n_weights_count_the_subsets(rewards, data):
    n = data.draw(st.integers(1, len(rewards)))
    counted = np.zeros(len(rewards))
    subsets = list(itertools.combinations(range(len(rewards)), n))
    for subset in subsets:
        best = max(rewards[i] for i in subset)
        winners = [i for i in range(len(rewards)) if rewards[i] == best and i in subset]
        for i in winners:
            counted[i] += 1 / len(winners) / len(subsets)
    weights = best_of_n_weights(rewards, n)
    np.testing.assert_allclose(weights, counted, atol=1e-12)
    assert weights @ np.array(rewards) == pytest.approx(float(best_of_n_reward(rewards, n).value))


@pytest.mark.parametrize(
    ("probs", "known"),
    [
        (np.full(10, 0.1), True),  # heavy outcomes
        (np.full(10, 0.1), False),
        (np.array([0.5, 0.3, 0.15, 0.05]), True),
        (np.append(np.full(3000, 0.5 / 3000), 0.5), True),  # nearly continuous, with a heavy best
        (np.append(np.full(3000, 0.98 / 3000), 0.02), True),
        (np.full(20_000, 1 / 20_000), True),  # nearly continuous
    ],
)
def test_the_estimated_kl_of_best_of_n_is_right_on_average(probs, known):
    model, rng = Outcomes(probs, np.arange(len(probs))), np.random.default_rng(0)
    drawn = rng.choice(len(probs), p=probs, size=(200, 400))
    log_probs = np.log(probs)[drawn] if known else None
    for n in (1, 5, 40, 200):
        found = best_of_n_kl(drawn, n, log_probs=log_probs, responses=drawn if known else None)
        exact = kl_divergence(model.best_of(n), model.probs)
        assert found.shape == (200,)
        # Known probabilities make it nearly exact, until n nears m; counting them costs accuracy and scatter.
        assert found.mean() == pytest.approx(exact, abs=0.01 + 0.05 * (n == 200) if known else 0.06)
        assert not known or found.std() < 0.05
    assert best_of_n_kl(drawn[0], 5, log_probs=None if log_probs is None else log_probs[0]).shape == ()


def test_bad_log_probs_and_numbers_of_draws_are_named():
    with pytest.raises(ValueError, match=r"n is 4; with 3 samples"):
        best_of_n_kl([1.0, 2.0, 3.0], 4)
    with pytest.raises(ValueError, match="samples must be an array of finite rewards"):
        best_of_n_weights([1.0, np.inf], 1)
    for bad in ([0.1, -1.0], [-1.0], [np.nan, -1.0]):
        with pytest.raises(ValueError, match="log_probs has shape"):
            best_of_n_kl([1.0, 2.0], 1, log_probs=bad)


def test_ties_of_different_responses_are_counted():
    """Their probabilities are known one by one; what counts is that of the tie."""
    assert best_of_n_kl(np.zeros(32), 8, log_probs=np.full(32, -9.0) - np.arange(32)) == pytest.approx(0)
    rng = np.random.default_rng(0)
    probs, levels = rng.dirichlet(np.ones(200)), rng.integers(5, size=200)
    drawn = rng.choice(200, p=probs, size=(100, 400))
    found = best_of_n_kl(levels[drawn], 16, log_probs=np.log(probs)[drawn])
    model = Outcomes(probs, levels)
    assert found.mean() == pytest.approx(kl_divergence(model.best_of(16), model.probs), abs=0.04)
    np.testing.assert_allclose(found, best_of_n_kl(levels[drawn], 16), atol=1e-9)
