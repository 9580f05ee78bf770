"""vBoN's bounds L and L1 against full enumeration."""

import pytest
import torch
from five_responses import (
    LOG_CDF,
    LOG_REF,
    MODEL,
    TWO,
    N,
    all_have_one_return,
    minus_kl,
    no_rival_has_more,
    reinforce_descends,
)

from bonlib.methods.vbon_bound import vbon_bound_return, vbon_loose_bound_return


def bound(log_q):
    return vbon_bound_return(log_q, LOG_REF, LOG_CDF, n=N)


def loose(log_q):
    return vbon_loose_bound_return(log_q, LOG_REF, LOG_CDF, n=N)


def loose_optimum():
    weights = MODEL.probs ** (N * (N + 1) / 2) * MODEL.cdf ** (N * (N - 1) / 2)
    return weights / weights.sum()


CASES = {"bound": (bound, MODEL.tilt(1 / (N - 1), "log_cdf")), "loose": (loose, loose_optimum())}


@pytest.mark.parametrize("name", CASES)
def test_at_the_stated_optimum_every_response_has_the_same_return(name):
    all_have_one_return(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_no_other_policy_has_a_larger_expected_return(name):
    no_rival_has_more(*CASES[name])


def test_reinforce_descends_the_exact_gradient_of_the_objective():
    reinforce_descends(bound, lambda log_q: (N - 1) * (log_q.exp() * LOG_CDF).sum() + minus_kl(log_q, LOG_REF))


def test_with_one_draw_the_cdf_does_not_matter_even_where_it_is_nothing():
    nothing, one = torch.tensor([-torch.inf]), torch.zeros(1)
    for function in (vbon_bound_return, vbon_loose_bound_return):
        assert function(one - 1, one - 1, nothing, n=1).item() == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"log_cdf has shape \(3,\).*as log_probs has, \(2,\)"):
        vbon_bound_return(TWO, TWO, torch.zeros(3) - 1, n=2)
    with pytest.raises(ValueError, match="ref_log_probs holds 1"):
        vbon_loose_bound_return(TWO, -TWO, TWO, n=2)
