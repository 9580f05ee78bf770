"""Methods that learn token by token from values of prefixes: BoN regression, and vBoN's lower bound on policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bonlib.checks import check_finite, number, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.training.gradients import gae, reinforce_loss
from bonlib.training.learner import Learner, OngoingRun, PromptTokens, Rounds, Shard, TrainingMethod
from bonlib.training.on_policy import DrawnShard, Judged, OnPolicy, OnPolicyLearner
from bonlib.training.prefix_values import (
    PrefixReader,
    PrefixRecipe,
    fit_prefix_values,
    prompt_values,
    response_values,
    rises,
)
from bonlib.training.reward_cdf import LogCdf


def prefix_regression_loss(log_probs: Tensor, ref_log_probs: Tensor, value_rises: Tensor) -> Tensor:
    """Return Σ_t (log πθ − log π − ΔV)² of each response, shape (B,), which is 0 at the optimum of vBoN's L.

    V is log E[F≤^(n−1)] over the ways in which the reference goes on, so that without ties the rises of a response add
    up to log [n F≤^(n−1)]. Where V is known, the luck of a response's end does not reach its early tokens.

    Args:
        log_probs: log πθ of each token, shape (B, T), 0 in padding.
        ref_log_probs: log π of each token, shape (B, T), 0 in padding.
        value_rises: ΔV of each token, shape (B, T), 0 in padding.

    Raises:
        ValueError: if shapes differ or a number is not finite.

    Source: derived here; path consistency of Nachum et al. 2017, over one token, with best-of-n's values.
    """
    if not log_probs.shape == ref_log_probs.shape == value_rises.shape or log_probs.ndim != 2:
        raise ValueError(
            f"log_probs has shape {tuple(log_probs.shape)}, ref_log_probs {tuple(ref_log_probs.shape)} and value_rises "
            f"{tuple(value_rises.shape)}; all must be (B, T)"
        )
    check_finite(log_probs=log_probs, ref_log_probs=ref_log_probs, value_rises=value_rises)
    return (log_probs - ref_log_probs - value_rises).square().sum(1)


@dataclass(frozen=True)
class PrefixRegression(TrainingMethod):
    """BoN regression token by token, on stored draws.

    Attributes:
        n: number of draws.
        best: share of the examples that are best-of-n responses, by the weights of `best_of_n_weights`; the others are
            any draws. The optimum is the same for every share.
        value_draws: stored draws a prompt that the values are fitted to, as far as there are so many.
        value_steps: of that fit.
    """

    n: int
    best: float = 0.5
    value_draws: int = 64
    value_steps: int = 1500

    def __post_init__(self) -> None:
        settle(
            self,
            n=whole("n", self.n, 1, what="the number of draws"),
            best=number("best", self.best, least=0, most=1, what="a share of the examples, it"),
            value_draws=whole("value_draws", self.value_draws, 2),
            value_steps=whole("value_steps", self.value_steps, 1),
        )

    @property
    def needs_draws(self) -> int:
        """N of them make a best."""
        return max(self.n, 2)

    def learner(self, run: OngoingRun) -> PrefixLearner:
        """Return what fits the values, and then learns by them."""
        return PrefixLearner(self, run)


@dataclass(eq=False)
class PrefixShard(Shard):
    """Stored draws; `reference` is log π of each token, (B, T).

    Attributes:
        rises: of the value with each token, (B, T).
    """

    rises: Tensor


class PrefixLearner(Learner[PrefixShard]):
    """Fits values of prefixes to stored draws, and brings the policy's log-ratios to their rises."""

    def __init__(self, method: PrefixRegression, run: OngoingRun) -> None:
        self.method, self.settings = method, run.settings
        self.tokens = PromptTokens(run.reference, run.data)
        self.draws, self.rewards, self.learned_from = run.data.scored_draws(method.needs_draws, method)
        self.rounds = Rounds(len(self.draws.prompts), run.settings.seed)
        self.responses = run.settings.prompts * run.settings.group
        self.ends = response_values(self.rewards, method.n)
        self.begins, self.chances = prompt_values(self.ends), best_of_n_weights(self.rewards, method.n)
        self.reader = PrefixReader(run.reference, run.data.reward_model, self.draws.prompts, self.rewards)
        recipe = PrefixRecipe(draws=method.value_draws, steps=method.value_steps)
        self.values = fit_prefix_values(self.reader, self.tokens, self.draws, self.rewards, method.n, recipe)

    def shard(self, step: int, place: int) -> PrefixShard:
        """Take stored draws, and say by how much the value rises along them."""
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, step, place])
        count = settings.prompts // settings.shards
        rows = np.repeat(self.rounds.at(step * settings.prompts + place * count, count), settings.group)
        draws = np.array([self._one(row, rng) for row in rows])
        names = [self.draws.prompts[row] for row in rows]
        stored = [self.draws.responses[row].token_ids[draw].tolist() for row, draw in zip(rows, draws, strict=True)]
        batch = self.tokens.batch(names, stored)
        reference, features = self.reader.read(names, batch)
        with torch.no_grad():
            values = self.values(features)
        known = torch.from_numpy(self.begins[rows]), torch.from_numpy(self.ends[rows, draws])
        risen = rises(values, batch, *known)
        return PrefixShard(batch, names, reference, figures={}, rises=risen)

    def _one(self, row: int, rng: np.random.Generator) -> int:
        chances = self.chances[row] if rng.random() < self.method.best else None
        return int(rng.choice(self.rewards.shape[1], p=chances))

    def loss(self, shard: PrefixShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean squared difference of a response."""
        return prefix_regression_loss(log_probs, shard.reference, shard.rises).mean()


@dataclass(frozen=True)
class VbonByTokens(OnPolicy):
    """vBoN's lower bound L, with values of prefixes for a critic that is known before training.

    The value V of a prefix is log E[F≤^(n−1)] over the ways in which the reference goes on. At the optimum each token's
    log πθ − log π is the rise of V, so that what a token is paid, ΔV − (log πθ − log π), has no noise at all there.

    Attributes:
        n: number of draws.
        trace: λ, from 0 (a token answers for its own rise of V alone) to 1 (for all that follows: vBoN's L itself, with
            V for a baseline).
        value_draws: stored draws a prompt that the values are fitted to.
        value_steps: of that fit.
    """

    n: float
    trace: float = 0.0
    needs_cdf: ClassVar[bool] = True
    value_draws: int = 64
    value_steps: int = 1500

    def __post_init__(self) -> None:
        settle(
            self,
            n=number("n", self.n, least=1, what="the number of draws"),
            trace=number("trace", self.trace, least=0, most=1),
            value_draws=whole("value_draws", self.value_draws, 2),
            value_steps=whole("value_steps", self.value_steps, 1),
        )

    @property
    def needs_draws(self) -> int:
        """As many as its values are fitted to at least."""
        return 2

    def eased(self, part: float) -> VbonByTokens:
        """Refuse: the values are those of one n."""
        if part < 1:
            raise ValueError(f"easing is on; {self} has the values of one n only: leave it at 0")
        return self

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return (n−1) log F≤ − (log πθ − log π), what the tokens are paid together, but for the prompt's value."""
        return (self.n - 1) * judged.log_weak(cdf) - (judged.log_probs - judged.ref_log_probs)

    def learner(self, run: OngoingRun) -> VbonByTokensLearner:
        """Return what fits the values, and then learns by them."""
        return VbonByTokensLearner(self, run)


class VbonByTokensLearner(OnPolicyLearner[DrawnShard]):
    """Ascends vBoN's L by the policy gradient, token by token."""

    method: VbonByTokens

    def __init__(self, method: VbonByTokens, run: OngoingRun) -> None:
        super().__init__(method, run)
        self.policy = run.policy
        if run.settings.ppo is not None:
            raise ValueError(f"ppo is {run.settings.ppo}; {method} is trained by REINFORCE: leave it at None")
        self.eased(0)  # refuses easing at once
        draws, rewards, fingerprint = self.data.scored_draws(method.needs_draws, method)
        self.learned_from = f"{self.learned_from} {fingerprint}"
        self.reader = PrefixReader(run.reference, self.data.reward_model, draws.prompts, rewards)
        begins = prompt_values(response_values(rewards, method.n))
        self.begins = dict(zip(draws.prompts, begins.tolist(), strict=True))
        recipe = PrefixRecipe(draws=method.value_draws, steps=method.value_steps)
        self.values = fit_prefix_values(self.reader, self.tokens, draws, rewards, method.n, recipe)

    def shard(self, step: int, place: int) -> DrawnShard:
        """Draw responses, and say what each of their tokens is worth."""
        judged, _, batch, reference = self.drawn(step, place)
        figures = self.figures(judged, self.method.returns(judged, self.data.cdf))
        _, known = self.reader.read(judged.prompts, batch)
        with torch.no_grad():
            values, (log_probs, _) = self.values(known), self.policy(batch)
        ends = (self.method.n - 1) * judged.log_weak(self.data.cdf)
        begins = torch.tensor([self.begins[prompt] for prompt in judged.prompts])
        paid = rises(values, batch, begins, ends) - (log_probs - reference)
        still = torch.zeros_like(paid)  # the values are in the rises already
        advantages = gae(paid, still, batch.response_mask.sum(1), discount=1.0, trace=self.method.trace)
        return DrawnShard(batch, judged.prompts, reference, figures, paid.sum(1).cpu(), advantages)

    def loss(self, shard: DrawnShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return what descends along the policy gradient, a mean over responses."""
        real = shard.batch.response_mask.bool()
        return reinforce_loss(log_probs[real], shard.advantages[real].to(log_probs)).sum() / len(real)
