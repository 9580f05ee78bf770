"""Best-of-k of a policy by listing all draws; the best policy of a KL by golden numbers and by direct search."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from bonlib.course.experiments.on_top import best_of_k, regularised_best_of
from bonlib.exact import Outcomes, kl_divergence

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


def test_inference_aware_golden_numbers():
    worth = FIVE.rebase(FIVE.best_of(4)).calibrated_reward
    found = regularised_best_of(FIVE, worth, 4, beta=1.0)
    golden = [0.245183189538, 0.2062339486, 0.16498715888, 0.167622733407, 0.215972969575]
    np.testing.assert_allclose(found.probs, golden, atol=1e-12)
    assert found.worth == pytest.approx(0.651554598416, abs=1e-12)
    assert found.kl == pytest.approx(kl_divergence(found.probs, FIVE.probs), abs=1e-14)
    by_kl = regularised_best_of(FIVE, worth, 4, kl=found.kl)
    np.testing.assert_allclose(by_kl.probs, found.probs, atol=1e-10)
    assert by_kl.beta == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("beta", "left"), [(0.1, 0.500), (0.01, 0.266), (1e-3, 0.135), (1e-4, 0.067)])
def test_small_coefficients_leave_what_they_should_to_others_than_the_best(beta, left):
    worth = FIVE.rebase(FIVE.best_of(4)).calibrated_reward
    assert 1 - regularised_best_of(FIVE, worth, 4, beta=beta).probs[-1] == pytest.approx(left, abs=5e-4)


def test_one_draw_makes_a_tilt():
    np.testing.assert_allclose(regularised_best_of(FIVE, FIVE.rewards, 1, beta=0.5).probs, FIVE.tilt(0.5), atol=1e-12)


@pytest.mark.parametrize(("k", "beta"), [(2, 0.3), (3, 1.0), (8, 0.2)])
def test_no_search_finds_a_better_policy(k, beta):
    """Also where the worth is the reward, which is max@k."""
    worth = FIVE.rewards

    def loss(logits):
        p = softmax(logits)
        return beta * kl_divergence(p, FIVE.probs) - FIVE.rebase(p).best_of(k) @ worth

    found = regularised_best_of(FIVE, worth, k, beta=beta)
    searched = minimize(loss, np.log(FIVE.probs), method="BFGS", options={"gtol": 1e-9})
    assert beta * found.kl - found.worth == pytest.approx(searched.fun, abs=1e-9)
    np.testing.assert_allclose(found.probs, softmax(searched.x), atol=1e-4)


def test_a_kl_that_no_policy_has_leaves_the_best_alone():
    found = regularised_best_of(FIVE, FIVE.calibrated_reward, 2, kl=9.0)
    np.testing.assert_allclose(found.probs, [0, 0, 0, 0, 1], atol=1e-12)
    assert found.kl == pytest.approx(np.log(10))


@pytest.mark.parametrize("wrong", [{}, {"beta": 1.0, "kl": 1.0}, {"beta": 0.0}, {"kl": -1.0}])
def test_one_positive_number_says_which_policy(wrong):
    with pytest.raises(ValueError, match="give one of them, positive"):
        regularised_best_of(FIVE, FIVE.rewards, 2, **wrong)
