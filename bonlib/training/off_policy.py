"""Methods that learn from stored draws of the reference, and how."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.exact import Array
from bonlib.training.learner import Indices, Learner, OngoingRun, PromptTokens, Rounds, Shard, TrainingMethod, summed


@dataclass(frozen=True)
class OffPolicy(TrainingMethod):
    """A method that learns from draws of the reference."""

    @property
    @abstractmethod
    def needs_draws(self) -> int:
        """How many draws a prompt it needs."""

    @abstractmethod
    def examples(self, rewards: Array, *, seed: int) -> tuple[Indices, Indices]:
        """Choose what to learn from.

        Args:
            rewards: of the draws of each prompt, shape (P, M).
            seed: of random choices.

        Returns:
            Which prompt each example has, shape (E,), and which of its draws, shape (E, 1) or (E, 2).
        """

    def balanced(self, ref_log_probs: ArrayLike) -> Self:
        """Return the method with what it takes from its examples, if it takes anything.

        Args:
            ref_log_probs: log π of the first draw of each example, nats, of any shape.
        """
        return self

    @abstractmethod
    def loss(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        """Return the loss of each example, shape (B,), from log-probabilities of shape (B, 1) or (B, 2)."""

    def learner(self, run: OngoingRun) -> OffPolicyLearner:
        """Return what learns by this method."""
        return OffPolicyLearner(self, run)


class OffPolicyLearner(Learner[Shard]):
    """Minimises a method's loss over stored draws of the reference."""

    def __init__(self, method: OffPolicy, run: OngoingRun) -> None:
        settings, self.tokens = run.settings, PromptTokens(run.reference, run.data)
        self.draws, rewards, self.learned_from = run.data.scored_draws(method.needs_draws, method)
        self.examples = method.examples(rewards, seed=settings.seed)
        prompts, draws = self.examples
        if not len(prompts):
            raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
        self.method = method.balanced(self.draws.log_probs[prompts, draws[:, 0]])
        self.rounds = Rounds(len(prompts), settings.seed)
        self.responses = settings.prompts * settings.group
        self.step_size = self.responses // draws.shape[1]  # examples
        self.shard_size = self.step_size // settings.shards

    def shard(self, step: int, place: int) -> Shard:
        """Take the next examples."""
        prompts, draws = self.examples
        chosen = self.rounds.at(step * self.step_size + place * self.shard_size, self.shard_size)
        pairs = [(prompts[example], draw) for example in chosen for draw in draws[example]]
        names = [self.draws.prompts[prompt] for prompt, _ in pairs]
        batch = self.tokens.batch(names, [self.draws.responses[p].token_ids[d].tolist() for p, d in pairs])
        reference = torch.tensor([self.draws.responses[p].log_probs[d] for p, d in pairs])
        return Shard(batch, names, reference.view(-1, draws.shape[1]), figures={})

    def loss(self, shard: Shard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the method's mean loss."""
        return self.method.loss(summed(log_probs).view_as(shard.reference), shard.reference).mean()
