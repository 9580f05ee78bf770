"""A policy of five responses, on which every objective can be summed, and what its optimum must be like."""

import numpy as np
import pytest
import torch

from bonlib.exact import Outcomes
from bonlib.training.gradients import reinforce_loss

MODEL, N = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 1.0, 2.0, 4.0]), 4
TIED = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 3.0, 2.0, 0.0])


def tensor(values):
    with np.errstate(divide="ignore"):
        return torch.tensor(np.asarray(values), dtype=torch.float64)


def tables(model):
    """Return log π, log F≤ and log F of the five."""
    with np.errstate(divide="ignore"):
        return tensor(model.log_probs), tensor(model.log_cdf), tensor(np.log(model.strict_cdf))


LOG_REF, LOG_CDF, LOG_STRICT = tables(MODEL)
ONE, TWO = -torch.ones(1), -torch.ones(2)  # log-probabilities, where any will do


def all_have_one_return(returns, optimum):
    values = returns(tensor(np.log(optimum)))
    assert values.shape == (5,)
    assert float(values.max() - values.min()) < 1e-9


def no_rival_has_more(returns, optimum):
    rng = np.random.default_rng(0)
    best = optimum @ returns(tensor(np.log(optimum))).numpy()
    for _ in range(100):
        rival = optimum * np.exp(rng.normal(scale=0.3, size=5))
        rival /= rival.sum()
        assert rival @ returns(tensor(np.log(rival))).numpy() <= best + 1e-12


def all_tuples(size, group, log_q):
    """Return the tuples of `group` draws of so many outcomes, as one row of indices, and the chance of each tuple."""
    tuples = torch.cartesian_prod(*[torch.arange(size)] * group).view(-1, group)
    return tuples.flatten(), log_q.detach()[tuples].sum(1).exp()


def mean_gradient(advantages, log_ref, group, logits=None):
    """The mean over all tuples of what REINFORCE ascends, in logits, those of log π if none are given.

    `advantages` takes log πθ, log π and the places of the tuples' responses.
    """
    logits = (log_ref if logits is None else logits).clone().requires_grad_()
    log_q = logits.log_softmax(0)
    drawn, chances = all_tuples(len(log_q), group, log_q)
    mine = log_q[drawn]
    losses = reinforce_loss(mine, advantages(mine.detach(), log_ref[drawn], drawn)).view(-1, group).mean(1)
    (gradient,) = torch.autograd.grad(-(chances * losses).sum(), logits)
    return gradient


def exact_gradient(objective, logits):
    """The gradient of an objective of log πθ in logits."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(logits.log_softmax(0)), logits)
    return gradient


def minus_kl(log_q, log_target):
    return -(log_q.exp() * (log_q - log_target)).sum()


def reinforce_descends(returns, objective):
    """The policy gradient by a return, summed over the five, is that of the objective."""
    logits = tensor(np.random.default_rng(0).normal(size=5)).requires_grad_()
    (exact,) = torch.autograd.grad(-objective(logits.log_softmax(0)), logits)
    log_q = logits.log_softmax(0)
    mean_loss = (log_q.detach().exp() * reinforce_loss(log_q, returns(log_q))).sum()
    (enumerated,) = torch.autograd.grad(mean_loss, logits)
    torch.testing.assert_close(enumerated, exact)


def has_no_gradient(loss, optimum):
    """A loss of log πθ of the five is stationary at its optimum."""
    logits = tensor(np.log(optimum)).requires_grad_()
    loss(logits.log_softmax(0)).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def refuses(message, call):
    with pytest.raises(ValueError, match=message):
        call()
