"""Votes keep what their laws say, and the laws are those of all tuples of draws."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from bonlib.exact import Outcomes
from bonlib.inference.rules import TooManyOutcomesError, choose_in_groups
from bonlib.inference.votes import BordaVote, MajorityVote, WeightedVote

V = Outcomes([0.15, 0.05, 0.35, 0.25, 0.20], [0.2, 0.9, 0.5, 0.6, 1.0])
ANSWERS = np.array([0, 0, 1, 1, 2])
QUIET = np.array(["a", None, "b", "b", None], dtype=object)
RULES = [
    MajorityVote(4),
    WeightedVote(4),
    WeightedVote(4, 0.3),
    WeightedVote(4, 1e-9),
    BordaVote(4, 0.5),
    BordaVote(4, 2.0),
]


def points(rule, rewards, votes):
    """Weights of the draws, in their plainest form; who does not vote has any."""
    if isinstance(rule, MajorityVote):
        return [1.0] * len(rewards)
    if isinstance(rule, BordaVote):
        places = [(sum(r > mine for r in rewards) + sum(r >= mine for r in rewards) + 1) / 2 for mine in rewards]
        return [(len(rewards) - place + 1) ** rule.power for place in places]
    if rule.temperature is None:
        return list(rewards)
    most = max((r for r, says in zip(rewards, votes, strict=True) if says), default=0.0)
    return [np.exp(min(r - most, 0.0) / rule.temperature) for r in rewards]


def enumerated(rule, world, answers):
    """The law, from all n-tuples of draws: ties between answers shared evenly, the first drawn of the answer kept."""
    law = np.zeros(len(world))
    for drawn in itertools.product(range(len(world)), repeat=rule.n):
        chance = np.prod(world.probs[list(drawn)])
        sums = Counter()
        votes = [answers[place] is not None for place in drawn]
        for place, weight in zip(drawn, points(rule, world.rewards[list(drawn)].tolist(), votes), strict=True):
            if answers[place] is not None:
                sums[answers[place]] += weight
        best = [answer for answer in sums if sums[answer] >= max(sums.values()) - 1e-12] or [None]
        for answer in best:
            law[next(place for place in drawn if answers[place] == answer)] += chance / len(best)
    return law


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answers", [ANSWERS, QUIET])
@pytest.mark.parametrize("rewards", [V.rewards, [1.0, 0.0, 1.0, 1.0, 3.0]])
def test_the_law_is_that_of_all_tuples(rule, answers, rewards):
    world = Outcomes(V.probs, rewards)
    law = rule.law(world, answers)
    np.testing.assert_allclose(law, enumerated(rule, world, answers), rtol=0, atol=1e-14)
    assert law.sum() == pytest.approx(1, abs=1e-14)
    assert rule.cost(world) == 4


def test_the_golden_numbers():
    for rule, golden in (
        (MajorityVote(7), [0.084416, 0.831168, 0.084416]),
        (WeightedVote(7), [0.027333521094, 0.719655227344, 0.253011251563]),
    ):
        np.testing.assert_allclose(np.bincount(ANSWERS, rule.law(V, ANSWERS)), golden, rtol=0, atol=5e-13)
    law = MajorityVote(5).law(Outcomes([0.5, 0.3, 0.2], [0.0, 0.0, 0.0]), [0, 1, 2])
    np.testing.assert_allclose(law, [0.6125, 0.25758, 0.12992], rtol=0, atol=1e-14)
    assert np.bincount(ANSWERS, V.best_of(7)).argmax() == 2  # where the votes have answer 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=5), st.integers(1, 5), st.data())
def test_limits(weights, n, data):
    world = Outcomes(np.array(weights) / sum(weights), np.arange(len(weights)) + 1.0)
    answers = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(weights), max_size=len(weights))))
    majority = MajorityVote(n).law(world, answers)
    best = np.bincount(answers, world.best_of(n), 3)
    for rule in (WeightedVote(n, 1e15), BordaVote(n, 0)):
        np.testing.assert_allclose(rule.law(world, answers), majority, atol=1e-12)
    for rule in (WeightedVote(n, 1e-15), BordaVote(n, 500)):
        np.testing.assert_allclose(np.bincount(answers, rule.law(world, answers), 3), best, atol=1e-12)
    if n <= 2:  # a vote of one or two is a draw
        np.testing.assert_allclose(majority, world.probs, atol=1e-12)
    alone = np.arange(len(weights))  # where no answer comes twice, the largest weight is the best draw's
    np.testing.assert_allclose(WeightedVote(n, 0.01).law(world, alone), world.best_of(n), atol=1e-12)


def test_many_draws_find_the_mode_or_the_largest_weight():
    assert np.bincount(ANSWERS, MajorityVote(500).law(V, ANSWERS)) == pytest.approx([0, 1, 0], abs=1e-3)
    score = np.bincount(ANSWERS, V.probs * V.rewards)
    assert score.argmax() == 1
    drawn = np.random.default_rng(0).choice(5, p=V.probs, size=(200, 500))
    kept = WeightedVote(500).choose(V.rewards[drawn], answers=ANSWERS[drawn]).kept
    assert (ANSWERS[np.take_along_axis(drawn, kept[:, None], 1)] == 1).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answers", [ANSWERS, QUIET])
def test_choices_follow_the_law(rule, answers):
    drawn = np.random.default_rng(1).choice(5, p=V.probs, size=(2, 4 * 20_000))
    known = {"answers": answers[drawn]}
    choice = choose_in_groups(rule, V.rewards[drawn], seed=5, known=known)
    assert (choice.spent == 4).all()
    times = np.bincount(np.take_along_axis(drawn, choice.kept, axis=1).ravel(), minlength=5)
    law = rule.law(V, answers)
    assert not times[law == 0].any()
    assert chisquare(times[law > 0], law[law > 0] * times.sum()).pvalue > 1e-3


def test_who_does_not_vote_leaves_the_weights_as_they_are():
    rewards, answers = [[0.0, 1.0, 1e6]] * 100, np.array([["a", "b", None]] * 100, dtype=object)
    assert (WeightedVote(3, 0.1).choose(rewards, answers=answers).kept == 1).all()


def test_the_first_of_the_answer_is_kept_and_ties_are_a_lottery():
    assert MajorityVote(5).choose(np.zeros(5), answers=["b", None, "a", "b", "a"], seed=0).kept in (0, 2)
    assert MajorityVote(5).choose(np.zeros(5), answers=[None, "b", "a", "c", "a"]).kept == 2
    assert MajorityVote(3).choose(np.zeros(3), answers=[None, None, None]).kept == 0
    assert WeightedVote(3).choose([0.0, 0.0, 5.0], answers=["a", "a", None]).kept == 0
    kept = MajorityVote(2).choose(np.zeros((4000, 2)), answers=np.tile(["a", "b"], (4000, 1)), seed=1).kept
    assert kept.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MajorityVote(0), "n is 0"),
        (lambda: WeightedVote(3, 0.0), "temperature is 0.0; leave it out to add up the rewards"),
        (lambda: BordaVote(3, -1.0), "power is -1.0"),
        (lambda: WeightedVote(2).choose([-1.0, 0.0], answers=[0, 1]), "rewards holds -1; a sum needs 0 or more"),
        (lambda: MajorityVote(2).choose([1.0, 0.0], answers=[0]), r"answers has shape \(1,\); it must be \(2,\)"),
        (lambda: MajorityVote(2).law(V, [0]), r"answers has shape \(1,\); it must be \(5,\)"),
        (lambda: BordaVote(100, 1.0).law(V, ANSWERS), "outcomes has 5 different ones, on which 100 draws"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_law_that_takes_too_long_is_told_apart():
    with pytest.raises(TooManyOutcomesError):
        WeightedVote(64).law(Outcomes(np.full(40, 1 / 40), np.arange(40)), np.arange(40) % 3)
