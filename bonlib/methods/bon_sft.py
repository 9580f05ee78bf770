"""BoN-SFT: likelihood of best-of-N samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from torch import Tensor

from bonlib.checks import check_log_probs, one_of, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.registry import register
from bonlib.training.off_policy import Examples, OffPolicy, Picks


def nll(log_probs: Tensor) -> Tensor:
    """Return −log πθ(y), whose mean over responses of a target policy is its cross-entropy with πθ.

    On best-of-n responses this is BoN-SFT, and BOND's forward divergence: the optimum is best-of-n.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.

    Raises:
        ValueError: if the shape is not (B,), a number is NaN or a log-probability is positive.

    Source: Sessa et al., section 4.2.
    """
    check_log_probs(log_probs=log_probs)
    return -log_probs


@dataclass(frozen=True)
class BonSft(OffPolicy):
    """Likelihood of best-of-N samples (the forward KL).

    Attributes:
        n: number of draws N.
        picks: what is learned of a prompt's draws: "weights", each as often as it is the best of N random ones of them;
            or "groups", the best of every N, which has the same mean and more noise.
    """

    n: int
    picks: Picks = "weights"
    late: ClassVar[Mapping[str, Any]] = {"picks": "groups"}

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1, what="the number of draws"))
        one_of("picks", self.picks, get_args(Picks))

    @property
    def needs_draws(self) -> int:
        """N of them make one example."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return all draws that may be the best of N, with their weights, or the best of each N."""
        if self.picks == "weights":
            weights = best_of_n_weights(rewards, self.n)
            prompts, draws = np.nonzero(weights)
            return Examples(prompts, draws[:, None], weights[prompts, draws])
        best = best_of_n(rewards, self.n)
        return Examples(np.repeat(np.arange(len(best)), best.shape[1]), best.reshape(-1, 1))

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return −log πθ of the best."""
        return nll(log_probs[:, 0])


register(
    name="bon-sft",
    make=BonSft,
    setting="n",
    algorithm="offline",
    label="BoN-SFT",
    colour="#fbafe4",
    marker="X",
    grid=(2, 8, 32, 128, 512),
    samples="stored draws of the reference by their chance to be the best of N, or the best of every N",
    objective="`nll`: −log πθ(best), the forward KL to best-of-N",
    source="Amini et al., app. H",
    place=7,
)
