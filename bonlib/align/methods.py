"""What each method needs and does: one frozen dataclass a method, its settings as fields.

There are two kinds. An *on-policy* method draws from the policy while it learns and ascends E[return]; `returns` says
what a response is worth. An *off-policy* method learns from draws of the reference; `examples` says which of them, and
`loss` what is minimised. An `Anchored` method does both, and may take a moving anchor for its reference. All formulas
are those of `bonlib.losses`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib import losses
from bonlib.cdf import EmpiricalCdf, Smoothing
from bonlib.lm.samplers import best_of_n

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class LogCdf(Protocol):
    """Where a response's reward stands among those of the reference; each returns logarithms, shape (B,)."""

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return log F of each response."""
        ...

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return log F≤ of each response."""
        ...


class SampledCdf:
    """The reward CDF of each prompt, estimated from M samples of the reference.

    Args:
        prompts: P, all different.
        samples: rewards of M reference responses to each, shape (P, M).
        smoothing: as in `bonlib.cdf.EmpiricalCdf`.
        prior: likewise.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        samples: ArrayLike,
        smoothing: Smoothing = "posterior",
        *,
        prior: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        table = np.asarray(samples, dtype=np.float64)
        if table.ndim != 2 or len(table) != len(prompts):
            raise ValueError(
                f"samples has shape {table.shape} for {len(prompts)} prompts; it must be (prompts, samples)"
            )
        if len(set(prompts)) != len(prompts):
            raise ValueError(f"prompts has {len(prompts) - len(set(prompts))} repeated; all must be different")
        about = hashlib.sha256(json.dumps([list(prompts), smoothing, prior]).encode())
        about.update(table.tobytes())
        self.fingerprint = about.hexdigest()  # two runs with different estimates are different runs
        self._cdfs = {
            prompt: EmpiricalCdf(row, smoothing, prior=prior) for prompt, row in zip(prompts, table, strict=True)
        }

    def log_strict(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the estimate of log F of each response, shape (B,)."""
        return self._look_up(EmpiricalCdf.log_strict, prompts, rewards)

    def log_weak(self, prompts: Sequence[str], responses: Sequence[str], rewards: ArrayLike) -> Array:
        """Return the estimate of log F≤ of each response, shape (B,)."""
        return self._look_up(EmpiricalCdf.log_weak, prompts, rewards)

    def _look_up(
        self, function: Callable[[EmpiricalCdf, Array], Array], prompts: Sequence[str], rewards: ArrayLike
    ) -> Array:
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        given, found = np.asarray(rewards, dtype=np.float64), np.empty(len(prompts))
        for prompt, here in places.items():
            if prompt not in self._cdfs:
                raise ValueError(f"prompt {prompt!r} has no samples: draw some, or take it out")
            found[here] = function(self._cdfs[prompt], given[here])
        return found


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
        _check_beta(self.beta)

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
        _check_n(self.n)

    def eased(self, part: float) -> Vbon:
        """Return it with 1 + part (N − 1) draws."""
        return replace(self, n=1 + part * (self.n - 1))

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log π_N − log πθ."""
        about = (judged.prompts, judged.texts, judged.rewards.cpu().numpy())
        log_strict, log_weak = (
            torch.as_tensor(log_cdf(*about)).to(judged.ref_log_probs)
            for log_cdf in (_known(cdf).log_strict, _known(cdf).log_weak)
        )
        # An estimate may not know of the response itself, whose probability is known.
        log_gap = log_weak + torch.log(-torch.expm1(log_strict - log_weak))
        log_gap = torch.where(log_weak > log_strict, log_gap, -torch.inf)
        log_tied = torch.maximum(log_gap, judged.ref_log_probs)
        room = torch.log1p(-log_tied.exp().clamp(max=1 - 1e-12))  # above F, where an estimate may leave less
        log_strict = torch.minimum(log_strict, room)
        return losses.vbon_return(judged.log_probs, judged.ref_log_probs, log_strict, n=self.n, log_tied=log_tied)


@dataclass(frozen=True)
class VbonBound:
    """Variational best-of-N by its lower bound L: KL-RL with reward log F≤ (Amini et al., Theorem 2, weak CDF)."""

    n: float
    needs_cdf: ClassVar[bool] = True
    kl_coefficient: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_n(self.n)

    def eased(self, part: float) -> VbonBound:
        """Return it with 1 + part (N − 1) draws."""
        return replace(self, n=1 + part * (self.n - 1))

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return (N−1) log F≤ − (log πθ − log π)."""
        log_cdf = _known(cdf).log_weak(judged.prompts, judged.texts, judged.rewards.cpu().numpy())
        log_cdf_tensor = torch.as_tensor(log_cdf).to(judged.log_probs)
        return losses.vbon_bound_return(judged.log_probs, judged.ref_log_probs, log_cdf_tensor, n=self.n)


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """What BOND and J-BOND have in common: a Jeffreys divergence from best-of-n of an anchor, which may move.

    Attributes:
        jeffreys_weight: weight w of the reverse divergence KL(πθ ‖ π_n), by policy gradient; 1 − w is that of the
            forward one, by likelihood of best-of-n responses.
        anchor_rate: η, the share of the policy's weights that the anchor takes up when it moves; 1 copies them, and
            with 0 the anchor stays the reference.
        anchor_every: steps from one move to the next.
        regulariser: γ, weight of KL(πθ ‖ anchor). Algorithm 2 of the paper has its gradient with the other sign, which
            is that of a negative γ and drives the policy away.
    """

    jeffreys_weight: float = 0.5
    anchor_rate: float = 0.0
    anchor_every: int = 1
    regulariser: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jeffreys_weight", "anchor_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.anchor_every < 1 or self.anchor_every != int(self.anchor_every):
            raise ValueError(f"anchor_every is {self.anchor_every}; it must be a whole number of steps, at least 1")
        if not np.isfinite(self.regulariser):
            raise ValueError(f"regulariser is {self.regulariser}; it must be finite")

    def moves_after(self, steps: int) -> bool:
        """Return whether the anchor moves when so many steps are done."""
        return self.anchor_rate > 0 and steps % self.anchor_every == 0


@dataclass(frozen=True)
class Bond(Anchored):
    """Best-of-N distillation: the Jeffreys divergence from best-of-n, of the reference or of a moving anchor.

    Attributes:
        n: number of draws n, whole and at least 2.
        term_b: whether the return has the term log B, small and left out by the paper; with it the optimum of both
            divergences is best-of-n itself.
        anchor_draws: responses of a moving anchor a prompt and step, for its reward CDF and its best-of-n. A reference
            that stays has the stored draws.
    """

    n: int
    term_b: bool = False
    anchor_draws: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2 or self.n != int(self.n):
            raise ValueError(f"n is {self.n}; BOND learns from the best of a whole number of draws, at least 2")
        object.__setattr__(self, "n", int(self.n))
        if self.asks_anchor and self.anchor_draws < self.n:
            raise ValueError(f"anchor_draws is {self.anchor_draws}; the best of {self.n} needs as many at least")

    @property
    def asks_anchor(self) -> bool:
        """Whether the anchor has to draw while the policy learns."""
        return self.anchor_rate > 0

    @property
    def needs_cdf(self) -> bool:
        """Only if the anchor stays: the rewards of a moving one are estimated from its draws."""
        return not self.asks_anchor

    @property
    def kl_coefficient(self) -> float:
        """β = 1/(n−1)."""
        return 1 / (self.n - 1)

    def eased(self, part: float) -> Bond:
        """Refuse: likelihood of best-of-n holds the policy to good responses, and it knows whole n only."""
        return _not_eased(self, part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log F≤ (+ log B/(n−1)) − (log πθ − log π)/(n−1)."""
        about = (judged.prompts, judged.texts, judged.rewards.cpu().numpy())
        log_cdf = torch.as_tensor(_known(cdf).log_weak(*about)).to(judged.log_probs)
        log_strict = torch.as_tensor(_known(cdf).log_strict(*about)).to(judged.log_probs) if self.term_b else None
        return losses.bond_return(judged.log_probs, judged.ref_log_probs, log_cdf, n=self.n, log_strict_cdf=log_strict)


@dataclass(frozen=True)
class JBond(Anchored):
    """J-BOND: best-of-2 of a slowly moving anchor, with log F≤ guessed from two of its responses."""

    n: ClassVar[int] = 2
    needs_cdf: ClassVar[bool] = False
    kl_coefficient: ClassVar[float] = 1.0
    asks_anchor: ClassVar[bool] = True
    anchor_draws: ClassVar[int] = 2
    anchor_rate: float = field(default=0.02, kw_only=True)

    def eased(self, part: float) -> JBond:
        """Refuse: its pull is that of two draws."""
        return _not_eased(self, part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return r_J − (log πθ − log π_anchor)."""
        if judged.anchor_rewards is None:
            raise ValueError("judged has no anchor_rewards; J-BOND compares with two responses of the anchor")
        return losses.jbond_return(judged.log_probs, judged.ref_log_probs, judged.rewards, judged.anchor_rewards)


@dataclass(frozen=True)
class BonSft:
    """Likelihood of best-of-N samples: of every N draws of a prompt, the best is learned (the forward KL)."""

    n: int

    def __post_init__(self) -> None:
        _check_n(self.n)

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
        _check_n(self.n)
        if self.sft_weight is not None and not 0 <= self.sft_weight <= 1:
            raise ValueError(f"sft_weight is {self.sft_weight}; it must be from 0 to 1, or None for equal terms")

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
        _check_beta(self.beta)
        possible = self.generations * (self.generations - 1) // 2
        if not 1 <= self.pairs <= possible:
            raise ValueError(f"pairs is {self.pairs}; {self.generations} generations make 1 to {possible}")

    @property
    def needs_draws(self) -> int:
        """As many as its generations."""
        return self.generations

    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
        """Return chosen and rejected draws; a pair with equal rewards says nothing and is left out."""
        rng = np.random.default_rng(seed)
        first, second = np.triu_indices(self.generations, 1)
        prompts, pairs = [], []
        for prompt, row in enumerate(rewards):
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


def iterative_bond(every: float, *, n: int = 2, anchor_draws: int = 8, **options: Any) -> Bond:
    """Return BOND with n draws, whose anchor becomes the policy every so many steps."""
    return Bond(n, anchor_rate=1.0, anchor_every=int(every), anchor_draws=anchor_draws, **options)


def jbond(rate: float, **options: Any) -> JBond:
    """Return J-BOND with an anchor that takes up this share of the policy's weights at each move."""
    return JBond(anchor_rate=rate, **options)


class Entry(NamedTuple):
    """A method as the command line and the tables know it.

    Attributes:
        make: its settings, from the number that regularises it, and other fields by name.
        setting: what that number is called: "n" (draws), "beta" (KL coefficient), "every" (steps between two moves of
            the anchor) or "rate" (η of the anchor).
        algorithm: "rloo", "ppo", "offline" or "bond".
    """

    make: Any
    setting: str
    algorithm: str


METHODS = {
    "bon-sft": Entry(BonSft, "n", "offline"),
    "dpo": Entry(Dpo, "beta", "offline"),
    "bonbon": Entry(Bonbon, "n", "offline"),
    "kl-rl-ppo": Entry(KlRl, "beta", "ppo"),
    "kl-rl-rloo": Entry(KlRl, "beta", "rloo"),
    "vbon": Entry(Vbon, "n", "rloo"),
    "vbon-bound": Entry(VbonBound, "n", "rloo"),
    "bond": Entry(Bond, "n", "bond"),
    "bond-iterative": Entry(iterative_bond, "every", "bond"),
    "jbond": Entry(jbond, "rate", "bond"),
}


def _known(cdf: LogCdf | None) -> LogCdf:
    if cdf is None:
        raise ValueError("cdf is None; vBoN needs the reward's distribution: give a SampledCdf of reference samples")
    return cdf


def _not_eased(method: Any, part: float) -> Any:
    if part < 1:
        raise ValueError(f"easing is on; {method} has whole draws only: leave it at 0")
    return method


def _check_n(n: float) -> None:
    if not 1 <= n < np.inf:
        raise ValueError(f"n is {n}; the number of draws must be finite and at least 1")


def _check_beta(beta: float) -> None:
    if not 0 < beta < np.inf:
        raise ValueError(f"beta is {beta}; it must be positive and finite")
