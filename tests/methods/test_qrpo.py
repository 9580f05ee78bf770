"""QRPO against enumeration: its partition function, and where it ends with ties and without."""

import numpy as np
import pytest
import torch
from five_responses import ONE, TIED, TWO, exact_gradient, minus_kl, tensor
from scipy.optimize import minimize
from scipy.special import softmax

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference.draw_counts import TruncatedPoisson
from bonlib.methods.qrpo import Qrpo, log_partition, qrpo_loss

W = Outcomes([0.30, 0.25, 0.20, 0.15, 0.10], [0, 1, 1, 2, 3])


def end(method, outcomes, chances):
    _, rewards = method.known(outcomes)
    log_ref = tensor(outcomes.log_probs)

    def loss(logits):
        mine = tensor(logits).requires_grad_()
        value = tensor(chances) @ method.loss(mine.log_softmax(0)[:, None], log_ref[:, None], tensor(rewards))
        (gradient,) = torch.autograd.grad(value, mine)
        return value.item(), gradient.numpy()

    found = minimize(loss, outcomes.log_probs, jac=True, method="BFGS", options={"gtol": 1e-12})
    return softmax(found.x), found.fun


def test_the_tilt_by_the_weak_cdf_and_three_partition_functions():
    tilt, z = W.probs * np.exp(W.cdf / 0.5), W.probs @ np.exp(W.cdf / 0.5)
    want = [0.129849953373, 0.26614945775, 0.2129195662, 0.215558513805, 0.175522508871]
    np.testing.assert_allclose(tilt / z, want, atol=1e-12)
    assert z == pytest.approx(4.209748451324, abs=1e-12)
    assert np.exp(log_partition(0.5)) == pytest.approx(3.194528049465, abs=1e-12)
    assert 0.5 * np.exp(1 / 0.5) == pytest.approx(3.694528049465, abs=1e-12)  # as in the authors' code
    assert log_partition(1e-3) == pytest.approx(1000 + np.log(1e-3))


@pytest.mark.parametrize("beta", [0.2, 0.5, 2.0])
@pytest.mark.parametrize("outcomes", [W, TIED], ids=["W", "ties"])
def test_lifted_rewards_end_at_the_best_of_a_poisson_number_whatever_is_learned_from(beta, outcomes):
    for chances in (outcomes.probs, np.full(5, 0.2)):
        found, loss = end(Qrpo(beta, lifted=True), outcomes, chances)
        assert loss < 1e-16
        np.testing.assert_allclose(found, TruncatedPoisson(1 / beta).law(outcomes), atol=1e-7)


def test_with_mass_in_ties_the_draws_decide_where_the_weak_cdf_ends():
    tilt = softmax(W.log_probs + W.cdf / 0.3)
    away = [kl_divergence(end(Qrpo(0.3), W, chances)[0], tilt) for chances in (W.probs, np.full(5, 0.2))]
    assert away == pytest.approx([0.0093, 0.0028], abs=5e-5)


def test_on_draws_of_the_policy_the_gradient_is_that_of_the_kl_whatever_z():
    logits, beta = tensor(np.random.default_rng(1).normal(size=5)), 0.3
    rewards, log_ref, chances = tensor(W.cdf), tensor(W.log_probs), logits.softmax(0)
    found = exact_gradient(lambda log_q: chances @ qrpo_loss(log_q, log_ref, rewards, beta=beta), logits)
    kl = exact_gradient(lambda log_q: -minus_kl(log_q, log_ref + rewards / beta), logits)
    torch.testing.assert_close(found, 2 * beta**2 * kl)


def test_quantiles_are_counted_on_the_other_draws():
    prompts, draws, weights, targets = Qrpo(0.3).examples(np.array([[3.0, 1.0, 2.0, 1.0]]), seed=0)
    assert targets.tolist() == pytest.approx([1, 1 / 3, 2 / 3, 1 / 3])
    assert (prompts.tolist(), draws[:, 0].tolist(), weights) == ([0] * 4, [0, 1, 2, 3], None)
    lifted = Qrpo(0.3, lifted=True).examples(np.array([[3.0, 1.0, 2.0, 1.0]]), seed=0).targets
    both = 0.3 * np.log(0.3 * (np.exp(1 / 0.9) - 1) * 3)
    assert lifted.tolist() == pytest.approx([1, both, 2 / 3, both])


WRONG = {
    "rewards has shape": lambda: qrpo_loss(ONE, ONE, TWO, beta=1),
    "beta is 0": lambda: qrpo_loss(ONE, ONE, ONE, beta=0),
    "beta is -1": lambda: Qrpo(-1),
    "lifted is 2": lambda: Qrpo(1.0, 2),
    "targets is None": lambda: Qrpo(1.0).loss(ONE[:, None], ONE[:, None]),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
