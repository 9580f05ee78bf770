"""BoN by tokens: at each prefix of stored draws, several next tokens are learned by what they promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bonlib.checks import check_finite, number, settle, whole
from bonlib.estimates import best_of_n_weights
from bonlib.methods.registry import register
from bonlib.models.reading import response_logits
from bonlib.training.learner import Learner, OngoingRun, PromptTokens, Rounds, Shard, TrainingMethod
from bonlib.training.prefix_values import PrefixReader, PrefixRecipe, PrefixValues, fit_prefix_values


def next_token_loss(log_probs: Tensor, ref_log_probs: Tensor, values: Tensor) -> Tensor:
    """Return Σ_a w_a log [w_a πθ(S)/πθ(a)] over each set S of next tokens, shape (…), where w ∝ π e^V sums to one in S.

    V(a) is log E[F≤^(n−1)] over the ways in which the reference goes on after a. In the optimum of vBoN's L, which is
    best-of-n where no rewards tie, the next token has the law π e^V, normalised. So that policy has no loss, however
    the sets are chosen, and the chance of a set, which nobody has to know, drops out.

    Args:
        log_probs: log πθ of the tokens of each set after its prefix, shape (…, K).
        ref_log_probs: log π of them, shape (…, K).
        values: V of the prefix with each of them, nats, shape (…, K).

    Raises:
        ValueError: if shapes differ or a number is not finite.

    Source: derived here; the backward recursion of KL-regularised control, on sampled successors.
    """
    if not log_probs.shape == ref_log_probs.shape == values.shape or log_probs.ndim < 1:
        raise ValueError(
            f"log_probs has shape {tuple(log_probs.shape)}, ref_log_probs {tuple(ref_log_probs.shape)} and values "
            f"{tuple(values.shape)}; all must be (…, K)"
        )
    check_finite(log_probs=log_probs, ref_log_probs=ref_log_probs, values=values)
    aim = (ref_log_probs + values).log_softmax(-1)
    return (aim.exp() * (aim - log_probs.log_softmax(-1))).sum(-1)


def some_of(log_probs: Tensor, taken: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return sets of tokens: the one that was taken, and others drawn without replacement.

    Args:
        log_probs: of all tokens, (N, V).
        taken: one token a set, (N,).
        count: tokens of a set; all, if there are fewer.
        generator: of the draws.

    Returns:
        Shape (N, count).
    """
    noise = -torch.rand(log_probs.shape, generator=generator).log().neg().log().to(log_probs.device)  # Gumbel's
    return (log_probs + noise).scatter(1, taken[:, None], torch.inf).topk(min(count, log_probs.shape[1]), 1).indices


@dataclass(frozen=True)
class BonTokens(TrainingMethod):
    """BoN by tokens: a value of prefixes tells what next tokens promise, and the policy learns many at each prefix.

    The figure `asked` of the curve says how far the values want the policy to go. Where they are right it is about the
    KL of best-of-n, log n − (n−1)/n; a multiple of that means that they were fitted to too little, and lead astray.

    Attributes:
        n: number of draws.
        choices: next tokens at each prefix.
        best: share of the stored draws, whose prefixes are learned at, that are best-of-n responses, by the weights of
            `best_of_n_weights`; the others are any draws.
        value_draws: stored draws a prompt that the values are fitted to, as far as there are so many.
        value_steps: of that fit.
    """

    n: int
    choices: int = 16
    best: float = 0.5
    value_draws: int = PrefixRecipe.draws
    value_steps: int = PrefixRecipe.steps

    def __post_init__(self) -> None:
        settle(
            self,
            n=whole("n", self.n, 1, what="the number of draws"),
            choices=whole("choices", self.choices, 2, what="the number of next tokens"),
            best=number("best", self.best, least=0, most=1, what="a share of the draws, it"),
            value_draws=whole("value_draws", self.value_draws, 2),
            value_steps=whole("value_steps", self.value_steps, 1),
        )

    @property
    def needs_draws(self) -> int:
        """Enough for a best, and for values."""
        return max(self.n, 2)

    def learner(self, run: OngoingRun) -> BonTokensLearner:
        """Return what fits the values, and then learns by them."""
        return BonTokensLearner(self, run)


@dataclass(eq=False)
class NextTokensShard(Shard):
    """Stored draws with other tokens `instead` of theirs; `reference` is log π of these, (B, T, K).

    Attributes:
        values: of the prefixes that end with them, (B, T, K).
    """

    values: Tensor


class BonTokensLearner(Learner[NextTokensShard]):
    """Fits values of prefixes to stored draws, and brings the policy's next tokens to what they promise."""

    def __init__(self, method: BonTokens, run: OngoingRun) -> None:
        self.method, self.settings, self.reference = method, run.settings, run.reference
        self.tokens = PromptTokens(run.reference, run.data)
        self.draws, self.rewards, self.learned_from = run.data.scored_draws(method.needs_draws, method)
        self.rounds = Rounds(len(self.draws.prompts), run.settings.seed)
        self.responses = run.settings.prompts * run.settings.group
        self.chances = best_of_n_weights(self.rewards, method.n)
        self.reader = PrefixReader(run.reference, run.data.reward_model, self.draws.prompts, self.rewards)

    @cached_property
    def values(self) -> PrefixValues:
        """The values, fitted when the first step asks for them: a finished run is loaded without."""
        recipe = PrefixRecipe(draws=self.method.value_draws, steps=self.method.value_steps)
        return fit_prefix_values(self.reader, self.tokens, self.draws, self.rewards, self.method.n, recipe)

    @torch.no_grad()
    def shard(self, step: int, place: int) -> NextTokensShard:
        """Take stored draws, and find out what other next tokens would promise at each of their prefixes."""
        settings, rng = self.settings, np.random.default_rng([self.settings.seed, step, place])
        count = self.responses // settings.shards
        rows = self.rounds.at(step * self.responses + place * count, count)
        draws = [self._one(row, rng) for row in rows]
        names = [self.draws.prompts[row] for row in rows]
        stored = [self.draws.responses[row].token_ids[draw].tolist() for row, draw in zip(rows, draws, strict=True)]
        batch = self.tokens.batch(names, stored)
        real = batch.response_mask.bool()
        log_probs = response_logits(self.reference.model, batch).logits.log_softmax(-1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        chosen = some_of(log_probs, batch.responses[real], self.method.choices, generator)
        batch = replace(batch, instead=_placed(chosen, real))
        with torch.autocast(self.reference.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            known = self.reader.next(names, batch)
        values, reference = self.values(known), _placed(log_probs.gather(1, chosen), real)
        shard = NextTokensShard(batch, names, reference, figures={}, values=values)
        shard.figures = {"asked": float(self.loss(shard, reference, None))}  # of the reference: all there is to learn
        return shard

    def _one(self, row: int, rng: np.random.Generator) -> int:
        chances = self.chances[row] if rng.random() < self.method.best else None
        return int(rng.choice(self.rewards.shape[1], p=chances))

    def loss(self, shard: NextTokensShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean over responses of what their prefixes lose together."""
        of_prefixes = next_token_loss(log_probs, shard.reference, shard.values)
        return (of_prefixes * shard.batch.response_mask).sum(1).mean()


def _placed(found: Tensor, real: Tensor) -> Tensor:
    """What was found at each real token, (N, K), as (B, T, K), 0 in padding."""
    return found.new_zeros(*real.shape, found.shape[1]).index_put((real,), found)


register(
    name="bon-tokens",
    make=BonTokens,
    setting="n",
    algorithm="offline",
    label="BoN by tokens",
    colour="#d62728",
    marker="$T$",
    grid=(2, 8, 32, 128, 512),
    samples="stored draws, half of them best of N; at each of their prefixes 16 next tokens, judged by a value of "
    "prefixes that is fitted to the stored draws",
    objective="`next_token_loss`: KL from π e^V over the next tokens, V = log E[F≤^(N−1)]",
    source="derived here",
    place=17,
)
