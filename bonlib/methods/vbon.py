"""vBoN by its objective J: the reverse KL to best-of-N itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bonlib.checks import LOG_PROB_SLACK, check_log_probs, number, settle
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.registry import register
from bonlib.training.learner import Learner, OngoingRun
from bonlib.training.on_policy import Judged, OnPolicy
from bonlib.training.reward_cdf import LogCdf
from bonlib.training.warm import WarmLearner


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
    if log_tied.shape == ref_log_probs.shape and bool((log_tied < ref_log_probs - LOG_PROB_SLACK).any()):
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


@dataclass(frozen=True)
class Vbon(OnPolicy):
    """Variational best-of-N: the reverse KL to best-of-N itself, J (Amini et al., Eq. 5), ties included.

    Attributes:
        n: number of draws N, real.
        warm: share of the steps in which BoN regression, which has the same target, first learns from stored draws;
            then n is a whole number.
    """

    n: float
    warm: float = 0.0
    needs_cdf: ClassVar[bool] = True
    late: ClassVar[Mapping[str, Any]] = {"warm": 0.0}

    def __post_init__(self) -> None:
        share = "the share of the steps before the first draw"
        settle(
            self,
            n=number("n", self.n, least=1, what="the number of draws"),
            warm=number("warm", self.warm, least=0, most=1, what=share),
        )
        if self.warm and self.n != int(self.n):
            raise ValueError(f"n is {self.n} and warm {self.warm}; a warm start needs a whole n, or leave warm at 0")

    @property
    def needs_draws(self) -> int:
        """Those that a warm start learns from."""
        return int(self.n) if self.warm else 0

    def learner(self, run: OngoingRun) -> Learner[Any]:
        """Return what learns by this method."""
        if not self.warm:
            return super().learner(run)
        return WarmLearner(self, BonRegression(int(self.n)), self.warm, run)

    def eased(self, part: float) -> Vbon:
        """Return it with 1 + part (N − 1) draws, as a rule no whole number of them."""
        return replace(self, n=1 + part * (self.n - 1), warm=0.0)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log π_N − log πθ."""
        log_strict, log_tied = judged.log_strict_and_tied(cdf)
        return vbon_return(judged.log_probs, judged.ref_log_probs, log_strict, n=self.n, log_tied=log_tied)


register(
    name="vbon",
    make=Vbon,
    setting="n",
    algorithm="rloo",
    label="vBoN, J",
    colour="#d55e00",
    marker="o",
    grid=(2, 8, 32, 128, 512),
    samples="4 responses a prompt from the policy, and M stored draws a prompt for F̂",
    objective="`vbon_return`: log π_N − log πθ",
    source="Amini et al., Eq. 5",
    place=1,
)
