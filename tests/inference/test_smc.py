"""Sequential Monte Carlo keeps what its law on a tree says, and its estimate of Z is unbiased whatever its twist."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare
from small_trees import T2, counted, played

from bonlib.exact import kl_divergence
from bonlib.inference.rules import TooManyOutcomesError
from bonlib.inference.smc import SequentialMonteCarlo, best_twist, blockwise_soft_law
from bonlib.inference.soft_best_of_n import SoftBestOfN
from bonlib.inference.trees import Tree

TWISTS = [None, best_twist(T2, 0.8), -T2.partial, np.zeros(3)]


def enumerated(tree, n, temperature, log_twist):
    """The law of what is kept and E[Ẑ 1(it is kept)], case by case."""
    psi, w = np.exp(log_twist), np.exp(tree.rewards / temperature)
    kept, estimated = np.zeros(tree.children.shape), np.zeros(tree.children.shape)
    for drawn in product(range(len(psi)), repeat=n):
        drawn = list(drawn)
        for places, chance in counted(
            (sorted(on), psi[list(on)].prod() / psi[drawn].sum() ** n) for on in product(drawn, repeat=n)
        ).items():
            for ends in product(range(tree.children.shape[1]), repeat=n):
                cells = list(places), list(ends)
                case = tree.probs[drawn].prod() * chance * tree.children[cells].prod()
                weights = w[cells] / psi[list(places)]
                np.add.at(kept, cells, case * weights / weights.sum())
                np.add.at(estimated, cells, case * psi[drawn].mean() * weights / n)
    return kept.ravel(), estimated.ravel()


@pytest.mark.parametrize("log_twist", TWISTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_its_law_is_that_of_all_cases(n, log_twist):
    law = SequentialMonteCarlo(n, 0.8, (1,)).tree_law(T2, log_twist)
    kept, estimated = enumerated(T2, n, 0.8, T2.partial / 0.8 if log_twist is None else log_twist)
    np.testing.assert_allclose(law.kept, kept, rtol=0, atol=1e-13)
    np.testing.assert_allclose(law.estimated, estimated, rtol=0, atol=1e-12)


@pytest.mark.parametrize("log_twist", TWISTS)
@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_estimate_is_unbiased_whatever_the_twist(n, log_twist):
    z = T2.outcomes.probs @ np.exp(T2.outcomes.rewards / 0.8)
    estimated = SequentialMonteCarlo(n, 0.8, (1,)).tree_law(T2, log_twist).estimated
    np.testing.assert_allclose(estimated, z * T2.outcomes.tilt(0.8), rtol=1e-13)


def test_golden_numbers():
    law = SequentialMonteCarlo(2, 1, (1,)).tree_law(T2, best_twist(T2, 1))
    expected = [0.365836549674, 0.398805346246, 0.23535810408]
    np.testing.assert_allclose(law.kept.reshape(T2.children.shape).sum(axis=1), expected, rtol=0, atol=1e-12)
    assert law.estimated.sum() == pytest.approx(5.825831629603, abs=1e-12)
    tilt = [0.239733650568, 0.528534609889, 0.231731739542]
    np.testing.assert_allclose(T2.outcomes.tilt(1).reshape(T2.children.shape).sum(axis=1), tilt, rtol=0, atol=1e-12)


def test_limits():
    exactly = {"rtol": 0, "atol": 1e-13}
    alone = SequentialMonteCarlo(1, 0.5, (1,))
    np.testing.assert_allclose(alone.tree_law(T2).kept, T2.outcomes.probs, **exactly)
    np.testing.assert_allclose(blockwise_soft_law(T2, 1, 0.5, np.zeros(3)), T2.outcomes.probs, **exactly)
    # Beginnings of one kind leave nothing to resample.
    sure = Tree([1.0], [0.0], [[0.5, 0.3, 0.2]], [[0, 1, 2]])
    law = SequentialMonteCarlo(3, 0.7, (1,)).tree_law(sure).kept
    np.testing.assert_allclose(law, SoftBestOfN(3, 0.7).law(sure.outcomes), **exactly)


def test_with_the_best_twist_the_blockwise_form_tends_to_the_tilt():
    tilt, twist = T2.outcomes.tilt(1), best_twist(T2, 1)
    kl = [kl_divergence(tilt, blockwise_soft_law(T2, n, 1, twist)) for n in (50, 500, 5000)]
    assert kl[2] < 2e-8
    np.testing.assert_allclose(np.divide(kl[:2], kl[1:]), 100, rtol=0.1)
    assert kl_divergence(tilt, blockwise_soft_law(T2, 5000, 1, T2.partial)) > 0.01


def test_the_kl_of_the_blockwise_form_is_the_sum_over_its_blocks():
    law = blockwise_soft_law(T2, 4, 0.6, T2.partial / 0.6)
    first = law.reshape(T2.children.shape).sum(axis=1)
    rest = law.reshape(3, 3) / first[:, None]
    parts = [kl_divergence(p, q) for p, q in zip(rest, T2.children, strict=True)]
    assert kl_divergence(law, T2.outcomes.probs) == pytest.approx(kl_divergence(first, T2.probs) + first @ parts)


def test_a_bad_twist_is_worse_than_none():
    tilt = T2.outcomes.tilt(1)
    good, bad = (
        kl_divergence(tilt, SequentialMonteCarlo(3, 1, (1,)).tree_law(T2, sign * best_twist(T2, 1)).kept)
        for sign in (1, -1)
    )
    assert good < kl_divergence(tilt, SoftBestOfN(3, 1).law(T2.outcomes)) < bad


def test_what_it_keeps_has_its_law():
    for twist in (1, -0.5):
        rule = SequentialMonteCarlo(3, 0.7, (1,), twist=twist)
        assert chisquare(played(rule, T2, 20_000, 2), 20_000 * rule.tree_law(T2).kept).pvalue > 0.01
    draws = np.random.default_rng(0).choice(9, p=T2.outcomes.probs, size=(20_000, 3))
    rewards = T2.outcomes.rewards[draws]
    kept = SequentialMonteCarlo(3, 0.7, ()).pick(rewards, 0 * rewards, np.random.default_rng(1))
    counts = np.bincount(np.take_along_axis(draws, kept[:, None], axis=1)[:, 0], minlength=9)
    assert chisquare(counts, 20_000 * SoftBestOfN(3, 0.7).law(T2.outcomes)).pvalue > 0.01
    blockwise = SequentialMonteCarlo(3, 0.7, (1,), survivors=1)
    law = blockwise_soft_law(T2, 3, 0.7, T2.partial / 0.7)
    assert chisquare(played(blockwise, T2, 20_000, 3), 20_000 * law).pvalue > 0.01


def test_who_goes_on():
    scores = np.array([[0.0, 1e6, 0, 0], [7, 7, 7, 7]])
    none, lots = np.zeros_like(scores), np.random.default_rng(0)
    np.testing.assert_array_equal(SequentialMonteCarlo(4, 1, (1,)).go_on(scores, none, lots)[0], [1, 1, 1, 1])
    # What it has grown by counts, not where it is.
    np.testing.assert_array_equal(SequentialMonteCarlo(4, 1, (1,)).pick(scores, scores - [0, 0, 1e4, 0], lots), [2, 2])
    halves = SequentialMonteCarlo(4, 1, (1,), survivors=2).go_on(scores, none, lots)
    np.testing.assert_array_equal(halves[:, ::2], halves[:, 1::2])


def test_a_large_twist_cancels():
    law = SequentialMonteCarlo(2, 1, (1,)).tree_law(T2.judged_by(T2.partial + 1e6))
    usual = SequentialMonteCarlo(2, 1, (1,)).tree_law(T2)
    np.testing.assert_allclose(law.kept, usual.kept, rtol=0, atol=1e-9)
    np.testing.assert_allclose(law.estimated, usual.estimated, rtol=1e-9)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 1.5}, "n is 1.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"twist": np.nan}, "twist is nan"),
        ({"survivors": 3}, "survivors is 3; it must divide n, 4"),
        ({"checkpoints": (3, 1)}, r"checkpoints is \(3, 1\)"),
    ],
)
def test_bad_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        SequentialMonteCarlo(**({"n": 4, "temperature": 1, "checkpoints": (1,)} | bad))
    rule = SequentialMonteCarlo(4, 1, (1,))
    with pytest.raises(ValueError, match="log_twist has shape"):
        rule.tree_law(T2, [0, 1])
    with pytest.raises(ValueError, match="survivors is 2; the law is that of n"):
        SequentialMonteCarlo(4, 1, (1,), survivors=2).tree_law(T2)
    with pytest.raises(
        TooManyOutcomesError, match="3 different ones, on which 300 draws fall in more than 20,000 ways"
    ):
        SequentialMonteCarlo(300, 1, (1,)).tree_law(T2)
