"""BoN regression: the log-ratio of the policy to the reference brought to that of best-of-n, draw by draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import digamma
from scipy.stats import rankdata
from torch import Tensor

from bonlib.cdf import snapped
from bonlib.checks import check_finite, check_log_probs, check_shapes, number, one_of, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array, Outcomes
from bonlib.methods.bon_sft import nll
from bonlib.methods.registry import register
from bonlib.training.off_policy import Examples, OffPolicy

Sampling = Literal["best", "half", "reference"]


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
    """The log-ratio of policy to reference by least squares to that of best-of-n, and the likelihood of best-of-n.

    Both are least at best-of-n, whatever draws are learned from. Squares alone say nothing of responses that no draw
    is, and leave too much probability to poor ones; likelihood takes it from all of them, good ones too.

    Attributes:
        n: number of draws of best-of-n.
        sampling: which draws of a prompt are learned from: "best", each as often as it is the best of n random ones;
            "reference", all alike; "half", half of the time each. Poor draws, which come with the reference, have
            targets that are far off and badly known.
        likelihood: weight of −log πθ over best-of-n, beside the square.
    """

    n: int
    sampling: Sampling = "best"
    likelihood: float = 1.0

    def __post_init__(self) -> None:
        what = "the weight of the likelihood"
        settle(
            self,
            n=whole("n", self.n, 1, what="the number of draws"),
            likelihood=number("likelihood", self.likelihood, least=0, what=what),
        )
        one_of("sampling", self.sampling, get_args(Sampling))

    @property
    def needs_draws(self) -> int:
        """As many as best-of-n has, for its chances; more say better where each is."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return all draws that may come, with their weights and the log-ratio of best-of-n."""
        weights = self._mixed(np.full(rewards.shape, 1 / rewards.shape[1]), best_of_n_weights(rewards, self.n))
        prompts, draws = np.nonzero(weights)
        targets = log_ratios_to_best_of_n(rewards, self.n)[prompts, draws]
        return Examples(prompts, draws[:, None], weights[prompts, draws], targets)

    def _mixed(self, reference: Array, best: Array) -> Array:
        """What is learned from, by chances under the reference and under best-of-n."""
        return {"best": best, "half": (reference + best) / 2, "reference": reference}[self.sampling]

    def known(self, outcomes: Outcomes) -> tuple[Array, Array]:
        """Return how often each outcome is learned from, and the true log π_n/π."""
        possible, log_ratios = outcomes.probs > 0, np.zeros(len(outcomes))
        log_ratios[possible] = outcomes.log_best_of(self.n)[possible] - outcomes.log_probs[possible]
        return self._mixed(outcomes.probs, outcomes.best_of(self.n)), log_ratios

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return (log πθ − log π − log π_n/π)² − weight · log πθ, the latter by how much oftener best-of-n has it."""
        if targets is None:
            raise ValueError("targets is None; BoN regression has one for each example")
        square = bon_regression_loss(log_probs[:, 0], ref_log_probs[:, 0], targets)
        ratio = targets.exp()
        oftener = {"best": torch.ones_like(ratio), "half": 2 * ratio / (1 + ratio), "reference": ratio}[self.sampling]
        return square + self.likelihood * oftener * nll(log_probs[:, 0])


register(
    name="bon-regression",
    make=BonRegression,
    setting="n",
    algorithm="offline",
    label="BoN regression",
    colour="#7878ff",
    marker=">",
    grid=(2, 8, 32, 128, 512),
    samples="stored draws, by their chance to be the best of N",
    objective="`bon_regression_loss`: (log πθ − log π − log π̂_N/π)², and `nll`: −log πθ",
    source="this workbook, after Matrenok et al. (QRPO)",
    place=15,
)
