"""vBoN's J against the exact part, many digits and full enumeration."""

import mpmath
import numpy as np
import pytest
import torch
from five_responses import (
    LOG_REF,
    LOG_STRICT,
    MODEL,
    TWO,
    N,
    all_have_one_return,
    minus_kl,
    no_rival_has_more,
    reinforce_descends,
    tensor,
)

from bonlib.exact import kl_divergence
from bonlib.methods.vbon import Vbon, vbon_return
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import SampledCdf


def returns(log_q):
    return vbon_return(log_q, LOG_REF, LOG_STRICT, n=N)


def test_at_the_stated_optimum_every_response_has_the_same_return():
    all_have_one_return(returns, MODEL.best_of(N))


def test_no_other_policy_has_a_larger_expected_return():
    no_rival_has_more(returns, MODEL.best_of(N))


def test_reinforce_descends_the_exact_gradient_of_the_objective():
    reinforce_descends(returns, lambda log_q: minus_kl(log_q, tensor(MODEL.log_best_of(N))))


def test_the_mean_vbon_return_is_minus_the_kl_to_best_of_n():
    policy = np.random.default_rng(0).dirichlet(np.ones(5))
    mean = policy @ returns(tensor(np.log(policy))).numpy()
    assert mean == pytest.approx(-kl_divergence(policy, MODEL.best_of(N)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("log_ref", [-0.1, -5.0, -30.0, -100.0, -1000.0])
@pytest.mark.parametrize("log_strict", [-1e-6, -0.7, -20.0, -300.0, -np.inf])
@pytest.mark.parametrize("n", [1, 2, 7.5, 1000])
def test_the_vbon_return_is_stable_where_probabilities_are_tiny(log_ref, log_strict, n, dtype):
    log_ref, log_strict = (float(torch.tensor(value, dtype=dtype)) for value in (log_ref, log_strict))
    with mpmath.workdps(1000):
        strict, ref = mpmath.exp(log_strict), mpmath.exp(log_ref)
        want = mpmath.log((strict + ref) ** n - strict**n)
    inputs = [torch.tensor([value], dtype=dtype) for value in (0.0, log_ref, log_strict)]
    got = vbon_return(*inputs, n=n)
    assert got.dtype == dtype
    assert float(got) == pytest.approx(float(want), rel=1e-5 if dtype == torch.float32 else 1e-12, abs=1e-5)


def test_the_edges_have_their_limits():
    nothing, one = torch.tensor([-torch.inf]), torch.zeros(1)
    assert vbon_return(one, nothing, nothing, n=3).item() == -np.inf
    assert vbon_return(one, one - 2, nothing, n=3).item() == -6


def test_tied_rewards_share_best_of_n():
    cdf = SampledCdf(["p"], [[0.0, 0.0, 1.0, 2.0]], "none")
    log_pi = torch.tensor([-3.0, -0.5], dtype=torch.float64)
    judged = Judged(["p"] * 2, ["a", "b"], log_pi, log_pi, torch.tensor([0.0, 2.0], dtype=torch.float64))
    got = Vbon(3).returns(judged, cdf) + log_pi
    own = float(np.exp(-0.5))  # more than the quarter that the samples give a reward of 2
    worst = np.exp(-3.0) / 0.5 * 0.5**3
    best = 1 - (1 - own) ** 3
    np.testing.assert_allclose(got.exp(), [worst, best], rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"log_probs has shape \(2, 1\)"):
        vbon_return(TWO[:, None], TWO, TWO, n=2)
    for n in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="n is"):
            vbon_return(TWO, TWO, TWO, n=n)
    with pytest.raises(ValueError, match="n is 0"):
        Vbon(0)


def test_a_warm_start_needs_stored_draws_of_a_whole_number():
    assert Vbon(8).needs_draws == 0
    assert Vbon(8, warm=0.5).needs_draws == 8
    assert Vbon(8).described() == {"n": 8.0}  # runs from before keep their identity
    assert Vbon(8, warm=0.5).eased(0.1).n == pytest.approx(1.7)
    with pytest.raises(ValueError, match=r"n is 2.5 and warm 0.5; a warm start needs a whole n"):
        Vbon(2.5, warm=0.5)
    with pytest.raises(ValueError, match=r"warm is 1\.5"):
        Vbon(8, warm=1.5)
