"""vBoN by its lower bound L: KL-RL with reward log F≤."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bonlib.checks import check_log_probs, number
from bonlib.methods.registry import register
from bonlib.methods.vbon import Vbon
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import LogCdf


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


def _times(factor: float, log_cdf: Tensor) -> Tensor:
    """Factor · log F, which is 0 for the factor 0 even where F is 0."""
    return factor * log_cdf if factor else torch.zeros_like(log_cdf)


@dataclass(frozen=True)
class VbonBound(Vbon):
    """Variational best-of-N by its lower bound L: KL-RL with reward log F≤ (Amini et al., Theorem 2, weak CDF)."""

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return (N−1) log F≤ − (log πθ − log π)."""
        return vbon_bound_return(judged.log_probs, judged.ref_log_probs, judged.log_weak(cdf), n=self.n)


register(
    name="vbon-bound",
    make=VbonBound,
    setting="n",
    algorithm="rloo",
    label="vBoN, L",
    colour="#cc78bc",
    marker="s",
    grid=(2, 8, 32, 128, 512),
    samples="4 responses a prompt from the policy, and M stored draws a prompt for F̂",
    objective="`vbon_bound_return`: (N−1) log F̂≤ − (log πθ − log π)",
    source="Amini et al., Theorem 2",
    place=2,
)
