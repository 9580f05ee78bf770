"""BoNBoN: likelihood of the best draw, and a target for its log-ratio to the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.cdf import snapped
from bonlib.checks import number, one_of, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.bon_sft import nll
from bonlib.methods.dpo import pair_margin
from bonlib.methods.registry import register
from bonlib.training.learner import Indices
from bonlib.training.off_policy import Examples, OffPolicy, Picks


def bonbon_target(n: int) -> float:
    """Return (n−1) Σ 1/k over k = 1 … n−1, the mean of Δ log(π_n/π) between the best and the worst of n draws.

    It is exact for a continuous reward. One draw is its own best and worst, and its target is 0.

    Args:
        n: number of draws, whole, at least 1.

    Raises:
        ValueError: if `n` is not a whole number of at least 1.

    Source: Gui et al. 2024 (BoNBoN), Theorem 3, whose β*_n is 1/(2 target).
    """
    n = whole("n", n, 1, what="the number of draws")
    return (n - 1) * math.fsum(1 / k for k in range(1, n))


def bonbon_loss(
    best: Tensor, worst: Tensor, ref_best: Tensor, ref_worst: Tensor, *, n: int, sft_weight: float
) -> Tensor:
    """Return a · NLL(best) + (1−a) (Δθ − Δπ − t_n)², where Δ is over the best and the worst of the same n draws.

    The target t_n (`bonbon_target`) is the mean of Δθ − Δπ at best-of-n, which is the optimum of the first term alone.
    That of the square alone is another policy: for n = 2 without ties it is π exp(2c), c the calibrated reward.

    Args:
        best: log πθ of the best of n draws, shape (B,), summed over tokens.
        worst: log πθ of the worst of the same draws, shape (B,).
        ref_best: log π of the best under the reference, shape (B,).
        ref_worst: log π of the worst, shape (B,).
        n: number of draws, whole, at least 1.
        sft_weight: weight a of the likelihood of the best draw, from 0 to 1.

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or another argument is out of range.

    Source: Gui et al. 2024 (BoNBoN), as told by Amini et al., section 5.
    """
    margin = pair_margin(best=best, worst=worst, ref_best=ref_best, ref_worst=ref_worst)
    number("sft_weight", sft_weight, least=0, most=1, what="the weight of the likelihood")
    return sft_weight * nll(best) + (1 - sft_weight) * (margin - bonbon_target(n)) ** 2


def lowest_beside(rewards: Array, n: int, rng: np.random.Generator) -> Indices:
    """Return for each draw, (M,), the worst of n random ones of which it is the best; itself where all n tie.

    Args:
        rewards: of a prompt's draws, shape (M,).
        n: number of draws, at most M.
        rng: chooses the others.
    """
    keys, places = snapped(rewards), np.arange(len(rewards))
    order = np.lexsort((rng.random(len(keys)), keys))  # ties at random
    below, upto = (np.searchsorted(keys[order], keys, side) for side in ("left", "right"))
    # The best of n is at the k-th place of all with this chance.
    chances = np.append(0.0, np.cumsum(best_of_n_weights(places, n)))
    k = np.searchsorted(chances, chances[upto] - rng.random(len(rewards)) * (chances[upto] - chances[below]))
    lowest = [rng.choice(at - 1, n - 1, replace=False).min() if 1 < n <= at else at for at in k.tolist()]
    return np.where(lowest < below, order[np.minimum(lowest, below)], places)


@dataclass(frozen=True)
class Bonbon(OffPolicy):
    """BoNBoN: likelihood of the best of N draws, and the log-ratio of best to worst brought to its target.

    Attributes:
        n: number of draws.
        sft_weight: share of the likelihood; None for the one with which both terms are equal at the reference, as its
            authors advise.
        picks: of a prompt's draws, "weights" for each as often as it is the best of n random ones of them, with the
            worst of such n; "groups" for the best and the worst of every n.
    """

    n: int
    sft_weight: float | None = None
    picks: Picks = "weights"
    late: ClassVar[Mapping[str, Any]] = {"picks": "groups"}

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1, what="the number of draws"))
        one_of("picks", self.picks, get_args(Picks))
        if self.sft_weight is not None:
            what = "None is for equal terms, else it"
            settle(self, sft_weight=number("sft_weight", self.sft_weight, least=0, most=1, what=what))

    @property
    def needs_draws(self) -> int:
        """N of them make one example."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return all that may be the best of N draws, with a worst and weights, or the best and the worst of each N."""
        if self.picks == "weights":
            rng, weights = np.random.default_rng(seed), best_of_n_weights(rewards, self.n)
            worst = np.stack([lowest_beside(row, self.n, rng) for row in rewards])
            prompts, draws = np.nonzero(weights)
            return Examples(prompts, np.stack([draws, worst[prompts, draws]], axis=1), weights[prompts, draws])
        pairs = np.stack([best_of_n(rewards, self.n), best_of_n(-rewards, self.n)], axis=2)
        return Examples(np.repeat(np.arange(len(pairs)), pairs.shape[1]), pairs.reshape(-1, 2))

    def balanced(self, ref_log_probs: ArrayLike, weights: ArrayLike | None = None) -> Bonbon:
        """Return it with a weight, if it has none yet.

        Args:
            ref_log_probs: log π of the best draws it learns from, nats, of any shape.
            weights: of these, of that shape; None for all alike.
        """
        if self.sft_weight is not None:
            return self
        gap = bonbon_target(self.n) ** 2  # the second term at the reference, whatever the pair
        of_each = None if weights is None else np.asarray(weights)
        return replace(self, sft_weight=gap / (gap - float(np.average(np.asarray(ref_log_probs), weights=of_each))))

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return a NLL(best) + (1−a) (Δθ − Δπ − t_n)²."""
        if self.sft_weight is None:
            raise ValueError("sft_weight is None; give one, or let `balanced` find it")
        return bonbon_loss(*log_probs.T, *ref_log_probs.T, n=self.n, sft_weight=self.sft_weight)


register(
    name="bonbon",
    make=Bonbon,
    setting="n",
    algorithm="offline",
    label="BoNBoN",
    colour="#56b4e9",
    marker="v",
    grid=(2, 8, 32, 128, 512),
    samples="stored draws by their chance to be the best of N, with the worst of such N; or best and worst of every N",
    objective="`bonbon_loss`: a·NLL(best) + (1−a)(Δθ − Δπ − t_N)²",
    source="Gui et al.",
    place=6,
)
