"""Right answers among k draws, the answer that most give, the one that weighs most, and a verifier that errs."""

import itertools
from collections import Counter
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.answers import (
    majority_at_k,
    majority_law,
    noisy_verifier_accuracy,
    noisy_verifier_ceiling,
    pass_at_k,
    self_certainty,
    weighted_vote_at_k,
)
from bonlib.estimates import best_of_n_reward, best_of_n_weights
from bonlib.exact import Outcomes

# The world V of the exact mathematics behind the course: five outcomes, three answers, a score.
PROBS, ANSWERS, SCORES = [0.15, 0.05, 0.35, 0.25, 0.20], [0, 0, 1, 1, 2], [0.2, 0.9, 0.5, 0.6, 1.0]
DRAWN = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=7)


def shares(weights):
    """Of answers with weights, those of the largest share one evenly; none has anything if there is no answer."""
    best = [answer for answer, weight in weights.items() if weight >= max(weights.values()) - 1e-9]
    return {answer: 1 / len(best) for answer in best}


def enumerated_vote(answers, correct, weights, k):
    """How often the answer of the largest sum is right, over all subsets; weights is a function of one."""
    total, subsets = 0.0, list(itertools.combinations(range(len(answers)), k))
    for subset in subsets:
        sums = {}
        for place, weight in zip(subset, weights(subset), strict=True):
            if answers[place] is not None:
                sums[answers[place]] = sums.get(answers[place], 0.0) + weight
        for answer, share in shares(sums).items():
            total += share * np.mean([correct[place] for place in subset if answers[place] == answer])
    return total / len(subsets)


def multiset_law(probs, k, winners):
    """Law of a vote among k draws: `winners` gives the shares of the answers for a tuple of counts."""
    law = np.zeros(3)
    for counts in itertools.product(range(k + 1), repeat=len(probs)):
        if sum(counts) == k:
            ways = factorial(k) / np.prod([factorial(count) for count in counts])
            chance = ways * np.prod([p**count for p, count in zip(probs, counts, strict=True)])
            for answer, share in winners(counts).items():
                law[answer] += chance * share
    return law


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_counts_the_subsets(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    want = np.mean([any(subset) for subset in itertools.combinations(correct, k)])
    assert pass_at_k(correct, k) == pytest.approx(want, abs=1e-14)
    assert pass_at_k([correct, correct], k) == pytest.approx(best_of_n_reward([correct] * 2, k).value, abs=1e-14)


def test_pass_at_k_keeps_its_digits_for_many_draws():
    one_in_a_million = np.arange(1_000_000) == 7
    assert pass_at_k(one_in_a_million, 1000) == pytest.approx(1e-3, rel=1e-12)
    assert pass_at_k(~one_in_a_million, 2) == 1


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(1, 5))
def test_the_law_of_the_majority_is_that_of_all_tuples(weights, k):
    probs = np.array(weights) / sum(weights)
    law = np.zeros(len(probs))
    for drawn in itertools.product(range(len(probs)), repeat=k):
        for answer, share in shares(Counter(drawn)).items():
            law[answer] += share * np.prod(probs[list(drawn)])
    np.testing.assert_allclose(majority_law(probs, k), law, rtol=0, atol=2e-14)
    assert k > 2 or law == pytest.approx(probs, abs=1e-12)  # a vote of one or two is a draw


def test_the_golden_numbers_of_the_majority():
    np.testing.assert_allclose(majority_law([0.5, 0.3, 0.2], 5), [0.6125, 0.25758, 0.12992], atol=1e-14)
    np.testing.assert_allclose(majority_law([0.2, 0.6, 0.2], 7), [0.084416, 0.831168, 0.084416], atol=1e-14)
    assert majority_law([0.4, 0.35, 0.25], 2000) == pytest.approx([1, 0, 0], abs=0.02)  # the mode, at last
    assert majority_law([0.3, 0.3, 0.4, 0.0], 300).sum() == pytest.approx(1, abs=1e-12)


def test_on_a_known_world_the_vote_and_the_best_score_give_different_answers():
    """The weighted vote is counted here over all multisets; a vote by draws is checked against the same elsewhere."""

    def by_score(counts):
        sums = dict.fromkeys(itertools.compress(ANSWERS, counts), 0.0)
        for count, answer, score in zip(counts, ANSWERS, SCORES, strict=True):
            if count:
                sums[answer] += count * score
        return shares(sums)

    golden = [0.027333521094, 0.719655227344, 0.253011251563]
    np.testing.assert_allclose(multiset_law(PROBS, 7, by_score), golden, atol=1e-12)
    drawn = np.random.default_rng(0).choice(5, p=PROBS, size=(3000, 7))
    found = weighted_vote_at_k(np.array(ANSWERS)[drawn], np.array(SCORES)[drawn], np.array(ANSWERS)[drawn] == 1, 7)
    assert found.mean() == pytest.approx(golden[1], abs=5 * found.std() / np.sqrt(3000))
    best = Outcomes(PROBS, SCORES).best_of(7)
    assert np.bincount(ANSWERS, best).argmax() == 2
    assert majority_law(np.bincount(ANSWERS, PROBS), 7).argmax() == 1


@settings(deadline=None)
@given(DRAWN, st.data())
def test_the_majority_is_counted_over_all_subsets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    right = data.draw(st.sampled_from(["a", "ab", "z"]))
    correct = [answer is not None and answer in right for answer in answers]
    want = enumerated_vote(answers, correct, lambda subset: np.ones(len(subset)), k)
    assert majority_at_k(answers, correct, k) == pytest.approx(want, abs=1e-13)
    assert majority_at_k([answers[::-1]], [correct[::-1]], k) == pytest.approx([want], abs=1e-13)


def test_the_majority_of_stored_draws_is_right_as_often_as_the_law_says():
    probs = np.array([0.35, 0.3, 0.2, 0.15])
    drawn = np.random.default_rng(0).choice(4, p=probs, size=(4000, 24))
    for k in (1, 3, 8, 24):
        found = majority_at_k(drawn, drawn == 0, k)
        assert found.mean() == pytest.approx(majority_law(probs, k)[0], abs=5 * found.std() / np.sqrt(4000))


def test_an_answer_that_is_right_at_times_counts_as_often():
    assert majority_at_k(["a", "a", "b"], [True, False, False], 3) == pytest.approx(0.5)
    assert weighted_vote_at_k(["a", "a", "b"], [1, 1, 1], [True, False, False], 3) == pytest.approx(0.5)


@settings(deadline=None)
@given(DRAWN, st.data())
def test_a_weighted_vote_is_counted_over_all_subsets_where_they_are_few(answers, data):
    m = len(answers)
    k = data.draw(st.integers(1, m))
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m)), float)
    correct = [answer == "a" for answer in answers]
    summed = enumerated_vote(answers, correct, lambda subset: scores[list(subset)], k)
    assert weighted_vote_at_k(answers, scores, correct, k) == pytest.approx(summed, abs=1e-9)
    soft = enumerated_vote(answers, correct, lambda subset: np.exp(scores[list(subset)] / 0.7), k)
    assert weighted_vote_at_k(answers, scores - 5, correct, k, temperature=0.7) == pytest.approx(soft, abs=1e-9)


def test_between_the_majority_and_the_best_score():
    rng = np.random.default_rng(0)
    answers = rng.integers(5, size=(40, 12))
    scores, correct = rng.random((40, 12)), answers == 0
    many = {"subsets": 1000}  # all 792 of five
    cold = weighted_vote_at_k(answers, scores, correct, 5, temperature=1e-9, **many)
    np.testing.assert_allclose(cold, (best_of_n_weights(scores, 5) * correct).sum(axis=1), atol=1e-12)
    hot = weighted_vote_at_k(answers, scores, correct, 5, temperature=np.inf, **many)
    np.testing.assert_allclose(hot, majority_at_k(answers, correct, 5), atol=1e-12)
    few = weighted_vote_at_k(answers, scores, correct, 5, temperature=np.inf, subsets=500, seed=3)
    assert few.mean() == pytest.approx(hot.mean(), abs=0.01)
    assert (few == weighted_vote_at_k(answers, scores, correct, 5, temperature=np.inf, subsets=500, seed=3)).all()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6))
def test_a_verifier_that_errs_chooses_as_best_of_n_does(p, t, f, n):
    """Outcomes are right or wrong, accepted or not; best-of-n is by the verdict."""
    model = Outcomes([p * t, p * (1 - t), (1 - p) * f, (1 - p) * (1 - f)], [1, 0, 1, 0])
    assert noisy_verifier_accuracy(p, t, f, n) == pytest.approx(model.best_of(n)[:2].sum(), abs=1e-12)


def test_the_golden_numbers_of_a_verifier_that_errs():
    found = noisy_verifier_accuracy(0.3, 0.9, 0.2, [1, 4])
    np.testing.assert_allclose(found, [0.3, 0.5849007], atol=1e-14)
    assert noisy_verifier_ceiling(0.3, 0.9, 0.2) == pytest.approx(0.658536585366, abs=1e-12)


@given(st.floats(0.01, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_more_draws_help_if_right_answers_are_accepted_oftener_and_never_past_the_ceiling(p, t, f):
    curve, ceiling = noisy_verifier_accuracy(p, t, f, np.arange(1, 50)), noisy_verifier_ceiling(p, t, f)
    sign = np.sign(t - f)
    assert (sign * np.diff(curve) >= -1e-12).all()
    assert (sign * (ceiling - curve) >= -1e-12).all()
    assert noisy_verifier_accuracy(p, t, f, 1e12) == pytest.approx(ceiling, abs=1e-2 if t + f > 1e-9 else 1)


def test_self_certainty_is_the_divergence_from_uniform():
    probs = np.array([[[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], [[0.9, 0.05, 0.05], [0.2, 0.2, 0.6]]])
    each = -np.log(3 * probs).mean(axis=-1)
    np.testing.assert_allclose(self_certainty(np.log(probs)), each.mean(axis=1), atol=1e-14)
    np.testing.assert_allclose(self_certainty(np.log(probs) + 7), each.mean(axis=1), atol=1e-14)
    masked = self_certainty(np.log(probs), [[1, 0], [1, 1]])
    np.testing.assert_allclose(masked, [each[0, 0], each[1].mean()], atol=1e-14)
    assert self_certainty(np.zeros((4, 50))) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k([True, False], 3), "k is 3; with 2 draws a prompt it must be a whole number from 1 to 2"),
        (lambda: pass_at_k([True, None], 1), "correct must be an array of True and False"),
        (lambda: pass_at_k([0.5], 1), "correct must be an array of True and False"),
        (
            lambda: majority_at_k(["a"], [True, False], 1),
            r"answers has shape \(1,\); it must be that of correct, \(2,\)",
        ),
        (lambda: majority_at_k(["a", "b"], [True, False], 0), "k is 0"),
        (lambda: majority_law([0.5, 0.4], 3), "probs sums to"),
        (lambda: majority_law([1.0], 1.5), "k is 1.5"),
        (lambda: weighted_vote_at_k(["a"], [np.nan], [True], 1), "scores has shape"),
        (lambda: weighted_vote_at_k(["a"], [-1.0], [True], 1), "at least 0: give a temperature"),
        (lambda: weighted_vote_at_k(["a"], [-1.0], [True], 1, temperature=0), "temperature is 0"),
        (lambda: weighted_vote_at_k(["a"], [1.0], [True], 1, subsets=0), "subsets is 0"),
        (lambda: noisy_verifier_accuracy(0.5, 1.2, 0, 1), "true_positive_rate is 1.2; it must be from 0 to 1"),
        (lambda: noisy_verifier_ceiling(np.nan, 1, 0), "p is nan"),
        (lambda: noisy_verifier_accuracy(0.5, 1, 0, 0), "n is 0"),
        (lambda: majority_law([0.5, 0.5], 3, silent=0.1), "probs sums to"),
        (lambda: self_certainty(np.zeros(3)), r"logits has shape \(3,\)"),
        (lambda: self_certainty(np.zeros((2, 3)), [0, 0]), "a response without a token"),
        (lambda: self_certainty([[np.nan, 0.0]]), "logits holds a number that is not finite"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
