"""What each method maximises or minimises: pure functions of log-probabilities, (B,) in, (B,) out, unreduced.

A *return* R is maximised by a policy gradient, E[R ∇ log πθ]: its own derivative has mean zero or is not wanted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_rl_return(log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """Return r − β (log πθ − log π), whose expectation KL-regularised reinforcement learning maximises.

    Its optimum is π exp(r/β), normalised (`Outcomes.tilt`).

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: r(y), shape (B,).
        beta: KL coefficient β, not negative, in units of reward.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `beta` is negative.

    Source: Amini et al., Eq. 1.
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    _check_shapes(log_probs=log_probs, rewards=rewards)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; the KL coefficient must be finite and not negative")
    if not bool(rewards.detach().isfinite().all()):
        raise ValueError("rewards holds a number that is not finite; drop or repair that response")
    return rewards - beta * (log_probs - ref_log_probs)


def vbon_return(log_probs: Tensor, ref_log_probs: Tensor, log_strict_cdf: Tensor, *, n: float) -> Tensor:
    """Return log π_N(y) − log πθ(y), whose expectation is vBoN's J = −KL(πθ ‖ π_N).

    Its optimum is best-of-N exactly.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_strict_cdf: log F(y), shape (B,); −inf for the worst response is allowed, and then log π_N is N log π. An
            estimate must leave room for π(y): where F + π exceeds 1, so does the "probability" of best-of-N.
        n: number of draws N, real, at least 1.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `n` is below 1.

    Source: Amini et al., Eq. 5, with Proposition 1 in the form (F + π)^N − F^N.
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_strict_cdf=log_strict_cdf)
    _check_n(n)
    # F≤ / F = 1 + e^odds, and 1 − (F/F≤)^N = 1 − e^−lost; where that is all but N e^odds, its logarithm is taken so.
    odds = torch.where(ref_log_probs == -math.inf, -math.inf, ref_log_probs - log_strict_cdf)
    lost = n * torch.nn.functional.softplus(odds)
    tiny = lost < torch.finfo(lost.dtype).eps
    log_found = torch.where(tiny, math.log(n) + odds, torch.log(-torch.expm1(-lost.masked_fill(tiny, 1.0))))
    log_cdf = torch.logaddexp(ref_log_probs, log_strict_cdf)
    return n * log_cdf + log_found - log_probs


def vbon_bound_return(log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float) -> Tensor:
    """Return (N−1) log F≤ − (log πθ − log π), vBoN's lower bound L with the weak CDF: KL-RL with reward log F≤.

    Its optimum is π F≤^(N−1), normalised: best-of-N without BOND's term B. At most log N is lost from J.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_cdf: log F≤(y), shape (B,); finite, as F≤ is at least π. (The strict log F makes the paper's own bound,
            which is −inf for every policy that can produce the worst response.)
        n: number of draws N, real, at least 1.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `n` is below 1.

    Source: Amini et al., Theorem 2.
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    _check_n(n)
    return _times(n - 1, log_cdf) - (log_probs - ref_log_probs)


def vbon_loose_bound_return(log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float) -> Tensor:
    """Return γ log F + α log πθ − β (log πθ − log π), vBoN's looser bound L1, for study rather than training.

    Here α = (N+2)(N−1)/2, β = N(N+1)/2 and γ = N(N−1)/2. As α − β = −1 its optimum is π^β F^γ, normalised, far more
    peaked than best-of-N.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_cdf: log F≤(y), or the paper's log F(y), shape (B,).
        n: number of draws N, at least 1.

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, or `n` is below 1.

    Source: Amini et al., Theorem 3 (and Theorem 4: L1 <= L).
    """
    _check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    _check_n(n)
    alpha, beta, gamma = (n + 2) * (n - 1) / 2, n * (n + 1) / 2, n * (n - 1) / 2
    return _times(gamma, log_cdf) + alpha * log_probs - beta * (log_probs - ref_log_probs)


def _times(factor: float, log_cdf: Tensor) -> Tensor:
    """Factor · log F, which is 0 for the factor 0 even where F is 0."""
    return factor * log_cdf if factor else torch.zeros_like(log_cdf)


def _check_log_probs(**tensors: Tensor) -> None:
    _check_shapes(**tensors)
    for name, tensor in tensors.items():
        if not bool((tensor.detach() <= 1e-3).all()):  # rounding may leave a sum of log-probabilities just above 0
            raise ValueError(f"{name} holds {tensor.detach().max().item():.4g}; a log-probability is at most 0")


def _check_shapes(**tensors: Tensor) -> None:
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be one number a response, (B,), as {first} has, "
                f"{tuple(reference.shape)}"
            )
        if bool(tensor.detach().isnan().any()):
            raise ValueError(f"{name} holds NaN; drop or repair that response")


def _check_n(n: float) -> None:
    if not 1 <= n < math.inf:
        raise ValueError(f"n is {n}; the number of draws must be finite and at least 1")
