"""What each method needs and does: one frozen dataclass a method, its settings as fields.

There are two kinds. An *on-policy* method draws from the policy while it learns and ascends E[return]; `returns` says
what a response is worth. An *off-policy* method learns from draws of the reference; `examples` says which of them, and
`loss` what is minimised. An `Anchored` method does both, and may take a moving anchor for its reference. All formulas
are those of `bonlib.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib import losses
from bonlib.align.bond import Bond, iterative_bond, jbond
from bonlib.align.reward_cdf import LogCdf, known, looked_up
from bonlib.cdf import snapped
from bonlib.checks import flag, number, settle, whole
from bonlib.lm.samplers import best_of_n

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
DRAWS = "the number of draws"


class Judged(NamedTuple):
    """Responses of the policy and what is known about them, B of each.

    Attributes:
        prompts: what each answers.
        texts: the responses.
        log_probs: under the policy, no gradient, shape (B,).
        ref_log_probs: under the reference, or the anchor of an `Anchored` method, shape (B,).
        rewards: shape (B,), float64.
        anchor_rewards: of the anchor's responses to the same prompt, shape (B, draws), where a method has it draw any.
    """

    prompts: Sequence[str]
    texts: Sequence[str]
    log_probs: Tensor
    ref_log_probs: Tensor
    rewards: Tensor
    anchor_rewards: Tensor | None = None


class OnPolicy(Protocol):
    """A method that draws from the policy as it learns."""

    @property
    def kl_coefficient(self) -> float:
        """What its return takes off for each nat of log πθ − log π; PPO spreads that over tokens."""
        ...

    @property
    def needs_cdf(self) -> bool:
        """Whether it must be told the distribution of the reference's rewards."""
        ...

    def eased(self, part: float) -> OnPolicy:
        """Return the method with a part of its pull away from the reference, above 0 and at most 1."""
        ...

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return what each response is worth, shape (B,); the policy gradient ascends its mean."""
        ...


@runtime_checkable
class OffPolicy(Protocol):
    """A method that learns from draws of the reference."""

    @property
    def needs_draws(self) -> int:
        """How many draws a prompt it needs."""
        ...

    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
        """Choose what to learn from.

        Args:
            rewards: of the draws of each prompt, shape (P, M).
            seed: of random choices.

        Returns:
            Which prompt each example has, shape (E,), and which of its draws, shape (E, 1) or (E, 2).
        """
        ...

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """Return the loss of each example, shape (B,), from log-probabilities of shape (B, 1) or (B, 2)."""
        ...


@dataclass(frozen=True)
class KlRl:
    """KL-regularised reinforcement learning: reward minus β times the KL. Trained by RLOO or PPO."""

    beta: float
    needs_cdf: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settle(self, beta=number("beta", self.beta, above=0, what="the KL coefficient"))

    @property
    def kl_coefficient(self) -> float:
        """Its β."""
        return self.beta

    def eased(self, part: float) -> KlRl:
        """Return it with β / part."""
        return replace(self, beta=self.beta / part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return r − β (log πθ − log π)."""
        return losses.kl_rl_return(judged.log_probs, judged.ref_log_probs, judged.rewards, beta=self.beta)


@dataclass(frozen=True)
class Vbon:
    """Variational best-of-N: the reverse KL to best-of-N itself, J (Amini et al., Eq. 5), ties included."""

    n: float
    needs_cdf: ClassVar[bool] = True
    kl_coefficient: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        settle(self, n=number("n", self.n, least=1, what=DRAWS))

    def eased(self, part: float) -> Vbon:
        """Return it with 1 + part (N − 1) draws."""
        return replace(self, n=1 + part * (self.n - 1))

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log π_N − log πθ."""
        log_strict, log_tied = looked_up(cdf, judged)
        return losses.vbon_return(judged.log_probs, judged.ref_log_probs, log_strict, n=self.n, log_tied=log_tied)


@dataclass(frozen=True)
class VbonBound:
    """Variational best-of-N by its lower bound L: KL-RL with reward log F≤ (Amini et al., Theorem 2, weak CDF)."""

    n: float
    needs_cdf: ClassVar[bool] = True
    kl_coefficient: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        settle(self, n=number("n", self.n, least=1, what=DRAWS))

    def eased(self, part: float) -> VbonBound:
        """Return it with 1 + part (N − 1) draws."""
        return replace(self, n=1 + part * (self.n - 1))

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return (N−1) log F≤ − (log πθ − log π)."""
        log_cdf = known(cdf).log_weak(judged.prompts, judged.texts, judged.rewards.cpu().numpy())
        log_cdf_tensor = torch.as_tensor(log_cdf).to(judged.log_probs)
        return losses.vbon_bound_return(judged.log_probs, judged.ref_log_probs, log_cdf_tensor, n=self.n)


@dataclass(frozen=True)
class BonSft:
    """Likelihood of best-of-N samples: of every N draws of a prompt, the best is learned (the forward KL)."""

    n: int

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1, what=DRAWS))

    @property
    def needs_draws(self) -> int:
        """N of them make one example."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
        """Return the best of each N draws."""
        best = best_of_n(rewards, self.n)
        return np.repeat(np.arange(len(best)), best.shape[1]), best.reshape(-1, 1)

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """Return −log πθ of the best."""
        return losses.nll(log_probs[:, 0])


@dataclass(frozen=True)
class Bonbon:
    """BoNBoN: likelihood of the best of N draws, and the log-ratio of best to worst brought to its target.

    Attributes:
        n: number of draws.
        sft_weight: share of the likelihood; None for the one with which both terms are equal at the reference, as its
            authors advise.
    """

    n: int
    sft_weight: float | None = None

    def __post_init__(self) -> None:
        settle(self, n=whole("n", self.n, 1, what=DRAWS))
        if self.sft_weight is not None:
            what = "None is for equal terms, else it"
            settle(self, sft_weight=number("sft_weight", self.sft_weight, least=0, most=1, what=what))

    @property
    def needs_draws(self) -> int:
        """N of them make one example."""
        return self.n

    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
        """Return the best and the worst of each N draws."""
        pairs = np.stack([best_of_n(rewards, self.n), best_of_n(-rewards, self.n)], axis=2)
        return np.repeat(np.arange(len(pairs)), pairs.shape[1]), pairs.reshape(-1, 2)

    def balanced(self, best_ref_log_probs: ArrayLike) -> Bonbon:
        """Return it with a weight, if it has none yet.

        Args:
            best_ref_log_probs: log π of the best draws it learns from, nats, of any shape.
        """
        if self.sft_weight is not None:
            return self
        gap = losses.bonbon_target(self.n) ** 2  # the second term at the reference, whatever the pair
        return replace(self, sft_weight=gap / (gap - float(np.asarray(best_ref_log_probs).mean())))

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """Return a NLL(best) + (1−a) (Δθ − Δπ − t_n)²."""
        if self.sft_weight is None:
            raise ValueError("sft_weight is None; give one, or let `balanced` find it")
        return losses.bonbon(*log_probs.T, *ref_log_probs.T, n=self.n, sft_weight=self.sft_weight)


@dataclass(frozen=True)
class Dpo:
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

    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
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
        return np.concatenate(prompts), np.concatenate(pairs)

    def loss(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """Return −log σ(β (Δθ − Δπ)), or IPO's (Δθ − Δπ − 1/2β)²."""
        function = losses.ipo if self.identity else losses.dpo
        return function(*log_probs.T, *ref_log_probs.T, beta=self.beta)


class Entry(NamedTuple):
    """A method as the command line and the tables know it.

    Attributes:
        make: its settings, from the number of its setting, and other fields by name.
        setting: what that number is called: "n" (draws), "beta" (KL coefficient), "every" (steps between two moves of
            the anchor) or "rate" (η of the anchor).
        algorithm: "rloo", "ppo", "offline" or "bond".
        decides: the fields that this number decides, if they have other names.
    """

    make: Any
    setting: str
    algorithm: str
    decides: tuple[str, ...] = ()


METHODS = {
    "bon-sft": Entry(BonSft, "n", "offline"),
    "dpo": Entry(Dpo, "beta", "offline"),
    "bonbon": Entry(Bonbon, "n", "offline"),
    "kl-rl-ppo": Entry(KlRl, "beta", "ppo"),
    "kl-rl-rloo": Entry(KlRl, "beta", "rloo"),
    "vbon": Entry(Vbon, "n", "rloo"),
    "vbon-bound": Entry(VbonBound, "n", "rloo"),
    "bond": Entry(Bond, "n", "bond"),
    "bond-iterative": Entry(iterative_bond, "every", "bond", ("anchor_every", "anchor_rate")),
    "jbond": Entry(jbond, "rate", "bond", ("anchor_rate",)),
}
