"""Trees are what was listed, and the best of those that go on has the law that going through all cases gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from small_trees import T2, by_reward, enumerated

from bonlib.exact import Outcomes
from bonlib.inference.trees import Tree, survivors_law


@pytest.mark.parametrize("ties", ["exact", "cut"])
@pytest.mark.parametrize(("n", "survivors"), [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (4, 2), (4, 3)])
def test_the_law_of_survivors_is_that_of_all_cases(n, survivors, ties):
    np.testing.assert_allclose(
        survivors_law(T2, n, survivors, ties), enumerated(T2, n, survivors, ties), rtol=0, atol=1e-14
    )


probabilities = st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any).map(lambda x: np.array(x) / sum(x))
levels = st.lists(st.integers(0, 2), min_size=3, max_size=3)


@given(
    probabilities, levels, st.tuples(*[probabilities] * 3), st.tuples(*[levels] * 3), st.integers(1, 3),
    st.sampled_from(["exact", "cut"]),
)  # fmt: skip
@settings(max_examples=40)
def test_so_it_is_on_any_tree(probs, partial, children, rewards, survivors, ties):
    tree = Tree(probs, partial, children, rewards)
    np.testing.assert_allclose(
        survivors_law(tree, 3, survivors, ties), enumerated(tree, 3, survivors, ties), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("n", [2, 5, 64])
def test_limits_of_the_law_of_survivors(n):
    best = T2.outcomes.best_of
    exactly = {"rtol": 0, "atol": 1e-13}
    for ties in ("exact", "cut"):
        np.testing.assert_allclose(survivors_law(T2, n, n, ties), best(n), **exactly)
        known = Tree(T2.probs, [3, 1, 2], T2.children, np.repeat([[4.0], [0.0], [1.0]], 3, axis=1))
        for survivors in (1, n):
            law = survivors_law(known, n, survivors, ties)
            np.testing.assert_allclose(law, known.outcomes.best_of(n), **exactly)
    equal = T2.judged_by(np.ones(3))
    np.testing.assert_allclose(survivors_law(equal, n, 2, "cut"), best(n), **exactly)
    np.testing.assert_allclose(survivors_law(equal, n, 2, "exact"), best(2), **exactly)
    of_beginnings = Outcomes(T2.probs, T2.partial).best_of(n)
    law = survivors_law(T2, n, 1)
    np.testing.assert_allclose(law, (of_beginnings[:, None] * T2.children).ravel(), **exactly)


def test_the_law_of_survivors_of_many_draws_sums_to_one():
    generator = np.random.default_rng(0)
    tree = Tree(
        generator.dirichlet(np.ones(20)), generator.integers(0, 9, 20), generator.dirichlet(np.ones(7), 20),
        generator.normal(size=(20, 7)),
    )  # fmt: skip
    for ties in ("exact", "cut"):
        law = survivors_law(tree, 100, 30, ties)
        assert law.min() >= 0
        assert law.sum() == pytest.approx(1, abs=1e-12)


def test_its_views():
    np.testing.assert_allclose(T2.values, [0.7, 2.1, 1.8])
    np.testing.assert_allclose(T2.outcomes.probs.reshape(T2.children.shape).sum(axis=1), T2.probs)
    np.testing.assert_allclose(by_reward(T2.outcomes.probs), [0.27, 0.21, 0.43, 0.09])
    np.testing.assert_allclose(T2.best_children(2).children[1], [0.04, 0.45, 0.51])


def test_the_rank_correlation_is_spearmans():
    draws = np.repeat(np.arange(9), np.round(T2.outcomes.probs * 100).astype(int))
    expected = spearmanr(np.repeat(T2.partial, 3)[draws], T2.outcomes.rewards[draws]).statistic
    assert T2.rank_correlation() == pytest.approx(expected, abs=1e-12)
    assert T2.judged_by(np.zeros(3)).rank_correlation() == 0


def test_turning_takes_the_partial_reward_from_informing_to_misleading():
    turned = [T2.turned(angle) for angle in np.linspace(0, np.pi, 7)]
    np.testing.assert_allclose([tree.probs @ tree.partial for tree in turned], 0, atol=1e-14)
    np.testing.assert_allclose([tree.probs @ tree.partial**2 for tree in turned], 1)
    correlation = [np.sum(T2.probs * tree.partial * turned[0].partial) for tree in turned]
    np.testing.assert_allclose(correlation, np.cos(np.linspace(0, np.pi, 7)), atol=1e-14)
    found = [tree.rank_correlation() for tree in turned]
    assert found[0] == pytest.approx(-found[-1])
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(T2.judged_by(T2.values).rank_correlation())
    with pytest.raises(ValueError, match="nothing to turn"):
        Tree([0.5, 0.5], [0, 1], [[1.0], [1.0]], [[0.0], [1.0]]).turned(1)


def test_reward_is_lost_as_the_partial_reward_misleads():
    generator = np.random.default_rng(3)
    rewards = generator.normal(size=(40, 20)) + generator.normal(size=(40, 1))
    tree = Tree(generator.dirichlet(np.ones(40)), np.zeros(40), generator.dirichlet(np.ones(20), 40), rewards)
    turned = [tree.turned(angle) for angle in np.linspace(0, np.pi, 5)]
    found = [tree.outcomes.mean_reward(survivors_law(each, 16, 4)) for each in turned]
    best, fewer = (tree.outcomes.mean_reward(tree.outcomes.best_of(n)) for n in (16, 4))
    assert found == sorted(found, reverse=True)
    assert best > found[0] > fewer > found[-1]
    np.testing.assert_allclose(survivors_law(turned[-1], 16, 16), tree.outcomes.best_of(16), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"probs": [0.5, 0.5, 0.5]}, "probs sums to"),
        ({"partial": [0, 1]}, "partial has shape"),
        ({"children": [[1.0], [1.0]]}, "children has shape"),
        ({"children": [[0.5, 0.3, 0.1]] * 3}, r"children\[0\] sums to"),
        ({"rewards": [[0, 1], [1, 2], [0, 2]]}, "rewards has shape"),
        ({"rewards": [[0, 1, np.nan]] * 3}, "not finite"),
    ],
)
def test_bad_trees_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        Tree(**({"probs": T2.probs, "partial": T2.partial, "children": T2.children, "rewards": T2.rewards} | bad))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="survivors is 4; it must be a whole number from 1 to 3"):
        survivors_law(T2, 3, 4)
    with pytest.raises(ValueError, match="n is 0"):
        survivors_law(T2, 0, 1)
