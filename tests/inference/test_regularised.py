"""Regularised best-of-n: laws against all tuples and simulation, limits, linear programming, distances of texts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import softmax
from scipy.stats import chisquare

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.regularised import (
    KlBestOfN,
    KlBestOfSet,
    MbrBestOfN,
    WassersteinBestOfN,
)
from bonlib.inference.rules import TooManyOutcomesError, choose_in_groups
from bonlib.inference.soft_best_of_n import soft_best_of

W = Outcomes([0.3, 0.25, 0.2, 0.15, 0.1], [0, 1, 1, 2, 3])
H = Outcomes([0.5, 0.3, 0.17, 0.03], [0, 0.5, 1, 1.5])
GOLD = np.array([0, 0.5, 1, -1])
ON_A_LINE = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
APART = 1 - np.eye(4)
RULES = {"mbr": MbrBestOfN, "wasserstein": WassersteinBestOfN, "kl": KlBestOfN, "kl-set": KlBestOfSet}


def mbr(model, drawn, beta, apart):
    scores = model.rewards[drawn] - beta * apart[np.ix_(drawn, drawn)].mean(axis=1)
    return np.eye(len(drawn))[np.flatnonzero(scores > scores.max() - 1e-9)[0]]


def wasserstein(model, drawn, beta, apart):
    found = np.zeros(len(drawn))
    for centre in drawn:
        scores = model.rewards[drawn] - beta * apart[drawn, centre]
        found[np.flatnonzero(scores > scores.max() - 1e-9)[0]] += 1 / len(drawn)
    return found


def kl(model, drawn, beta, apart):
    return softmax(model.rewards[drawn] / beta + model.log_probs[drawn])


def kl_set(model, drawn, beta, apart):
    first = np.array([drawn.index(y) == place for place, y in enumerate(drawn)])
    return softmax(np.where(first, model.rewards[drawn] / beta + model.log_probs[drawn], -np.inf))


def by_enumeration(kept, model, n, beta, apart):
    law = np.zeros(len(model))
    for drawn in itertools.product(np.flatnonzero(model.probs).tolist(), repeat=n):
        np.add.at(law, list(drawn), np.prod(model.probs[list(drawn)]) * kept(model, list(drawn), beta, apart))
    return law


def law(name, model, n, beta, apart):
    rule = RULES[name](n, beta)
    return rule.law(model, apart) if "distances" in rule.needs else rule.law(model)


def on_a_plane(size, seed):
    """Distances of random places, some of them the same."""
    places = np.random.default_rng(seed).integers(0, 3, size=(size, 2))
    return np.sqrt(((places[:, None] - places) ** 2).sum(axis=-1))


@pytest.mark.parametrize(("name", "kept"), [("mbr", mbr), ("wasserstein", wasserstein), ("kl", kl), ("kl-set", kl_set)])
@given(st.integers(1, 5), st.floats(-1, 1), st.integers(0, 9999))
def test_the_laws_equal_enumeration_of_all_tuples(name, kept, n, log_beta, seed):
    rng = np.random.default_rng(seed)
    weights = np.append(rng.choice([0, 1e-9, 0.1, 1], size=3), 1)
    model, apart = Outcomes(weights / weights.sum(), rng.integers(0, 3, size=4)), on_a_plane(4, seed)
    want = by_enumeration(kept, model, n, 10**log_beta, apart)
    np.testing.assert_allclose(law(name, model, n, 10**log_beta, apart), want, rtol=0, atol=1e-12)


def test_golden_numbers():
    golden = {
        "kl-set": [0.160919903218, 0.2585236485, 0.182433025624, 0.212876182017, 0.185247240641],
        "kl": [0.174809228089, 0.259788377189, 0.179799244548, 0.206139111631, 0.179464038542],
        "wasserstein": [0.075, 0.31875, 0.1125, 0.22275, 0.271],
        "mbr": [0.027, 0.266875, 0.128, 0.307125, 0.271],
    }
    for name, want in golden.items():
        beta = 1 if name.startswith("kl") else 0.6
        np.testing.assert_allclose(law(name, W, 3, beta, ON_A_LINE), want, atol=6e-13)


def test_which_helps_against_a_hacked_reward_depends_on_the_strength():
    assert H.best_of(6) @ GOLD == pytest.approx(0.527, abs=6e-4)
    gold = {name: [law(name, H, 6, beta, APART) @ GOLD for beta in (0.25, 0.6, 1.2)] for name in RULES}
    assert gold["mbr"] == pytest.approx([0.527, 0.527, 0.489], abs=6e-4)
    assert gold["wasserstein"] == pytest.approx([0.527, 0.421, 0.219], abs=6e-4)
    assert gold["kl-set"] == pytest.approx([0.544, 0.449, 0.364], abs=6e-4)
    soft = [soft_best_of(H, 6, beta) @ GOLD for beta in (0.25, 0.6, 1.2)]
    assert soft == pytest.approx([0.480, 0.397, 0.350], abs=6e-4)


def test_limits_of_the_strength():
    for name in ("mbr", "wasserstein"):
        by_reward = np.bincount(W.rewards.astype(int), law(name, W, 4, 1e-9, ON_A_LINE))  # distance decides ties
        np.testing.assert_allclose(by_reward, np.bincount(W.rewards.astype(int), W.best_of(4)), atol=1e-12)
        np.testing.assert_allclose(law(name, W, 1, 0.7, ON_A_LINE), W.probs, atol=1e-12)
    np.testing.assert_allclose(law("mbr", W, 2, 0.7, ON_A_LINE), W.best_of(2), atol=1e-12)
    np.testing.assert_allclose(law("wasserstein", W, 4, 1e9, ON_A_LINE), W.probs, atol=1e-12)
    for name in ("kl", "kl-set"):
        np.testing.assert_allclose(
            law(name, Outcomes(W.probs, [0, 1, 4, 2, 3]), 4, 1e-300, None)[[2, 4]],
            Outcomes(W.probs, [0, 1, 4, 2, 3]).best_of(4)[[2, 4]],
        )


def test_a_strong_mbr_keeps_the_medoid():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(50, 9, 2))
    apart = np.sqrt(((places[:, :, None] - places[:, None]) ** 2).sum(axis=-1))
    kept = MbrBestOfN(9, 1e9).choose(rng.normal(size=(50, 9)), distances=apart).kept
    np.testing.assert_array_equal(kept, apart.sum(axis=-1).argmin(axis=-1))


def test_unlikely_responses_lose_no_digits():
    for name in ("kl", "kl-set"):
        rule = RULES[name](3, 0.7)
        np.testing.assert_allclose(rule.law(W, W.log_probs - 2000), rule.law(W), rtol=1e-9)


def test_limits_of_many_draws():
    np.testing.assert_allclose(law("kl-set", W, 10**4, 0.8, None), W.tilt(0.8), atol=1e-12)
    twice = W.probs**2 * np.exp(W.rewards / 0.8)
    np.testing.assert_allclose(law("kl", W, 10**9, 0.8, None), twice / twice.sum(), atol=1e-6)


@given(st.integers(0, 99), st.floats(-1, 1))
def test_the_wasserstein_rule_is_the_optimum_of_a_linear_program(seed, log_beta):
    rng, n, beta = np.random.default_rng(seed), 5, 10**log_beta
    rewards, apart = rng.normal(size=n), on_a_plane(n, seed)
    # A plan moves mass from draw j (columns), 1/n each, to what is kept (rows).
    plan = linprog(
        (beta * apart - rewards[:, None]).ravel(), A_eq=np.tile(np.eye(n), n), b_eq=np.full(n, 1 / n), bounds=(0, None)
    )
    by_centre = (rewards[:, None] - beta * apart).max(axis=0).mean()
    assert -plan.fun == pytest.approx(by_centre, abs=1e-12)
    seen = [WassersteinBestOfN(n, beta).choose(rewards, distances=apart, seed=seed).kept for seed in range(40)]
    assert set(map(int, seen)) <= set(np.flatnonzero(plan.x.reshape(n, n).sum(axis=1) > 1e-12))


def test_on_the_set_no_distribution_has_more_reward_less_kl():
    rng = np.random.default_rng(0)
    members, beta = np.array([0, 2, 3]), 0.7
    kept = softmax(W.rewards[members] / beta + W.log_probs[members])

    def objective(q):
        everywhere = np.zeros(5)
        everywhere[members] = q
        return q @ W.rewards[members] - beta * kl_divergence(everywhere, W.probs)

    assert all(objective(q) <= objective(kept) for q in rng.dirichlet(np.ones(3), size=200))
    assert all(objective(0.99 * kept + 0.01 * q) <= objective(kept) for q in rng.dirichlet(np.ones(3), size=200))


@pytest.mark.parametrize("name", RULES)
def test_choices_follow_the_laws(name):
    rng, n = np.random.default_rng(0), 4
    drawn = rng.choice(5, size=(50_000, n), p=W.probs)
    rule = RULES[name](n, 0.6)
    known = {
        "distances": ON_A_LINE[drawn[:, :, None], drawn[:, None]],
        "log_probs": W.log_probs[drawn],
        "responses": np.array(list("abcde"))[drawn],
    }
    kept, spent = rule.choose(W.rewards[drawn], **{each: known[each] for each in rule.needs}, seed=1)
    expected = law(name, W, n, 0.6, ON_A_LINE) * len(drawn)
    assert chisquare(np.bincount(drawn[np.arange(len(drawn)), kept], minlength=5), expected).pvalue > 0.01
    assert (spent == n).all()
    assert rule.cost(W) == n


def test_of_equal_responses_the_first_is_kept():
    kept = KlBestOfSet(4, 1).choose(
        np.ones((500, 4)), log_probs=np.zeros((500, 4)), responses=np.tile(["a", "b", "a", "b"], (500, 1))
    )
    counts = np.bincount(kept.kept, minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert counts[0] == pytest.approx(250, abs=50)


def test_ties_by_rounding_go_to_the_first():
    apart = np.array([[0, 0.1, 0.3], [0.1, 0, 0.2], [0.3, 0.2, 0]])
    rewards = 0.6 * apart.sum(axis=1) / 3  # all scores are 0 but for rounding
    assert MbrBestOfN(3, 0.6).choose(rewards, distances=apart).kept == 0


@pytest.mark.parametrize("rule", [MbrBestOfN(3, 1e-6), WassersteinBestOfN(3, 1e-6), KlBestOfN(3, 1e-6)])
def test_what_all_rewards_have_in_common_changes_nothing(rule):
    probs, rewards, apart = [0.5, 0.3, 0.2, 0.0], np.array([0.0, 2.0**-20, 2.0**-21, 1.0]), np.ones((4, 4)) - np.eye(4)
    apart[0, 2] = apart[2, 0] = 0.25
    known = (apart,) if "distances" in rule.needs else ()
    laws = [rule.law(Outcomes(probs, rewards + shift), *known) for shift in (0.0, 2.0**30)]
    np.testing.assert_allclose(*laws, rtol=0, atol=1e-12)
    if known:
        draws = np.arange(3)
        kept = [rule.choose(rewards[draws] + shift, distances=apart[:3, :3]).kept for shift in (0.0, 2.0**30)]
        assert kept[0] == kept[1]


def test_what_cannot_come_makes_no_others_equal():
    rule = WassersteinBestOfN(3, 1.0)
    apart = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
    law = rule.law(Outcomes([0.6, 0.4, 0.0], [0.0, 0.5, 1e12]), apart)
    np.testing.assert_allclose(law[:2], rule.law(Outcomes([0.6, 0.4], [0.0, 0.5]), apart[:2, :2]), rtol=0, atol=1e-15)


def test_choices_in_groups_see_their_own_distances():
    rng = np.random.default_rng(0)
    rewards, places = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    apart = np.abs(places[:, :, None] - places[:, None])
    kept = choose_in_groups(MbrBestOfN(4, 1), rewards, known={"distances": apart}).kept
    second = MbrBestOfN(4, 1).choose(rewards[:, 4:], distances=apart[:, 4:, 4:]).kept
    np.testing.assert_array_equal(kept[:, 1], 4 + second)


@pytest.mark.parametrize("name", RULES)
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match="n is 0"):
        RULES[name](0, 1)
    for beta in (0, -1, np.nan):
        with pytest.raises(ValueError, match="beta is"):
            RULES[name](2, beta)


def test_bad_arguments_are_named():
    for make in (MbrBestOfN, WassersteinBestOfN):
        for apart in (np.zeros((2, 3)), [[0, np.nan], [1, 0]], [[0, -1], [1, 0]], [[1, 1], [1, 0]]):
            with pytest.raises(ValueError, match="distances has"):
                make(2, 1).choose([1, 2], distances=apart)
    with pytest.raises(ValueError, match="log_probs has shape"):
        KlBestOfN(2, 1).choose([1, 2], log_probs=[-1])
    with pytest.raises(ValueError, match="responses has shape"):
        KlBestOfSet(2, 1).choose([1, 2], log_probs=[-1, -1], responses=["a"])
    many = Outcomes(np.full(40, 1 / 40), np.arange(40))
    with pytest.raises(TooManyOutcomesError, match="40 that can come"):
        KlBestOfSet(2, 1).law(many)
    with pytest.raises(TooManyOutcomesError, match="40 different ones"):
        MbrBestOfN(9, 1).law(many, np.zeros((40, 40)))
