"""TreeBoN keeps what its law on a tree says."""

import numpy as np
import pytest
from scipy.stats import chisquare
from small_trees import T2, by_reward, enumerated, played

from bonlib.exact import Outcomes
from bonlib.inference.rules import choose_in_groups, make_rule
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.tree_best_of_n import TreeBestOfN


@pytest.mark.parametrize(("n", "survivors", "children"), [(1, 1, 2), (2, 1, 2), (2, 2, 2), (3, 2, 2), (4, 2, 1)])
def test_its_law_is_that_of_all_cases(n, survivors, children):
    law = TreeBestOfN(n, survivors, children, (1,)).tree_law(T2)
    expected = enumerated(T2, n, survivors, children=children)
    np.testing.assert_allclose(law, expected, rtol=0, atol=1e-14)


def test_golden_numbers():
    law = TreeBestOfN(3, 2, 2, (1,)).tree_law(T2)
    np.testing.assert_allclose(by_reward(law), [0.0081955, 0.0501165, 0.567756, 0.373932], rtol=0, atol=1e-12)
    unpruned = TreeBestOfN(2, 2, 2, (1,))
    assert T2.outcomes.mean_reward(unpruned.tree_law(T2)) == pytest.approx(2.154906, abs=1e-12)
    assert T2.outcomes.mean_reward(T2.outcomes.best_of(4)) == pytest.approx(2.25585182, abs=1e-12)
    assert unpruned.spending(2).tokens == 0.75 * 4 * 2


def test_limits():
    exactly = {"rtol": 0, "atol": 1e-14}
    for n in (2, 6):
        np.testing.assert_allclose(TreeBestOfN(n, n, 1, (1,)).tree_law(T2), T2.outcomes.best_of(n), **exactly)
        first = Outcomes(T2.probs, T2.partial).best_of(n)
        then = np.stack([Outcomes(p, r).best_of(n) for p, r in zip(T2.children, T2.rewards, strict=True)])
        np.testing.assert_allclose(TreeBestOfN(n, 1, n, (1,)).tree_law(T2), (first[:, None] * then).ravel(), **exactly)
        half = TreeBestOfN(n, n // 2, 1, (1,)).tree_law(T2)
        np.testing.assert_allclose(half, SpeculativeRejection(n, (1,)).tree_law(T2), **exactly)


def test_what_it_keeps_has_its_law():
    for rule in (TreeBestOfN(4, 2, 2, (1,)), TreeBestOfN(3, 1, 3, (1,))):
        assert chisquare(played(rule, T2, 20_000, 1), 20_000 * rule.tree_law(T2)).pvalue > 0.01


def test_who_goes_on():
    scores = np.array([[0.0, 3, 1, 2], [5, 5, 5, 5]])
    going = TreeBestOfN(4, 2, 3, (7,)).go_on(scores, np.zeros_like(scores), np.random.default_rng(0))
    np.testing.assert_array_equal(going[0], [1, 1, 1, 3, 3, 3])
    assert going.shape == (2, 6)
    assert len(set(going[1])) == 2


def test_what_it_takes():
    spent = TreeBestOfN(8, 2, 4, (10, 30)).spending(50)
    assert (spent.tokens, spent.calls) == (8 * 50, 8 * 3)
    assert TreeBestOfN(8, 2, 2, (10, 30)).spending(50).tokens == 8 * 10 + 4 * 40


def test_it_is_in_the_table_and_does_not_choose_among_draws():
    rule = make_rule("tree", n=4, survivors=2, children=2, checkpoints=(4,))
    assert rule == TreeBestOfN(4, 2, 2, (4,))
    with pytest.raises(ValueError, match="rule is TreeBestOfN, which cannot choose among responses that were drawn"):
        choose_in_groups(rule, np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"survivors": 5}, "survivors is 5; it must be a whole number from 1 to 4"),
        ({"children": 0.5}, "children is 0.5"),
        ({"checkpoints": (4, 4)}, r"checkpoints is \(4, 4\); numbers of tokens must ascend"),
        ({"checkpoints": (0,)}, r"checkpoints\[0\] is 0"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        TreeBestOfN(**({"n": 4, "survivors": 2, "children": 2, "checkpoints": (4,)} | bad))
    with pytest.raises(ValueError, match=r"checkpoints is \(4, 8\); the law on a tree is that of one"):
        TreeBestOfN(4, 2, 2, (4, 8)).tree_law(T2)
    with pytest.raises(ValueError, match="length is 4"):
        TreeBestOfN(4, 2, 2, (4,)).spending(4)
