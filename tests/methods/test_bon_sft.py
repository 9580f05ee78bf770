"""BoN-SFT against full enumeration, with the best of groups and with weights."""

from itertools import product
from math import comb

import numpy as np
import pytest
from five_responses import MODEL, ONE, N, has_no_gradient, tensor

from bonlib.exact import Outcomes
from bonlib.methods.bon_sft import BonSft, nll


def test_nll_and_the_forward_divergence_have_best_of_n_as_optimum():
    target = tensor(MODEL.best_of(N))
    has_no_gradient(lambda log_q: (target * nll(log_q)).sum(), MODEL.best_of(N))


def test_it_learns_from_the_best_of_every_n_draws():
    prompts, best, *_ = BonSft(3, "groups").examples(np.array([[3.0, 1.0, 2.0, 5.0, 9.0, 7.0], [0.0] * 6]), seed=0)
    assert prompts.tolist() == [0, 0, 1, 1]
    assert best[:2].tolist() == [[0], [4]]


W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])


def mean_examples(method, draws):
    """What is learned from each row of draws of W, as shares of its five outcomes."""
    prompts, places, weights, _ = method.examples(W.rewards[draws], seed=0)
    shares = np.zeros((len(draws), 5))
    np.add.at(shares, (prompts, draws[prompts, places[:, 0]]), 1 if weights is None else weights)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("picks", ["groups", "weights"])
@pytest.mark.parametrize(("m", "n"), [(4, 1), (4, 2), (5, 3), (4, 4)])
def test_what_is_learned_is_on_average_best_of_n(picks, m, n):
    draws = np.array(list(product(range(5), repeat=m)))  # the gradient in the logits is πθ less what is learned
    mean = W.probs[draws].prod(axis=1) @ mean_examples(BonSft(n, picks), draws)
    np.testing.assert_allclose(mean, W.best_of(n), atol=1e-14)


def test_the_variance_of_both_and_its_formula():
    m, n = 6, 3
    draws = np.array(list(product(range(5), repeat=m)))
    chance, found = W.probs[draws].prod(axis=1), []
    for picks in ("weights", "groups"):
        shares = mean_examples(BonSft(n, picks), draws)
        found.append(chance @ ((shares - W.best_of(n)) ** 2).sum(axis=1))
    assert found == pytest.approx([0.271144382813, 0.376289296875], abs=1e-12)
    triples = np.array(list(product(range(5), repeat=n)))
    chance, kernel = W.probs[triples].prod(axis=1), mean_examples(BonSft(n, "weights"), triples)  # ties shared
    total = 0.0
    for known in range(1, n + 1):  # ζ, the variance of the kernel's mean given its first draws
        _, group = np.unique(triples[:, :known], axis=0, return_inverse=True)
        mass = np.bincount(group, chance)
        given = np.stack([np.bincount(group, chance * column) for column in kernel.T], axis=1) / mass[:, None]
        zeta = mass @ ((given - W.best_of(n)) ** 2).sum(axis=1)
        total += comb(n, known) * comb(m - n, n - known) / comb(m, n) * zeta
    assert found[0] == pytest.approx(total, abs=1e-14)


WRONG = {
    "picks is 'all'": lambda: BonSft(2, "all"),
    r"log_probs holds 1; a log-probability": lambda: nll(-ONE),
    r"log_probs has shape \(1, 1\)": lambda: nll(ONE[None]),
    r"n is 2.5; the number of draws": lambda: BonSft(2.5),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
