"""Returns against the exact part, against many digits, and by what their gradient ascent converges to."""

import mpmath
import numpy as np
import pytest
import torch

from bonlib import losses
from bonlib.exact import Outcomes, kl_divergence

MODEL, N = Outcomes([0.25, 0.1, 0.3, 0.15, 0.2], [3.0, 0.0, 1.0, 2.0, 4.0]), 4


def tensor(values):
    with np.errstate(divide="ignore"):
        return torch.tensor(np.asarray(values), dtype=torch.float64)


LOG_REF, LOG_CDF = tensor(MODEL.log_probs), tensor(MODEL.log_cdf)
with np.errstate(divide="ignore"):
    LOG_STRICT = tensor(np.log(MODEL.strict_cdf))


def loose_optimum():
    weights = MODEL.probs ** (N * (N + 1) / 2) * MODEL.cdf ** (N * (N - 1) / 2)
    return weights / weights.sum()


CASES = {
    "vbon": (lambda q: losses.vbon_return(q, LOG_REF, LOG_STRICT, n=N), MODEL.best_of(N)),
    "bound": (lambda q: losses.vbon_bound_return(q, LOG_REF, LOG_CDF, n=N), MODEL.tilt(1 / (N - 1), "log_cdf")),
    "loose": (lambda q: losses.vbon_loose_bound_return(q, LOG_REF, LOG_CDF, n=N), loose_optimum()),
    "kl_rl": (lambda q: losses.kl_rl_return(q, LOG_REF, tensor(MODEL.rewards), beta=0.7), MODEL.tilt(0.7)),
}


@pytest.mark.parametrize("name", CASES)
def test_at_the_stated_optimum_every_response_has_the_same_return(name):
    returns, optimum = CASES[name]
    values = returns(tensor(np.log(optimum)))
    assert values.shape == (5,)
    assert float(values.max() - values.min()) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_no_other_policy_has_a_larger_expected_return(name):
    returns, optimum = CASES[name]
    rng = np.random.default_rng(0)
    best = optimum @ returns(tensor(np.log(optimum))).numpy()
    for _ in range(100):
        rival = optimum * np.exp(rng.normal(scale=0.3, size=5))
        rival /= rival.sum()
        assert rival @ returns(tensor(np.log(rival))).numpy() <= best + 1e-12


def test_the_mean_vbon_return_is_minus_the_kl_to_best_of_n():
    policy = np.random.default_rng(0).dirichlet(np.ones(5))
    mean = policy @ CASES["vbon"][0](tensor(np.log(policy))).numpy()
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
    got = losses.vbon_return(*inputs, n=n)
    assert got.dtype == dtype
    assert float(got) == pytest.approx(float(want), rel=1e-5 if dtype == torch.float32 else 1e-12, abs=1e-5)


def test_the_edges_have_their_limits():
    nothing, one = torch.tensor([-torch.inf]), torch.zeros(1)
    assert losses.vbon_return(one, nothing, nothing, n=3).item() == -np.inf
    assert losses.vbon_return(one, one - 2, nothing, n=3).item() == -6
    for function in (losses.vbon_bound_return, losses.vbon_loose_bound_return):
        assert function(one - 1, one - 1, nothing, n=1).item() == 0


def test_bad_arguments_are_named():
    two, three = torch.zeros(2) - 1, torch.zeros(3) - 1
    with pytest.raises(ValueError, match=r"log_cdf has shape \(3,\).*as log_probs has, \(2,\)"):
        losses.vbon_bound_return(two, two, three, n=2)
    with pytest.raises(ValueError, match=r"log_probs has shape \(2, 1\)"):
        losses.vbon_return(two[:, None], two, two, n=2)
    with pytest.raises(ValueError, match="rewards has shape"):
        losses.kl_rl_return(two, two, three, beta=0.1)
    with pytest.raises(ValueError, match="ref_log_probs holds 1"):
        losses.vbon_loose_bound_return(two, -two, two, n=2)
    with pytest.raises(ValueError, match="rewards holds NaN"):
        losses.kl_rl_return(two, two, two * torch.nan, beta=0.1)
    for n in (0.5, np.nan, np.inf):
        with pytest.raises(ValueError, match="n is"):
            losses.vbon_return(two, two, two, n=n)
    for beta in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="beta is"):
            losses.kl_rl_return(two, two, two, beta=beta)
    with pytest.raises(ValueError, match="rewards holds a number that is not finite"):
        losses.kl_rl_return(two, two, two * torch.inf, beta=1)
