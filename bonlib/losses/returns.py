"""What a response drawn from the policy is worth, by method; (B,) in, (B,) out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bonlib.cdf import ROUNDING as ONE_REWARD
from bonlib.checks import number
from bonlib.losses.checks import ROUNDING, check_finite, check_log_probs, check_shapes


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
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_shapes(log_probs=log_probs, rewards=rewards)
    number("beta", beta, least=0, what="the KL coefficient")
    check_finite(rewards=rewards)
    return rewards - beta * (log_probs - ref_log_probs)


def vbon_return(
    log_probs: Tensor, ref_log_probs: Tensor, log_strict_cdf: Tensor, *, n: float, log_tied: Tensor | None = None
) -> Tensor:
    """Return log π_N(y) − log πθ(y), whose expectation is vBoN's J = −KL(πθ ‖ π_N).

    Its optimum is best-of-N exactly.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_strict_cdf: log F(y), shape (B,); −inf for the worst response is allowed, and then log π_N is N log π. An
            estimate must leave room for π(y): where F + π exceeds 1, so does the "probability" of best-of-N.
        n: number of draws N, real, at least 1.
        log_tied: log(F≤ − F), the reference's probability of a reward as good as this, shape (B,), at least log π(y).
            None if no two responses are tied: then it is log π(y).

    Raises:
        ValueError: if shapes differ, a number is NaN or a log-probability is positive, `log_tied` is below log π, or
            `n` is below 1.

    Source: Amini et al., Eq. 5, with Proposition 1 in the form (F + π)^N − F^N, shared among the tied by their π.
    """
    log_tied = ref_log_probs if log_tied is None else log_tied
    if log_tied.shape == ref_log_probs.shape and bool((log_tied < ref_log_probs - ROUNDING).any()):
        raise ValueError(
            "log_tied is below ref_log_probs: a response is tied with itself, so it holds at least its own π"
        )
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_strict_cdf=log_strict_cdf, log_tied=log_tied)
    number("n", n, least=1, what="the number of draws")
    # F≤ / F = 1 + e^odds, and 1 − (F/F≤)^N = 1 − e^−lost; where that is all but N e^odds, its logarithm is taken so.
    odds = torch.where(log_tied == -math.inf, -math.inf, log_tied - log_strict_cdf)
    lost = n * functional.softplus(odds)
    tiny = lost < torch.finfo(lost.dtype).eps
    log_found = torch.where(tiny, math.log(n) + odds, torch.log(-torch.expm1(-lost.masked_fill(tiny, 1.0))))
    log_cdf = torch.logaddexp(log_tied, log_strict_cdf)
    log_share = torch.where(log_tied == -math.inf, 0.0, ref_log_probs - log_tied)
    return n * log_cdf + log_found + log_share - log_probs


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
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    number("n", n, least=1, what="the number of draws")
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
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    number("n", n, least=1, what="the number of draws")
    alpha, beta, gamma = (n + 2) * (n - 1) / 2, n * (n + 1) / 2, n * (n - 1) / 2
    return _times(gamma, log_cdf) + alpha * log_probs - beta * (log_probs - ref_log_probs)


def bond_return(
    log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float, log_strict_cdf: Tensor | None = None
) -> Tensor:
    """Return r_BOND − β (log πθ − log π), where β = 1/(n−1) and r_BOND = log F≤ + log B/(n−1).

    B is the sum of (F/F≤)^(i−1) over i = 1 … n. With it n−1 times the return is log π_n − log πθ, and the optimum
    best-of-n; without it, as the paper trains, the optimum is π F≤^(n−1), normalised, which is that of vBoN's L.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, or the anchor in its place, shape (B,).
        log_cdf: log F≤(y) among that policy's rewards, shape (B,); finite.
        n: number of draws, real, above 1.
        log_strict_cdf: log F(y), shape (B,), at most `log_cdf`; −inf for the worst response. None leaves out B.

    Raises:
        ValueError: if shapes differ, a number is NaN, a log-probability is positive, F is above F≤, or `n` is not
            above 1.

    Source: Sessa et al. (BOND), Eqs. 8, 9 and 15, where the text after Eq. 15 lost the logarithm of F≤.
    """
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    number("n", n, above=1, what="BOND's β is 1/(n−1): n")
    reward = log_cdf
    if log_strict_cdf is not None:
        check_log_probs(log_cdf=log_cdf, log_strict_cdf=log_strict_cdf)
        gap = log_cdf - log_strict_cdf
        if bool((gap < -ROUNDING).any()):
            raise ValueError("log_strict_cdf is above log_cdf; the strict F is at most F≤")
        tiny = gap < torch.finfo(gap.dtype).eps
        safe = gap.masked_fill(tiny, 1.0)
        log_b = torch.where(tiny, math.log(n), torch.log(torch.expm1(-n * safe) / torch.expm1(-safe)))
        reward = reward + log_b / (n - 1)
    return reward - (log_probs - ref_log_probs) / (n - 1)


def jbond_reward(rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """Return −log 16 where a response is worse than both of its anchor responses, else 0.

    Over the two responses of the anchor its mean is −log 16 · (1 − F≤)², which equals log F≤ at the median.

    Rewards that differ by rounding are equal (`bonlib.cdf.ROUNDING`).

    Args:
        rewards: r(y), shape (B,).
        anchor_rewards: of two responses of the anchor to the same prompt, shape (B, 2).

    Raises:
        ValueError: if a shape is another or a reward is not finite.

    Source: Sessa et al. (BOND), Eq. 17.
    """
    check_shapes(rewards=rewards)
    if anchor_rewards.shape != (len(rewards), 2):
        raise ValueError(
            f"anchor_rewards has shape {tuple(anchor_rewards.shape)}; it must be ({len(rewards)}, 2), two a response"
        )
    check_finite(rewards=rewards, anchor_rewards=anchor_rewards)
    lower = anchor_rewards.min(dim=1).values
    worse = rewards < lower - ONE_REWARD * torch.maximum(rewards.abs(), lower.abs())
    return worse.to(torch.result_type(rewards, 1.0)) * -math.log(16)


def jbond_return(log_probs: Tensor, anchor_log_probs: Tensor, rewards: Tensor, anchor_rewards: Tensor) -> Tensor:
    """Return J-BOND's r_J − (log πθ − log π_anchor), BOND's return for n = 2 with log F≤ guessed from two draws.

    Its optimum is π_anchor · 16^−(1 − F≤)², normalised: close to best-of-2 of the anchor, and not equal to it.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        anchor_log_probs: log-probability of the same under the anchor, shape (B,).
        rewards: r(y), shape (B,).
        anchor_rewards: of two responses of the anchor to the same prompt, shape (B, 2).

    Raises:
        ValueError: if a shape is another, a number is NaN, a reward is not finite or a log-probability is positive.

    Source: Sessa et al. (BOND), Algorithm 2.
    """
    check_log_probs(log_probs=log_probs, anchor_log_probs=anchor_log_probs)
    check_shapes(log_probs=log_probs, rewards=rewards)
    return jbond_reward(rewards, anchor_rewards) - (log_probs - anchor_log_probs)


def _times(factor: float, log_cdf: Tensor) -> Tensor:
    """Factor · log F, which is 0 for the factor 0 even where F is 0."""
    return factor * log_cdf if factor else torch.zeros_like(log_cdf)
