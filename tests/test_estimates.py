"""What draws say about best-of-n: its reward, weights, win rate and KL."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.estimates import best_of_n_kl, best_of_n_mean, best_of_n_reward, best_of_n_weights, best_of_n_win_rate
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


PROBS, LEVELS = np.array([0.8, 0.1, 0.1]), np.array([0.5, 0.0, 1.0])


def test_responses_of_one_reward_and_one_log_probability_are_not_one():
    rng = np.random.default_rng(0)
    die = rng.integers(6, size=(200, 128))
    even, log_probs = (die % 2 == 0).astype(float), np.full(die.shape, -np.log(6))
    np.testing.assert_allclose(best_of_n_kl(even, 8, log_probs=log_probs, responses=die), 0.6676, atol=1e-4)
    assert best_of_n_kl(even, 8, log_probs=log_probs).mean() == pytest.approx(0.6676, abs=0.02)
    answers = rng.integers(1000, size=(200, 128))
    names = np.array([[f"answer {number}" for number in row] for row in answers], dtype=object)
    for options in ({"responses": names}, {"responses": names.tolist()}, {}):
        found = best_of_n_kl(answers < 500, 8, log_probs=np.full(answers.shape, -np.log(1000)), **options)
        assert found.mean() == pytest.approx(0.668, abs=0.02)


@pytest.mark.parametrize("levels", [2, 5, 40, 300])
def test_known_responses_make_the_kl_more_accurate(levels):
    rng = np.random.default_rng(levels)
    probs, rewards = rng.dirichlet(np.full(300, 0.3)), rng.integers(levels, size=300)
    probs = probs[probs > 1e-12] / probs[probs > 1e-12].sum()
    rewards = rewards[: len(probs)]
    model = Outcomes(probs, rewards)
    drawn = rng.choice(len(probs), p=probs, size=(100, 128))
    for n in (2, 8, 32):
        exact = kl_divergence(model.best_of(n), model.probs)
        knowing = best_of_n_kl(rewards[drawn], n, log_probs=np.log(probs)[drawn], responses=drawn)
        counting = best_of_n_kl(rewards[drawn], n)
        assert knowing.mean() == pytest.approx(exact, abs=0.05)
        assert np.sqrt(np.mean((knowing - exact) ** 2)) < 1.05 * np.sqrt(np.mean((counting - exact) ** 2))


def test_responses_of_another_shape_and_log_probs_of_another_law_are_named():
    drawn = np.random.default_rng(0).choice(3, p=PROBS, size=128)
    for responses in (drawn[:5], [drawn.tolist()], 3, [[1]] * 128):
        with pytest.raises(ValueError, match=r"responses must have the shape \(128,\)"):
            best_of_n_kl(drawn, 8, log_probs=np.log(PROBS)[drawn], responses=responses)
    with pytest.raises(ValueError, match="log_probs are not those of the distribution"):
        best_of_n_kl(drawn, 8, log_probs=np.log([0.02, 0.49, 0.49])[drawn], responses=drawn)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.data())
def test_the_win_rate_counts_every_opponent_that_does_not_compete(rewards, data):
    n = data.draw(st.integers(1, len(rewards) - 1))
    wins = [
        (max(chosen) > rewards[place]) + 0.5 * (max(chosen) == rewards[place])
        for place in range(len(rewards))
        for chosen in itertools.combinations(rewards[:place] + rewards[place + 1 :], n)
    ]
    assert best_of_n_win_rate(rewards, n) == pytest.approx(np.mean(wins))


def test_the_win_rate_is_unbiased():
    assert best_of_n_win_rate(np.random.default_rng(0).random((3, 16)), 8) == pytest.approx(8 / 9)
    model = Outcomes(PROBS, LEVELS)
    drawn = LEVELS[np.random.default_rng(0).choice(3, p=PROBS, size=(4000, 16))]
    for n in (1, 8, 15):
        found = best_of_n_win_rate(drawn, n)
        right = model.win_rate(model.best_of(n))
        assert found.mean() == pytest.approx(right, abs=5 * found.std() / np.sqrt(4000) + 1e-12)
    with pytest.raises(ValueError, match=r"n is 16; with 16 samples a prompt and 1 to play against .* from 1 to 15"):
        best_of_n_win_rate(drawn, 16)
    with pytest.raises(ValueError, match="samples has 1 a prompt; 1 plays against the best of the others: draw more"):
        best_of_n_win_rate(drawn[:, :1], 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=8), st.data())
def test_a_mean_over_best_of_n_has_its_weights(drawn, data):
    rewards, values = np.array(drawn).T
    ns = data.draw(st.lists(st.integers(1, len(drawn)), min_size=1, max_size=3))
    found = best_of_n_mean(np.array([rewards, -rewards]), ns, np.array([values, values]))
    for place, n in enumerate(ns):
        assert found[0, place] == pytest.approx(best_of_n_weights(rewards, n) @ values)
        assert found[1, place] == pytest.approx(best_of_n_weights(-rewards, n) @ values)
    assert best_of_n_mean(rewards, ns[0]) == pytest.approx(best_of_n_reward(rewards, ns[0]).value)


def test_several_n_at_once_are_those_one_by_one():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(30))
    drawn = rng.choice(30, p=probs, size=(5, 24))
    rewards, known = (drawn % 11).astype(float), {"log_probs": np.log(probs)[drawn], "responses": drawn}
    ns = [1, 7, 23]
    for estimate in (best_of_n_win_rate, best_of_n_kl, lambda r, n: best_of_n_kl(r, n, **known)):
        one_by_one = np.stack([estimate(rewards, n) for n in ns], axis=-1)
        np.testing.assert_allclose(estimate(rewards, ns), one_by_one, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="n is 25"):
        best_of_n_win_rate(rewards, [1, 25])
    with pytest.raises(ValueError, match="n is empty"):
        best_of_n_mean(rewards, [])
    with pytest.raises(ValueError, match="values has shape"):
        best_of_n_mean(rewards, 2, drawn[0])
