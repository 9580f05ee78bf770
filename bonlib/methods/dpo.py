"""DPO and IPO: preferences between pairs of draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from bonlib.cdf import snapped
from bonlib.checks import check_finite, check_log_probs, flag, number, settle, whole
from bonlib.exact import Array
from bonlib.methods.registry import register
from bonlib.training.off_policy import Examples, OffPolicy


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """Return −log σ(β (Δθ − Δπ)), where Δ is the log-probability of the chosen response less that of the rejected.

    Args:
        chosen: log πθ of the preferred responses, shape (B,), summed over tokens.
        rejected: log πθ of the others, shape (B,).
        ref_chosen: log π of the preferred responses under the reference, shape (B,).
        ref_rejected: log π of the others, shape (B,).
        beta: KL coefficient β, positive, of the KL-regularised problem that this solves.

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or `beta` is not positive.

    Source: Rafailov et al. 2023 (DPO), Eq. 7.
    """
    margin = pair_margin(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    number("beta", beta, above=0, what="the KL coefficient")
    return -functional.logsigmoid(beta * margin)


def ipo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """Return (Δθ − Δπ − 1/(2β))², where Δ is the log-probability of the chosen response less that of the rejected.

    Log-probabilities are sums over tokens, as in the paper; TRL divides each by its number of tokens.

    Args:
        chosen: log πθ of the preferred responses, shape (B,), summed over tokens.
        rejected: log πθ of the others, shape (B,).
        ref_chosen: log π of the preferred responses under the reference, shape (B,).
        ref_rejected: log π of the others, shape (B,).
        beta: KL coefficient, positive (the paper's τ).

    Raises:
        ValueError: if shapes differ, a log-probability is positive or not finite, or `beta` is not positive.

    Source: Azar et al. 2024 (IPO), Eq. 17.
    """
    margin = pair_margin(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    number("beta", beta, above=0, what="the KL coefficient")
    return (margin - 1 / (2 * beta)) ** 2


def pair_margin(**pairs: Tensor) -> Tensor:
    """Return Δθ − Δπ of pairs of responses, (B,), given as chosen, rejected, ref_chosen and ref_rejected, checked."""
    check_log_probs(**pairs)
    check_finite(**pairs)
    chosen, rejected, ref_chosen, ref_rejected = pairs.values()
    return (chosen - rejected) - (ref_chosen - ref_rejected)


@dataclass(frozen=True)
class Dpo(OffPolicy):
    """Direct preference optimisation on pairs of a prompt's draws.

    Attributes:
        beta: β.
        generations: draws a prompt that pairs are made of.
        pairs: how many of these pairs a prompt are kept, at random. The paper takes 12 of 15 without saying which.
        identity: IPO's squared loss in place of the logistic one.
    """

    beta: float
    generations: int = 6
    pairs: int = 12
    identity: bool = False

    def __post_init__(self) -> None:
        generations = whole("generations", self.generations, 2)
        possible = generations * (generations - 1) // 2
        settle(
            self,
            beta=number("beta", self.beta, above=0, what="the KL coefficient"),
            generations=generations,
            pairs=whole("pairs", self.pairs, 1, possible, what=f"of {generations} generations it"),
            identity=flag("identity", self.identity),
        )

    @property
    def needs_draws(self) -> int:
        """As many as its generations."""
        return self.generations

    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Return chosen and rejected draws; a pair with equal rewards says nothing and is left out."""
        rng = np.random.default_rng(seed)
        first, second = np.triu_indices(self.generations, 1)
        prompts, pairs = [], []
        for prompt, row in enumerate(snapped(rewards)):
            drawn = rng.choice(len(row), self.generations, replace=False)
            kept = rng.permutation(len(first))[: self.pairs]
            a, b = drawn[first[kept]], drawn[second[kept]]
            chosen, rejected = np.where(row[a] >= row[b], a, b), np.where(row[a] >= row[b], b, a)
            told_apart = row[chosen] > row[rejected]
            pairs.append(np.stack([chosen, rejected], axis=1)[told_apart])
            prompts.append(np.full(told_apart.sum(), prompt))
        return Examples(np.concatenate(prompts), np.concatenate(pairs))

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return −log σ(β (Δθ − Δπ)), or IPO's (Δθ − Δπ − 1/2β)²."""
        function = ipo_loss if self.identity else dpo_loss
        return function(*log_probs.T, *ref_log_probs.T, beta=self.beta)


register(
    name="dpo",
    make=Dpo,
    setting="beta",
    algorithm="offline",
    label="DPO",
    colour="#029e73",
    marker="^",
    grid=(0.01, 0.1, 0.4, 1.0, 5.0),
    samples="12 random pairs of 6 stored draws, ties left out",
    objective="`dpo_loss`: −log σ(β(Δθ − Δπ)); with `identity=True`, IPO's `ipo_loss`: (Δθ − Δπ − 1/2β)²",
    source="Rafailov et al.; Azar et al.",
    place=5,
)
