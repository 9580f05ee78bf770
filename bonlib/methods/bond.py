"""BOND: the Jeffreys divergence from best-of-n of the reference, or of an anchor that follows the policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.checks import LOG_PROB_SLACK, check_log_probs, check_shapes, flag, number, one_of, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array
from bonlib.methods.bon_sft import nll
from bonlib.methods.registry import register
from bonlib.models.reading import TokenBatch
from bonlib.training.gradients import reinforce_loss
from bonlib.training.learner import Indices, OngoingRun, Shard, summed
from bonlib.training.off_policy import Picks, resampled
from bonlib.training.on_policy import DrawnShard, Judged, OnPolicy, OnPolicyLearner
from bonlib.training.policy import Policy
from bonlib.training.reward_cdf import LogCdf, SampledCdf


def bond_return(
    log_probs: Tensor, ref_log_probs: Tensor, log_cdf: Tensor, *, n: float, log_strict_cdf: Tensor | None = None
) -> Tensor:
    """Return r_BOND − β (log πθ − log π), where β = 1/(n−1) and r_BOND = log F≤ + log B/(n−1).

    B is the sum of (F/F≤)^(i−1) over i = 1 … n. With it n−1 times the return is log π_n − log πθ, and the optimum
    best-of-n; without it, as the paper trains, the optimum is π F≤^(n−1), normalised, which is that of vBoN's L.

    Args:
        log_probs: log πθ(y) of the responses, shape (B,), summed over tokens.
        ref_log_probs: log π(y) under the reference, or the anchor in its place, shape (B,).
        log_cdf: log F≤(y) among that policy's rewards, shape (B,); finite.
        n: number of draws, real, above 1.
        log_strict_cdf: log F(y), shape (B,), at most `log_cdf`; −inf for the worst response. None leaves out B.

    Raises:
        ValueError: if shapes differ, a number is NaN, a log-probability is positive, F is above F≤, or `n` is not
            above 1.

    Source: Sessa et al. (BOND), Eqs. 8, 9 and 15, where the text after Eq. 15 lost the logarithm of F≤.
    """
    check_log_probs(log_probs=log_probs, ref_log_probs=ref_log_probs, log_cdf=log_cdf)
    number("n", n, above=1, what="BOND's β is 1/(n−1): n")
    reward = log_cdf
    if log_strict_cdf is not None:
        check_log_probs(log_cdf=log_cdf, log_strict_cdf=log_strict_cdf)
        gap = log_cdf - log_strict_cdf
        if bool((gap < -LOG_PROB_SLACK).any()):
            raise ValueError("log_strict_cdf is above log_cdf; the strict F is at most F≤")
        tiny = gap < torch.finfo(gap.dtype).eps
        safe = gap.masked_fill(tiny, 1.0)
        log_b = torch.where(tiny, math.log(n), torch.log(torch.expm1(-n * safe) / torch.expm1(-safe)))
        reward = reward + log_b / (n - 1)
    return reward - (log_probs - ref_log_probs) / (n - 1)


def jeffreys_loss(best: Tensor, log_probs: Tensor, advantages: Tensor, *, n: float, jeffreys_weight: float) -> Tensor:
    """Return (1−w) · NLL(best) + w (n−1) · REINFORCE, whose gradient is that of (1−w) KL(π_n ‖ πθ) + w KL(πθ ‖ π_n).

    Args:
        best: log πθ of best-of-n responses, shape (B,), summed over tokens.
        log_probs: log πθ of responses drawn from πθ, shape (B,). They need not belong to the same prompts as `best`.
        advantages: their `bond_return` (or `jbond_return`), less a baseline, shape (B,).
        n: number of draws. `bond_return` is the reverse divergence over n−1, a factor that matters in a mixture.
        jeffreys_weight: weight w of the reverse part, from 0 (likelihood alone) to 1; the paper's β.

    Raises:
        ValueError: if shapes differ, an advantage is not finite, a log-probability is NaN or positive, or another
            argument is out of range.

    Source: Sessa et al. (BOND), Eqs. 11, 13 and 15.
    """
    check_shapes(log_probs=log_probs, best=best)
    number("n", n, least=1, what="the number of draws")
    number("jeffreys_weight", jeffreys_weight, least=0, most=1, what="the weight of the reverse divergence")
    return (1 - jeffreys_weight) * nll(best) + jeffreys_weight * (n - 1) * reinforce_loss(log_probs, advantages)


def best_of_subsets(rewards: Array, n: int, count: int, rng: np.random.Generator) -> Indices:
    """Return `count` times the best of n random ones of the draws of each prompt, whose rewards are (P, M): (P, count).

    Each is a draw of best-of-n, though those of one prompt depend on each other.
    """
    chosen = np.stack([[rng.permutation(row.size)[:n] for _ in range(count)] for row in rewards])
    places = np.take_along_axis(rewards[:, None, :], chosen, axis=2).argmax(axis=2)
    return np.take_along_axis(chosen, places[..., None], axis=2)[..., 0]


@dataclass(frozen=True, kw_only=True)
class Anchored(OnPolicy):
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
        settle(
            self,
            jeffreys_weight=number("jeffreys_weight", self.jeffreys_weight, least=0, most=1),
            anchor_rate=number("anchor_rate", self.anchor_rate, least=0, most=1),
            anchor_every=whole("anchor_every", self.anchor_every, 1, what="the number of steps"),
            regulariser=number("regulariser", self.regulariser),
        )

    def eased(self, part: float) -> Self:
        """Refuse: likelihood of best-of-n holds the policy to good responses, and it knows whole n only."""
        if part < 1:
            raise ValueError(f"easing is on; {self} has whole draws only: leave it at 0")
        return self

    def learner(self, run: OngoingRun) -> BondLearner:
        """Return what learns from the anchor's best responses and from the policy's own."""
        return BondLearner(self, run)

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
        picks: how best-of-n responses are taken from these: "weights", by their chances to be the best of n random
            ones, evenly spaced from the worst to the best; or "groups", each the best of n of them, with more noise.
    """

    n: int
    term_b: bool = False
    anchor_draws: int = 16
    picks: Picks = "weights"
    late: ClassVar[Mapping[str, Any]] = {"picks": "groups"}

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            n=whole("n", self.n, 2, what="BOND learns from the best of n draws: n"),
            term_b=flag("term_b", self.term_b),
            anchor_draws=whole("anchor_draws", self.anchor_draws, 1),
        )
        one_of("picks", self.picks, get_args(Picks))
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

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log F≤ (+ log B/(n−1)) − (log πθ − log π)/(n−1)."""
        if self.term_b:
            log_strict, log_tied = judged.log_strict_and_tied(cdf)
            log_cdf = torch.logaddexp(log_strict, log_tied)
        else:
            log_strict, log_cdf = None, judged.log_weak(cdf)
        return bond_return(judged.log_probs, judged.ref_log_probs, log_cdf, n=self.n, log_strict_cdf=log_strict)


def iterative_bond(every: int, *, n: int = 2, anchor_draws: int = 8, **options: Any) -> Bond:
    """Return BOND with n draws, whose anchor becomes the policy every so many steps."""
    return Bond(n, anchor_rate=1.0, anchor_every=every, anchor_draws=anchor_draws, **options)


@dataclass(eq=False, kw_only=True)
class BondShard(DrawnShard):
    """Responses of the policy, and best-of-n responses.

    Attributes:
        best: as many best-of-n responses to the same prompts.
        drifts: how much more each response's log πθ − log π_anchor is than expected, (B,).
    """

    best: TokenBatch
    drifts: Tensor


class BondLearner(OnPolicyLearner[BondShard]):
    """Descends the Jeffreys divergence from best-of-n: of the reference, from stored draws, or of an anchor's."""

    method: Any  # a Bond or a JBond: both have n, anchor_draws and picks, as a field or for good

    def __init__(self, method: Anchored, run: OngoingRun) -> None:
        super().__init__(method, run)
        if run.settings.ppo is not None:
            raise ValueError(f"ppo is {run.settings.ppo}; {method} is trained by REINFORCE: leave it at None")
        self.eased(0)  # refuses easing at once
        self.anchor, self.reader = run.anchor, Policy(run.loaded.model)
        if self.anchor is not None:
            self.responses += self.settings.prompts * self.method.anchor_draws
            return
        draws, self.stored_rewards, fingerprint = self.data.scored_draws(self.method.n, method)
        self.stored_tokens = [responses.token_ids for responses in draws.responses]
        self.learned_from = f"{self.learned_from} {fingerprint}"

    def shard(self, step: int, place: int) -> BondShard:
        """Draw responses from the policy, find best-of-n responses of the anchor, and say what the former are worth."""
        settings, chosen = self.settings, self.chosen(step, place)
        judged, _, own, reference = self.drawn(step, place)
        if self.anchor is None:
            seen, cdf = judged, self.data.cdf
            rewards, answers = self.stored_rewards[chosen], [self.stored_tokens[i] for i in chosen]
        else:
            seen, rewards, answers = self.ask_anchor(judged, own, chosen, [step, place])
            rows = dict(zip([self.data.prompts[i] for i in chosen], rewards, strict=True))  # a prompt may come twice
            cdf = SampledCdf(list(rows), np.stack(list(rows.values())))
        returns = self.method.returns(seen, cdf)
        rng = np.random.default_rng([settings.seed, step, place, 2])
        if self.method.picks == "weights":
            order, weights = np.argsort(rewards, axis=1), best_of_n_weights(rewards, self.method.n)
            ranked = np.take_along_axis(weights, order, axis=1)
            spaced = np.stack([resampled(row, settings.group, rng) for row in ranked])
            best = np.take_along_axis(order, spaced, axis=1)
        else:
            best = best_of_subsets(rewards, self.method.n, settings.group, rng)
        learned = [answers[row][draw].tolist() for row, draws in enumerate(best) for draw in draws]
        return BondShard(
            own,
            judged.prompts,
            reference,
            self.figures(judged, returns),
            returns,
            self.centred(returns),
            best=self.tokens.batch(judged.prompts, learned),
            drifts=self.centred(judged.log_probs - seen.ref_log_probs),
        )

    def ask_anchor(
        self, judged: Judged, own: TokenBatch, chosen: Sequence[int], place: Sequence[int]
    ) -> tuple[Judged, Array, list[NDArray[np.int32]]]:
        """Draw from the anchor.

        Args:
            judged: responses of the policy.
            own: the same as tokens.
            chosen: places of their prompts, P.
            place: of the shard.

        Returns:
            The policy's responses with the anchor in the reference's place; rewards of the anchor's own, (P, draws),
            and these as tokens, (draws, T) a prompt.
        """
        assert self.anchor is not None
        count, group = self.method.anchor_draws, self.settings.group
        with self.anchor.in_place():
            drawn, tokens = self.answers(chosen, count, [*place, 1])
            log_probs = summed(self.reader.read(own))
        rewards = drawn.rewards.view(len(chosen), count)
        seen = judged._replace(ref_log_probs=log_probs, anchor_rewards=rewards.repeat_interleave(group, dim=0))
        return seen, rewards.numpy(), list(np.array(tokens, np.int32).reshape(len(chosen), count, -1))

    def parts(self, shard: BondShard) -> Sequence[Shard]:
        """Return the policy's own responses and the best-of-n ones: together they would need twice the memory."""
        return [shard, Shard(shard.best, shard.prompts, shard.reference, shard.figures)]

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the gradient of the divergence and of the regulariser, the share of a part."""
        method, told = self.method, log_probs.sum(1)
        weights = {"n": method.n, "jeffreys_weight": method.jeffreys_weight}
        nothing = torch.zeros_like(told)  # in the place of the other part, which has a loss of its own
        if not isinstance(shard, BondShard):
            return jeffreys_loss(told, nothing, nothing, **weights).mean()
        divergence = jeffreys_loss(nothing, told, shard.advantages, **weights)
        return (divergence + method.regulariser * reinforce_loss(told, -shard.drifts)).mean()

    def stepped(self, steps: int) -> None:
        """Move the anchor, if it is time."""
        if self.anchor is not None and self.method.moves_after(steps):
            self.anchor.move(self.method.anchor_rate)


register(
    name="bond",
    make=Bond,
    setting="n",
    algorithm="bond",
    label="BOND",
    colour="#4b0092",
    marker="p",
    grid=(2, 4, 8, 32, 128),
    samples="4 responses a prompt from the policy, and 4 stored draws by their chance to be the best of N; "
    "M stored draws for F̂",
    objective="`jeffreys_loss`: (1−w) `nll`(best) + w (N−1) `reinforce_loss`, with `bond_return`: "
    "log F̂≤ − (log πθ − log π)/(N−1)",
    source="Sessa et al., Eqs. 11–15",
    place=8,
)
register(
    name="bond-iterative",
    make=iterative_bond,
    setting="every",
    decides=("anchor_every", "anchor_rate"),
    algorithm="bond",
    label="BOND, iterative",
    colour="#9f7fd0",
    marker="h",
    grid=(200, 100, 67, 40, 25),
    samples="4 responses a prompt from the policy; 8 from the anchor, for F̂ and the best of 2",
    objective="`jeffreys_loss` with `bond_return`, both with the anchor in the place of π",
    source="Sessa et al., Algorithm 1",
    training={"decay": False},  # a target that moves would be stopped by it
    place=9,
)
