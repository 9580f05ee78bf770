"""Best-of-k of a policy by listing all draws; the best policy of a KL by golden numbers and by direct search."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from bonlib.course.experiments.on_top import best_at_kl, best_of_k
from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference_aware import best_of_optimum, inference_win_rate

FIVE = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])
POLICY = np.array([0.1, 0.2, 0.1, 0.4, 0.2])


def listed(probs, k):
    """Probabilities of the best reward of k draws, by listing them."""
    law = np.zeros(4)
    for draws in product(range(5), repeat=k):
        law[int(FIVE.rewards[[*draws]].max())] += probs[[*draws]].prod()
    return law


def beats(mine, others):
    return sum(
        a * b * (1.0 if i > j else 0.5 * (i == j)) for (i, a), (j, b) in product(enumerate(mine), enumerate(others))
    )


@pytest.mark.parametrize("k", [1, 2])
def test_best_of_k_by_listing_all_draws(k):
    found = best_of_k(FIVE, POLICY, 3, [k])
    best = listed(POLICY, k)
    assert found[f"win_rate_{k}"] == pytest.approx(beats(best, listed(FIVE.probs, 1)), abs=1e-14)
    assert found[f"duel_{k}"] == pytest.approx(beats(best, listed(FIVE.probs, k)), abs=1e-14)
    assert found[f"even_{k}"] == pytest.approx(beats(best, listed(FIVE.probs, 3 * k)), abs=1e-14)
    law = FIVE.rebase(POLICY).best_of(k)
    assert found[f"kl_{k}"] == pytest.approx(law @ np.log(law / FIVE.probs), abs=1e-14)
    assert found[f"duel_{k}"] < found[f"duel_bound_{k}"]


def test_best_of_k_of_best_of_n_is_even_with_best_of_kn_and_the_reference_with_itself():
    assert best_of_k(FIVE, FIVE.best_of(3), 3, [4])["even_4"] == pytest.approx(0.5, abs=1e-14)
    assert best_of_k(FIVE, FIVE.probs, 3, [4])["duel_bound_4"] == 0.5


@pytest.mark.parametrize(("k", "beta"), [(1, 0.5), (2, 0.3), (4, 1.0), (4, 0.01), (8, 0.2)])
def test_the_best_policy_of_a_kl_is_an_optimum_of_the_same_kl(k, beta):
    worth = FIVE.rebase(FIVE.best_of(k)).calibrated_reward
    optimum = best_of_optimum(FIVE, k, beta, worth)
    found = best_at_kl(FIVE, worth, k, kl_divergence(optimum, FIVE.probs))
    np.testing.assert_allclose(found.probs, optimum, atol=1e-8)
    assert found.worth == pytest.approx(inference_win_rate(FIVE, optimum, k), abs=1e-10)


def test_the_golden_numbers_of_infalign():
    worth = FIVE.rebase(FIVE.best_of(4)).calibrated_reward
    golden = [0.245183189538, 0.2062339486, 0.16498715888, 0.167622733407, 0.215972969575]
    found = best_at_kl(FIVE, worth, 4, kl_divergence(np.array(golden) / sum(golden), FIVE.probs))
    np.testing.assert_allclose(found.probs, golden, atol=1e-9)
    assert found.worth == pytest.approx(0.651554598416, abs=1e-9)


def test_no_search_finds_a_better_policy_of_the_same_kl():
    """Where the worth is the reward itself, which is max@k."""
    found = best_at_kl(FIVE, FIVE.rewards, 3, 0.4)

    def lost(logits):
        return -(FIVE.rebase(softmax(logits)).best_of(3) @ FIVE.rewards)

    same = {"type": "eq", "fun": lambda logits: kl_divergence(softmax(logits), FIVE.probs) - 0.4}
    searched = minimize(lost, np.log(POLICY), method="SLSQP", constraints=[same], options={"ftol": 1e-14})
    assert found.kl == pytest.approx(0.4)
    assert found.worth == pytest.approx(-searched.fun, abs=1e-6)


def test_a_kl_that_no_policy_has_leaves_the_best_alone():
    found = best_at_kl(FIVE, FIVE.calibrated_reward, 2, 9.0)
    np.testing.assert_allclose(found.probs, [0, 0, 0, 0, 1], atol=1e-12)
    assert found.kl == pytest.approx(np.log(10))


@pytest.mark.parametrize("k", [1, 2, 8])
def test_large_kls_are_reached_too(k):
    even = Outcomes(np.full(20_000, 1 / 20_000), np.arange(20_000))
    found = best_at_kl(even, even.calibrated_reward, k, 8.0)
    assert found.kl == pytest.approx(8.0, abs=1e-9)


def test_a_kl_is_positive():
    with pytest.raises(ValueError, match="kl is 0"):
        best_at_kl(FIVE, FIVE.rewards, 2, 0.0)
