"""QRPO: the log-ratio of the policy to the reference brought to a quantile reward, draw by draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from bonlib.cdf import snapped
from bonlib.checks import check_finite, check_log_probs, check_shapes, flag, number, settle
from bonlib.exact import Array, Outcomes
from bonlib.inference.draw_counts import lifted_reward
from bonlib.methods.registry import register
from bonlib.training.off_policy import Examples, OffPolicy
from bonlib.training.quantile import leave_one_out_cdf


def log_partition(beta: float) -> float:
    """Return log Z = log β + 1/β + log(1 − e^(−1/β)), with Z the mean of e^(U/β) over uniform quantiles U.

    The authors' code leaves out the last term: 2e-9 at β = 0.05, and −0.46 at β = 1.

    Args:
        beta: KL coefficient β, positive.

    Source: Matrenok et al. 2025 (QRPO), Eq. 11, corrected.
    """
    return (
        math.log(number("beta", beta, above=0, what="the KL coefficient")) + 1 / beta + math.log(-math.expm1(-1 / beta))
    )


def qrpo_loss(log_probs: Tensor, ref_log_probs: Tensor, rewards: Tensor, *, beta: float) -> Tensor:
    """Return (R − β log Z − β (log πθ − log π))², R a quantile reward from 0 to 1 and Z as if it were continuous.

    Without ties its minimum over all policies is π e^(R/β)/Z, the tilt of the highest win rate at its KL, whatever
    draws are learned. With ties no policy has the loss 0 unless R is lifted, and the draws decide where it ends.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        rewards: F≤ of the responses, or β times `lifted_reward`, shape (B,).
        beta: KL coefficient β, positive.

    Raises:
        ValueError: if shapes differ, a log-probability is positive, a number is not finite, or `beta` is not positive.

    Source: Matrenok et al. 2025 (QRPO), with the partition function corrected.
    """
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_shapes(log_probs=log_probs, rewards=rewards)
    check_finite(rewards=rewards)
    return (rewards - beta * log_partition(beta) - beta * (log_probs - ref_log_probs)) ** 2


@dataclass(frozen=True)
class Qrpo(OffPolicy):
    """Quantile reward policy optimisation: the log-ratio by least squares to the quantile of the reward.

    Attributes:
        beta: β.
        lifted: whether the reward is β log[β (e^(F≤/β) − e^(F/β))/(F≤ − F)] in place of F≤, with which Z is exact
            where rewards tie.
    """

    beta: float
    lifted: bool = False

    def __post_init__(self) -> None:
        settle(
            self,
            beta=number("beta", self.beta, above=0, what="the KL coefficient"),
            lifted=flag("lifted", self.lifted),
        )

    @property
    def needs_draws(self) -> int:
        """A draw, and another that it is compared with."""
        return 2

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return all draws, with their quantiles among the others of their prompt."""
        (p, m), keys = rewards.shape, snapped(rewards)
        strict, weak = (rankdata(keys, "min", axis=1) - 1) / (m - 1), leave_one_out_cdf(rewards)
        if self.lifted:
            mass = np.maximum((weak - strict) / self.beta, np.finfo(np.float64).tiny)
            weak = weak + self.beta * np.log(-np.expm1(-mass) / mass)
        return Examples(np.repeat(np.arange(p), m), np.tile(np.arange(m), p)[:, None], targets=weak.ravel())

    def known(self, outcomes: Outcomes) -> tuple[Array, Array]:
        """Return π, and the true quantiles."""
        lift = self.beta * lifted_reward(outcomes, 1 / self.beta) if self.lifted else outcomes.cdf
        return outcomes.probs, lift

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return (F̂≤ − β log Z − β (log πθ − log π))²."""
        if targets is None:
            raise ValueError("targets is None; QRPO has one for each example")
        return qrpo_loss(log_probs[:, 0], ref_log_probs[:, 0], targets, beta=self.beta)


register(
    name="qrpo",
    make=Qrpo,
    setting="beta",
    algorithm="offline",
    label="QRPO",
    colour="#96e1b4",
    marker="$Q$",
    grid=(0.05, 0.1, 0.2, 0.4, 1.0),
    samples="stored draws, all alike",
    objective="`qrpo_loss`: (F̂≤ − β log Z − β(log πθ − log π))²; with `lifted=True`, a reward with which Z is exact",
    source="Matrenok et al.",
    place=16,
)
