"""BoN regression against best-of-n: where it ends whatever is learned from, its normalisation, its targets."""

from typing import get_args

import numpy as np
import pytest
import torch
from five_responses import MODEL, ONE, TIED, TWO, exact_gradient, minus_kl, tables, tensor
from scipy.optimize import minimize
from scipy.special import softmax

from bonlib.cdf import EmpiricalCdf
from bonlib.exact import Outcomes
from bonlib.methods.bon_regression import BonRegression, Sampling, bon_regression_loss, log_ratios_to_best_of_n
from bonlib.methods.bon_sft import BonSft

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])
MODELS = pytest.mark.parametrize("model", [MODEL, TIED, W], ids=["no ties", "ties", "W"])


LAWS = get_args(Sampling)
TOLD = [(BonRegression(4, law, weight), None) for law in LAWS for weight in (0.0, 1.0)]
OTHERS = [np.full(5, 0.2), np.random.default_rng(0).dirichlet(np.ones(5))]  # what the squares may be summed by


@MODELS
@pytest.mark.parametrize(("method", "chances"), [*TOLD, *((BonRegression(4, "best", 0), law) for law in OTHERS)])
def test_the_minimum_is_best_of_n_whatever_is_learned_from(model, method, chances):
    own, log_ratios = method.known(model)
    weights = tensor(own if chances is None else chances)

    def loss(logits):
        mine = tensor(logits).requires_grad_()
        both = mine.log_softmax(0)[:, None], tensor(model.log_probs)[:, None]
        value = weights @ method.loss(*both, tensor(log_ratios))
        (gradient,) = torch.autograd.grad(value, mine)
        return value.item(), gradient.numpy()

    found = minimize(loss, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-12})
    assert found.fun == pytest.approx(-method.likelihood * model.best_of(4) @ model.log_best_of(4), abs=1e-14)
    np.testing.assert_allclose(softmax(found.x), model.best_of(4), atol=1e-7 if method.likelihood else 1e-8)


@MODELS
@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_nothing_is_left_to_normalise(model, n):
    _, log_ratios = BonRegression(n).known(model)
    assert model.probs @ np.exp(log_ratios) == pytest.approx(1, abs=1e-14)


@MODELS
def test_on_draws_of_the_policy_the_gradient_is_twice_that_of_vbons_j(model):
    logits, log_target = tensor(np.random.default_rng(1).normal(size=5)), tensor(model.log_best_of(4))
    _, log_ratios = BonRegression(4).known(model)
    chances, (log_ref, *_) = logits.softmax(0), tables(model)
    mean_loss = exact_gradient(lambda log_q: chances @ bon_regression_loss(log_q, log_ref, tensor(log_ratios)), logits)
    torch.testing.assert_close(mean_loss, -2 * exact_gradient(lambda log_q: minus_kl(log_q, log_target), logits))


def test_targets_have_the_posterior_mean_of_log_f_among_the_other_draws():
    rewards = np.random.default_rng(0).normal(size=(3, 20))
    found = log_ratios_to_best_of_n(rewards, 8)
    for row, mine in zip(rewards, found, strict=True):
        log_cdf = [float(EmpiricalCdf(np.delete(row, i)).log_strict(row[i])) for i in range(20)]
        np.testing.assert_allclose(mine, np.log(8) + 7 * np.array(log_cdf), atol=1e-12)


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["no ties", "ties"])
def test_targets_of_many_draws_are_the_truth(model):
    drawn = np.random.default_rng(0).choice(5, 200_000, p=model.probs)
    _, want = BonRegression(4).known(model)
    np.testing.assert_allclose(log_ratios_to_best_of_n(model.rewards[drawn][None], 4)[0], want[drawn], atol=0.05)


def test_targets_are_finite_for_large_n_and_0_for_n_1():
    rewards = np.arange(512.0)[None]
    assert np.isfinite(log_ratios_to_best_of_n(rewards, 512)).all()
    np.testing.assert_allclose(log_ratios_to_best_of_n(rewards, 1), 0, atol=1e-12)
    np.testing.assert_allclose(log_ratios_to_best_of_n(0 * rewards, 8), np.log(8 * _mean_ratio(512, 8)), atol=1e-12)


def _mean_ratio(m, n):
    from scipy.special import digamma

    return np.exp((n - 1) * (digamma(np.arange(1, m + 1)) - digamma(m + 1))).mean()


def test_draws_come_by_their_chance_to_be_the_best_and_half_of_the_time_alike():
    rewards = np.array([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 5.0]])
    prompts, draws, weights, targets = BonRegression(2, "half").examples(rewards, seed=0)
    assert prompts.tolist() == [0] * 4 + [1] * 4
    assert draws[:, 0].tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(weights[:4], np.array([3 / 6, 1 / 12, 2 / 6, 1 / 12]) / 2 + 1 / 8)
    assert targets[0] == targets[:4].max()
    assert BonRegression(2, "reference").examples(rewards, seed=0).weights.tolist() == [0.25] * 8
    best, alone = (method.examples(rewards[:1], seed=0) for method in (BonRegression(2), BonSft(2, "weights")))
    assert best.draws.tolist() == alone.draws.tolist()  # those of the likelihood alone
    assert best.weights.tolist() == alone.weights.tolist()


WRONG = {
    "log_ratios has shape": lambda: bon_regression_loss(ONE, ONE, TWO),
    "log_ratios holds a number that is not finite": lambda: bon_regression_loss(ONE, ONE, ONE * np.inf),
    "log_probs holds 1": lambda: bon_regression_loss(-ONE, ONE, ONE),
    "n is 2.5": lambda: BonRegression(2.5),
    "likelihood is -1": lambda: BonRegression(2, likelihood=-1),
    "sampling is 'all'": lambda: BonRegression(2, "all"),
    "targets is None": lambda: BonRegression(2).loss(ONE[:, None], ONE[:, None]),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
