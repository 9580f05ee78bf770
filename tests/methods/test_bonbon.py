"""BoNBoN against quadrature, full enumeration and the two losses that it is made of."""

from itertools import combinations, product
from math import comb

import mpmath
import numpy as np
import pytest
import torch
from five_responses import LOG_REF, MODEL, ONE, TWO, has_no_gradient, tensor
from hypothesis import given
from hypothesis import strategies as st

from bonlib.methods.bon_sft import nll
from bonlib.methods.bonbon import Bonbon, bonbon_loss, bonbon_target, lowest_beside
from bonlib.methods.dpo import ipo_loss

LOG_PROB = st.floats(-50, 0)
PAIR = st.tuples(LOG_PROB, LOG_PROB, LOG_PROB, LOG_PROB)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_bonbon_target_is_the_exact_mean_over_best_and_worst(n):
    def density(u):
        return n * u ** (n - 1)

    best = mpmath.quad(lambda u: density(u) * mpmath.log(density(u)), [0, 0.5, 1])
    worst = mpmath.quad(lambda u: density(1 - u) * mpmath.log(density(u)), [0, 0.5, 1])
    assert bonbon_target(n) == pytest.approx(float(best - worst), abs=1e-9)


def best_and_worst(model, n):
    """How likely each pair of outcomes is the best and the worst of n draws, shape (K, K)."""
    table = np.zeros((len(model), len(model)))
    for draws in product(range(len(model)), repeat=n):
        best, worst = max(draws, key=model.rewards.__getitem__), min(draws, key=model.rewards.__getitem__)
        table[best, worst] += np.prod(model.probs[list(draws)])
    return tensor(table)


def mean_bonbon(log_q, n, sft_weight):
    table = best_and_worst(MODEL, n)
    best, worst = (index.flatten() for index in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    loss = bonbon_loss(log_q[best], log_q[worst], LOG_REF[best], LOG_REF[worst], n=n, sft_weight=sft_weight)
    return (table.flatten() * loss).sum()


@pytest.mark.parametrize(
    ("n", "sft_weight", "optimum"),
    [(2, 1, MODEL.best_of(2)), (4, 1, MODEL.best_of(4)), (2, 0, MODEL.tilt(0.5, "calibrated"))],
)
def test_the_optima_of_bonbons_two_terms(n, sft_weight, optimum):
    has_no_gradient(lambda log_q: mean_bonbon(log_q, n, sft_weight), optimum)


def test_best_of_n_is_not_the_optimum_of_bonbons_square():
    logits = tensor(MODEL.log_best_of(4)).requires_grad_()
    mean_bonbon(logits.log_softmax(0), 4, 0).backward()
    assert logits.grad.abs().max() > 0.01


@given(PAIR, st.integers(1, 30), st.floats(0, 1))
def test_bonbon_is_a_weighted_mean_of_likelihood_and_ipo(pair, n, weight):
    tensors = [tensor([x]) for x in pair]
    target = bonbon_target(n)
    square = ipo_loss(*tensors, beta=1 / (2 * target)) if n > 1 else bonbon_loss(*tensors, n=1, sft_weight=0)
    want = weight * nll(tensors[0]) + (1 - weight) * square
    torch.testing.assert_close(bonbon_loss(*tensors, n=n, sft_weight=weight), want)


def test_bonbon_learns_from_best_and_worst_of_the_same_draws():
    rewards = np.array([[3.0, 1.0, 2.0, 5.0, 9.0, 7.0]])
    prompts, pairs, *_ = Bonbon(3, picks="groups").examples(rewards, seed=0)
    assert pairs.tolist() == [[0, 1], [4, 3]]
    assert prompts.tolist() == [0, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_each_draw_has_the_worst_of_n_of_which_it_is_the_best(n):
    rewards = np.array([1.0, 3.0, 0.0, 1.0, 2.0, 1.0])
    want = np.zeros((6, 6))
    for subset in combinations(range(6), n):
        values = rewards[list(subset)]
        for best, worst in product(np.array(subset)[values == values.max()], np.array(subset)[values == values.min()]):
            want[best, worst if values.min() < values.max() else best] += (
                1 / ((values == values.max()).sum()) / ((values == values.min()).sum())
            )
    want /= comb(6, n)
    rng, count = np.random.default_rng(0), 4000
    drawn = np.stack([lowest_beside(rewards, n, rng) for _ in range(count)])
    seen = np.stack([np.bincount(column, minlength=6) / count for column in drawn.T])
    prompts, pairs, weights, _ = Bonbon(n, picks="weights").examples(rewards[None], seed=0)
    np.testing.assert_allclose(np.bincount(pairs[:, 0], weights, minlength=6), want.sum(axis=1), atol=1e-14)
    assert not prompts.any()
    np.testing.assert_allclose(seen * want.sum(axis=1, keepdims=True), want, atol=0.012)


def test_the_weight_that_is_not_given_makes_both_terms_equal_at_the_reference():
    best, worst = tensor([-3.0, -5.0]), tensor([-4.0, -2.0])
    method = Bonbon(4).balanced(best)
    gap = bonbon_target(4) ** 2
    assert method.sft_weight * 4.0 == pytest.approx((1 - method.sft_weight) * gap)
    both = torch.stack([best, worst], dim=1)
    assert float(method.loss(both, both).mean()) == pytest.approx(2 * method.sft_weight * 4.0)
    assert Bonbon(4, 0.3).balanced(best) == Bonbon(4, 0.3)
    assert Bonbon(4).balanced(best, [3.0, 1.0]) == Bonbon(4).balanced([-3.0, -3.0, -3.0, -5.0])


WRONG = {
    r"worst has shape": lambda: bonbon_loss(ONE, TWO, ONE, ONE, n=2, sft_weight=0.5),
    r"sft_weight is 1.5": lambda: bonbon_loss(ONE, ONE, ONE, ONE, n=2, sft_weight=1.5),
    r"sft_weight is None": lambda: Bonbon(4).loss(torch.zeros(1, 2), torch.zeros(1, 2)),
    r"n is 0; .* whole number": lambda: bonbon_loss(ONE, ONE, ONE, ONE, n=0, sft_weight=0.5),
    r"n is 2.5": lambda: bonbon_target(2.5),
    r"n is nan": lambda: bonbon_target(float("nan")),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
