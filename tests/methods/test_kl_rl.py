"""KL-regularised reinforcement learning against full enumeration."""

import numpy as np
import pytest
import torch
from five_responses import (
    LOG_REF,
    MODEL,
    TWO,
    all_have_one_return,
    minus_kl,
    no_rival_has_more,
    reinforce_descends,
    tensor,
)

from bonlib.methods.kl_rl import KlRl, kl_rl_return

REWARDS = tensor(MODEL.rewards)


def returns(log_q):
    return kl_rl_return(log_q, LOG_REF, REWARDS, beta=0.7)


def test_at_the_stated_optimum_every_response_has_the_same_return():
    all_have_one_return(returns, MODEL.tilt(0.7))


def test_no_other_policy_has_a_larger_expected_return():
    no_rival_has_more(returns, MODEL.tilt(0.7))


def test_reinforce_descends_the_exact_gradient_of_the_objective():
    reinforce_descends(returns, lambda log_q: (log_q.exp() * REWARDS).sum() + 0.7 * minus_kl(log_q, LOG_REF))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rewards has shape"):
        kl_rl_return(TWO, TWO, torch.zeros(3), beta=0.1)
    with pytest.raises(ValueError, match="rewards holds NaN"):
        kl_rl_return(TWO, TWO, TWO * torch.nan, beta=0.1)
    for beta in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="beta is"):
            kl_rl_return(TWO, TWO, TWO, beta=beta)
    with pytest.raises(ValueError, match="rewards holds a number that is not finite"):
        kl_rl_return(TWO, TWO, TWO * torch.inf, beta=1)
    with pytest.raises(ValueError, match="beta is 0"):
        KlRl(0)
