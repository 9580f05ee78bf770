"""BoN regression: the log-ratio of the policy to the reference brought to that of best-of-n, draw by draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import digamma
from scipy.stats import rankdata
from torch import Tensor

from bonlib.cdf import snapped
from bonlib.checks import check_finite, check_log_probs, check_shapes, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array, Outcomes
from bonlib.methods.registry import register
from bonlib.training.off_policy import Examples, OffPolicy

Sampling = Literal["half", "reference"]


def bon_regression_loss(log_probs: Tensor, ref_log_probs: Tensor, log_ratios: Tensor) -> Tensor:
    """Return (log πθ − log π − log π_n/π)², whose minimum over all policies is best-of-n, whatever draws are learned.

    The target is normalised: the mean of π_n/π over the reference is 1 with ties too, so that no partition function is
    left. On draws of πθ itself the gradient is twice that of KL(πθ ‖ π_n), which vBoN's J has.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, shape (B,).
        log_ratios: log π_n/π = log[(F≤^n − F^n)/(F≤ − F)] of the responses, or an estimate of it, shape (B,).

    Raises:
        ValueError: if shapes differ, a log-probability is positive or a number is not finite.

    Source: derived here, as QRPO of Matrenok et al. 2025 with the reward log F and β = 1/(n−1).
    """
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs)
    check_shapes(log_probs=log_probs, log_ratios=log_ratios)
    check_finite(log_ratios=log_ratios)
    return (log_probs - ref_log_probs - log_ratios) ** 2


def log_ratios_to_best_of_n(rewards: Array, n: int) -> Array:
    """Return an estimate of log π_n/π of each draw from its place among all of its prompt, always finite.

    The k-th lowest of M draws is at the quantile U ~ Beta(k, M+1−k), where that is log n + (n−1) log U: its mean has
    ψ(k) − ψ(M+1) for log U. Draws that tie share the mean of the ratio at their places.

    Args:
        rewards: of the draws, shape (P, M).
        n: number of draws of best-of-n, at least 1.

    Source: derived here; the means of log U as in Amini et al., Eq. 6, by `bonlib.cdf.EmpiricalCdf`.
    """
    m, keys = rewards.shape[1], snapped(rewards)
    below = rankdata(keys, "min", axis=1).astype(np.intp) - 1
    upto = rankdata(keys, "max", axis=1).astype(np.intp)
    log_ratios = np.log(n) + (n - 1) * (digamma(np.arange(1, m + 1)) - digamma(m + 1))
    log_sums = np.append(-np.inf, np.logaddexp.accumulate(log_ratios))
    return log_sums[upto] + np.log(-np.expm1(log_sums[below] - log_sums[upto])) - np.log(upto - below)


@dataclass(frozen=True)
class BonRegression(OffPolicy):
    """The log-ratio of policy to reference by least squares, at stored draws, to that of best-of-n.

    Attributes:
        n: number of draws of best-of-n.
        sampling: which draws of a prompt are learned from: "reference" for all alike; "half" for half of the time by
            their chance to be the best of n, so that good responses are not outnumbered.
    """

    n: int
    sampling: Sampling = "half"

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1, what="the number of draws"))
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(get_args(Sampling))}")

    @property
    def needs_draws(self) -> int:
        """As many as best-of-n has, for its chances; more say better where each is."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return all draws, with the log-ratio of best-of-n."""
        p, m = rewards.shape
        weights = None
        if self.sampling == "half":
            weights = (1 / m + best_of_n_weights(rewards, self.n)).ravel() / 2
        targets = log_ratios_to_best_of_n(rewards, self.n).ravel()
        return Examples(np.repeat(np.arange(p), m), np.tile(np.arange(m), p)[:, None], weights, targets)

    def known(self, outcomes: Outcomes) -> tuple[Array, Array]:
        """Return how often each outcome is learned from, and the true log π_n/π."""
        best, possible = outcomes.best_of(self.n), outcomes.probs > 0
        log_ratios = np.zeros(len(outcomes))
        log_ratios[possible] = outcomes.log_best_of(self.n)[possible] - outcomes.log_probs[possible]
        return (outcomes.probs + best) / 2 if self.sampling == "half" else outcomes.probs, log_ratios

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return (log πθ − log π − log π_n/π)²."""
        if targets is None:
            raise ValueError("targets is None; BoN regression has one for each example")
        return bon_regression_loss(log_probs[:, 0], ref_log_probs[:, 0], targets)


register(
    name="bon-regression",
    make=BonRegression,
    setting="n",
    algorithm="offline",
    label="BoN regression",
    colour="#7878ff",
    marker=">",
    grid=(2, 8, 32, 128, 512),
    samples="stored draws, half of the time all alike and half by their chance to be the best of N",
    objective="`bon_regression_loss`: (log πθ − log π − log π̂_N/π)²",
    source="this workbook, after Matrenok et al. (QRPO)",
    place=15,
)
