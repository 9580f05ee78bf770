"""InfAlign-CTRL against full enumeration, and against the optimum that it stands for."""

import numpy as np
import pytest
import torch
from five_responses import (
    LOG_REF,
    MODEL,
    all_have_one_return,
    minus_kl,
    no_rival_has_more,
    reinforce_descends,
    tensor,
)
from scipy.optimize import brentq
from scipy.special import softmax

from bonlib.exact import Outcomes, kl_divergence
from bonlib.inference_aware import inference_win_rate
from bonlib.methods.infalign import InfAlignCtrl, ctrl_reward
from bonlib.methods.kl_rl import kl_rl_return
from bonlib.training.on_policy import Judged

C = tensor(MODEL.calibrated_reward)


def returns(log_q):
    return kl_rl_return(log_q, LOG_REF, ctrl_reward(C, exponent=4.0), beta=0.3)


def optimum():
    weights = MODEL.probs * np.exp(np.exp(4 * MODEL.calibrated_reward) / np.expm1(4) / 0.3)
    return weights / weights.sum()


def test_at_the_stated_optimum_every_response_has_the_same_return():
    all_have_one_return(returns, optimum())


def test_no_other_policy_has_a_larger_expected_return():
    no_rival_has_more(returns, optimum())


def test_reinforce_descends_the_exact_gradient_of_the_objective():
    rewards = ctrl_reward(C, exponent=4.0)
    reinforce_descends(returns, lambda log_q: (log_q.exp() * rewards).sum() + 0.3 * minus_kl(log_q, LOG_REF))


@pytest.mark.parametrize("exponent", [-1e4, -3.0, -1e-9, 0.0, 1e-9, 5.0, 10.0, 1e4])
def test_the_reward_goes_from_nothing_to_one(exponent):
    c = torch.linspace(0, 1, 101, dtype=torch.float64)
    got = ctrl_reward(c, exponent=exponent)
    assert got[[0, -1]].tolist() == [0, 1]
    assert bool((got.diff() >= 0).all())
    if 0.1 < abs(exponent) < 100:
        torch.testing.assert_close(got, torch.expm1(exponent * c) / np.expm1(exponent))
    elif abs(exponent) < 0.1:
        torch.testing.assert_close(got, c)


@pytest.mark.parametrize(
    ("exponent", "want"), [(10, [0.7050, 0.8145, 0.9287]), (5, [0.6988, 0.8028, 0.9149]), (0, [0.6559, 0.7470, 0.8749])]
)
def test_how_near_it_comes_to_the_optimum_at_one_kl(exponent, want):
    outcomes = Outcomes(np.full(60, 1 / 60), np.arange(60))
    rewards = ctrl_reward(tensor(outcomes.calibrated_reward), exponent=exponent).numpy()
    for kl, win_rate in zip((0.1, 0.3, 1), want, strict=True):

        def policy(log_beta):
            return softmax(rewards / np.exp(log_beta))

        found = policy(brentq(lambda x: kl_divergence(policy(x), outcomes.probs) - kl, -5, 3))  # noqa: B023
        assert inference_win_rate(outcomes, found, 4) == pytest.approx(win_rate, abs=6e-5)


class TwoSides:
    """F is 0.2 and F≤ is 0.4, whatever the response."""

    def log_strict(self, prompts, responses, rewards):
        return np.log(np.full(len(rewards), 0.2))

    def log_weak(self, prompts, responses, rewards):
        return np.log(np.full(len(rewards), 0.4))


def test_the_calibrated_reward_is_the_mean_of_both_cdfs():
    judged = Judged(["p"], ["x"], tensor([-3.0]), tensor([-2.0]), tensor([0.1]))
    got = InfAlignCtrl(0.5, exponent=10.0).returns(judged, TwoSides())
    assert float(got) == pytest.approx(np.expm1(3) / np.expm1(10) + 0.5)


WRONG = {
    "cdf is None": lambda: InfAlignCtrl(1).returns(Judged(["p"], ["x"], *[-torch.ones(1)] * 3), None),
    "calibrated holds 1.5": lambda: ctrl_reward(tensor([0.5, 1.5]), exponent=1),
    "calibrated holds NaN": lambda: ctrl_reward(tensor([np.nan]), exponent=1),
    "calibrated has shape": lambda: ctrl_reward(torch.zeros(2, 2), exponent=1),
    "exponent is inf": lambda: InfAlignCtrl(1, exponent=np.inf),
    "exponent is nan": lambda: ctrl_reward(tensor([0.5]), exponent=np.nan),
    "beta is 0": lambda: InfAlignCtrl(0),
}


@pytest.mark.parametrize("message", WRONG)
def test_bad_arguments_are_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
