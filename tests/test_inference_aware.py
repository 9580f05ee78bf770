"""Optima of games, duels and best-of-n, and laws of filters: against worked numbers, enumeration and maximisation."""

from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import softmax

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference_aware import (
    best_of_optimum,
    best_of_slope,
    filtered,
    infalign_optimum,
    inference_win_rate,
    wind_continuous,
    wind_optimum,
)

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
GAPS = Outcomes([0, 0.4, 0, 0.35, 0.25, 0], [0, 1, 2, 1, 3, 4])  # outcomes that cannot be, below, between and above
BETAS = [0.01, 0.25, 1, 100]


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def atoms(count):
    return Outcomes(np.full(count, 1 / count), np.arange(count))


def highest(objective, start):
    """The policy that maximises an objective, by its value alone."""
    found = minimize(lambda logits: -objective(softmax(logits)), np.log(start), method="BFGS", options={"gtol": 1e-9})
    return softmax(found.x)


def test_wind_has_the_worked_optimum():
    want = [0.083781451443, 0.133487537368, 0.106790029895, 0.188997148668, 0.486943832626]
    close(wind_optimum(W, 0.25), want)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("outcomes", [W, GAPS, atoms(60)])
def test_no_policy_beats_winds_optimum(outcomes, beta):
    policy = wind_optimum(outcomes, beta)
    against = outcomes.rebase(policy)
    answer = softmax(outcomes.log_probs + against.calibrated_reward / beta)
    gain = (
        against.win_rate(answer)
        - 0.5
        - beta * (kl_divergence(answer, outcomes.probs) - kl_divergence(policy, outcomes.probs))
    )
    assert abs(gain) < 1e-14
    close(policy, answer, 1e-13)


@pytest.mark.parametrize("beta", [0.1, 0.25, 1, 30])
def test_winds_continuous_optimum_is_best_of_a_logarithmic_number_of_draws(beta):
    a = 1 - np.exp(-1 / beta)

    def density(u):
        return beta * a / (1 - a * u)

    win_rate, kl, draws = wind_continuous(beta)
    assert win_rate == pytest.approx(quad(lambda u: u * density(u), 0, 1)[0], abs=1e-12)
    assert kl == pytest.approx(quad(lambda u: density(u) * np.log(density(u)), 0, 1)[0], abs=1e-11)
    n = np.arange(1, int(60 / -np.log(a)) + 2)
    assert draws == pytest.approx((a**n).sum() * beta, rel=1e-12)
    tilt = np.exp((1 - np.arange(200_001) / 200_000) / -beta)
    assert win_rate == pytest.approx(np.average(np.arange(200_001) / 200_000, weights=tilt), abs=1e-4)


def test_winds_optimum_tends_to_its_continuous_form():
    want = [0.768657360364, 0.595220192054, 13.399537508286]
    close(wind_continuous(0.25), want)
    errors = []
    for count in (100, 400):
        outcomes = atoms(count)
        policy = wind_optimum(outcomes, 0.25)
        errors.append(kl_divergence(policy, outcomes.probs) - want[1])
        assert outcomes.win_rate(policy) == pytest.approx(want[0], abs=2e-2 / count)
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.05)
    assert wind_continuous(1e-3) == (pytest.approx(0.999), pytest.approx(500 + np.log(1e-3)), np.inf)


def test_infalign_has_the_worked_optimum_slope_and_win_rate():
    want = [0.245183189538, 0.2062339486, 0.16498715888, 0.167622733407, 0.215972969575]
    close(infalign_optimum(W, 4, 1), want)
    assert inference_win_rate(W, want, 4) == pytest.approx(0.651554598416, abs=1e-11)
    worth = W.rebase(W.best_of(4)).calibrated_reward
    close(best_of_slope(W, W.probs, 4, worth), [1.751684375, 1.7687703125, 1.7687703125, 2.3155203125, 3.3122])


def test_one_draw_makes_infalign_the_tilt_of_the_calibrated_reward():
    for outcomes in (W, GAPS):
        close(infalign_optimum(outcomes, 1, 0.3), outcomes.tilt(0.3, "calibrated"), 1e-14)
        assert inference_win_rate(outcomes, outcomes.best_of(3), 1) == outcomes.win_rate(outcomes.best_of(3))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("beta", [0.1, 1])
def test_infalign_is_what_maximisation_finds(n, beta):
    found = highest(lambda p: inference_win_rate(W, p, n) - beta * kl_divergence(p, W.probs), W.probs)
    close(infalign_optimum(W, n, beta), found, 1e-6)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
@pytest.mark.parametrize("beta", [1e-4, *BETAS])
@pytest.mark.parametrize("outcomes", [W, GAPS, atoms(60)])
def test_an_optimum_is_the_tilt_of_its_own_slope(outcomes, n, beta):
    worth = outcomes.rebase(outcomes.best_of(n)).calibrated_reward
    for policy, values in (
        (infalign_optimum(outcomes, n, beta), worth),
        (best_of_optimum(outcomes, n, beta), None),
    ):
        assert policy.sum() == pytest.approx(1, abs=1e-12)
        slope = best_of_slope(outcomes, policy, n, values)
        slope -= slope[outcomes.probs > 0].max()
        answer = softmax(outcomes.log_probs + np.where(outcomes.probs > 0, slope, 0) / beta)
        close(policy, answer, 1e-11 + 1e-14 / beta)


def test_at_a_small_beta_infalign_nears_the_best_outcome_slowly():
    missing = [1 - infalign_optimum(W, 4, beta)[-1] for beta in (0.1, 0.01, 0.001, 0.0001)]
    close(missing, [0.500, 0.266, 0.135, 0.067], 5e-4)


def test_the_exponential_of_the_calibrated_reward_nearly_attains_infaligns_optimum():
    outcomes = atoms(60)
    policy = infalign_optimum(outcomes, 4, 0.36056068699)  # 0.3 nats
    assert kl_divergence(policy, outcomes.probs) == pytest.approx(0.3, abs=1e-9)
    assert inference_win_rate(outcomes, policy, 4) == pytest.approx(0.8148, abs=5e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_slope_is_that_of_the_mean_of_the_best_of_k(k):
    policy = np.array([0.1, 0.3, 0.2, 0.15, 0.25])

    def mean(logits):
        law = softmax(logits)
        return sum(np.prod(law[list(drawn)]) * W.rewards[list(drawn)].max() for drawn in product(range(5), repeat=k))

    slope = best_of_slope(W, policy, k)
    close(mean(np.log(policy)), W.rebase(policy).best_of(k) @ W.rewards)
    moved = [mean(np.log(policy) + 1e-5 * way) - mean(np.log(policy) - 1e-5 * way) for way in np.eye(5)]
    close(policy * (slope - policy @ slope), np.array(moved) / 2e-5, 1e-9)


def test_max_at_k_has_the_worked_gradient():
    slope = best_of_slope(W, W.probs, 3)
    close(W.probs * (slope - W.probs @ slope), [-0.2561625, -0.14596875, -0.116775, 0.16554375, 0.3533625])


def enumerated_filter(outcomes, weights):
    law = np.zeros(len(outcomes))
    for drawn in product(range(len(outcomes)), repeat=len(weights)):
        chance = np.prod(outcomes.probs[list(drawn)])
        rewards = outcomes.rewards[list(drawn)]
        for y, reward in zip(drawn, rewards, strict=True):
            better, tied = (rewards > reward).sum(), (rewards == reward).sum()
            law[y] += chance * np.mean(weights[better : better + tied])
    return law


@pytest.mark.parametrize("weights", [[1], [1, 0, 0], [0.5, 0, 0, 0.5], [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("outcomes", [W, GAPS])
def test_a_filters_law_is_that_of_all_tuples(outcomes, weights):
    close(filtered(outcomes, weights), enumerated_filter(outcomes, weights), 1e-14)


def test_filters_of_special_kinds():
    close(filtered(W, [0.5, 0, 0, 0.5]), [0.384, 0.15125, 0.121, 0.17175, 0.172])
    close(filtered(W, [1, 0, 0, 0, 0]), W.best_of(5), 1e-14)
    close(filtered(W, [0, 0, 1]), Outcomes(W.probs, -W.rewards).best_of(3), 1e-14)
    close(filtered(W, np.full(6, 1 / 6)), W.probs, 1e-14)


WRONG = {
    r"beta is 0": lambda: wind_optimum(W, 0),
    r"beta is nan": lambda: wind_continuous(float("nan")),
    r"beta is -1": lambda: infalign_optimum(W, 2, -1),
    r"n is 0": lambda: infalign_optimum(W, 0, 1),
    r"n is 1.5": lambda: inference_win_rate(W, W.probs, 1.5),
    r"n is 0; ": lambda: best_of_slope(W, W.probs, 0),
    r"values has shape \(2,\)": lambda: best_of_slope(W, W.probs, 2, [1, 2]),
    r"values falls where rewards rise": lambda: best_of_optimum(W, 2, 1, -W.rewards),
    r"policy sums to 2": lambda: best_of_slope(W, 2 * W.probs, 2),
    r"policy has shape \(2,\)": lambda: best_of_slope(W, [0.5, 0.5], 2),
    r"weights sums to 3": lambda: filtered(W, [1, 1, 1]),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
