"""Methods that learn from stored draws of the reference, and how."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.draws.store import Draws
from bonlib.exact import Array, Outcomes
from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import response_log_probs
from bonlib.models.responses import concatenate
from bonlib.training.learner import Indices, Learner, OngoingRun, PromptTokens, Rounds, Shard, TrainingMethod, summed

Picks = Literal["groups", "weights"]


class Examples(NamedTuple):
    """What a method learns from: E examples, each of one draw of a prompt, or of two.

    Attributes:
        prompts: which prompt each has, shape (E,).
        draws: and which of its draws, shape (E, 1) or (E, 2).
        weights: how often each is learned from, relative to others, above 0, shape (E,); None for all alike.
        targets: what the loss is told of each, shape (E,); None if nothing.
    """

    prompts: Indices
    draws: Indices
    weights: Array | None = None
    targets: Array | None = None


@dataclass(frozen=True)
class OffPolicy(TrainingMethod):
    """A method that learns from draws of the reference."""

    @property
    @abstractmethod
    def needs_draws(self) -> int:
        """How many draws a prompt it needs."""

    @abstractmethod
    def examples(self, rewards: Array, *, seed: int) -> Examples:
        """Choose what to learn from.

        Args:
            rewards: of the draws of each prompt, shape (P, M).
            seed: of random choices.
        """

    def known(self, outcomes: Outcomes) -> tuple[Array, Array] | None:
        """Return what examples with targets are like if there is every draw, and the rewards' law is known.

        Args:
            outcomes: the reference and its rewards.

        Returns:
            The chance of each outcome to be an example, and its target, shape (K,) each; None if there are no targets.
        """
        return None

    def balanced(self, ref_log_probs: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Return the method with what it takes from its examples, if it takes anything.

        Args:
            ref_log_probs: log π of the first draw of each example, nats, of any shape.
            weights: of the examples, of that shape; None for all alike.
        """
        return self

    @abstractmethod
    def loss(self, log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the loss of each example, shape (B,), from log-probabilities of shape (B, 1) or (B, 2).

        Args:
            log_probs: log πθ of its draws.
            ref_log_probs: log π of them.
            targets: of the examples, shape (B,), where they have any.
        """

    def learner(self, run: OngoingRun) -> OffPolicyLearner:
        """Return what learns by this method."""
        return OffPolicyLearner(self, run)


def loss_on_draws(method: OffPolicy, policy: LoadedModel, draws: Draws, rewards: Array, *, seed: int = 0) -> Array:
    """Return a method's mean loss over stored draws of each prompt, (P,), nats: of draws held out, to compare policies.

    On the draws that a policy learns from the loss also falls while it learns them by heart.

    Args:
        method: whose examples these draws become.
        policy: a causal language model that learned by it.
        draws: of the reference, M to each of P prompts.
        rewards: of the draws, shape (P, M).
        seed: of the method's random choices.

    Raises:
        ValueError: if there is not one reward a draw, or a prompt has no example.
    """
    if np.shape(rewards) != draws.log_probs.shape:
        raise ValueError(
            f"rewards has shape {np.shape(rewards)} for draws of {draws.log_probs.shape}; give one for each"
        )
    prompts, chosen, weights, targets = method.examples(rewards, seed=seed)
    weights = np.ones(len(prompts)) if weights is None else weights
    total = np.bincount(prompts, weights, len(rewards))
    if not (total > 0).all():
        raise ValueError(
            f"draws has no example of prompt {draws.prompts[int(total.argmin())]!r} for {method}; draw more, or leave "
            "that prompt out"
        )
    method = method.balanced(draws.log_probs[prompts, chosen[:, 0]], weights)
    pairs = [(prompt, draw) for prompt, of_one in zip(prompts, chosen, strict=True) for draw in of_one]
    responses = concatenate([draws.responses[prompt][[draw]] for prompt, draw in pairs])
    read = response_log_probs(policy, [draws.prompts[prompt] for prompt, _ in pairs], responses)
    mine, reference = (torch.from_numpy(values).view(chosen.shape) for values in (read, responses.log_probs))
    losses = method.loss(mine, reference, None if targets is None else torch.from_numpy(targets)).numpy()
    return np.bincount(prompts, weights * losses, len(rewards)) / total


def resampled(weights: Array, count: int, rng: np.random.Generator) -> Indices:
    """Return `count` places by their weights, (M,): evenly spaced, so that each comes as often as it can."""
    upto = np.cumsum(weights)
    return np.searchsorted(upto / upto[-1], (np.arange(count) + rng.random()) / count, side="right")


class WeightedRounds(Rounds):
    """An endless row of things, each as often as its weight says among the `count` of a round."""

    def __init__(self, weights: Array, seed: int) -> None:
        super().__init__(len(weights), seed)
        self.weights = weights

    def ordered(self, rng: np.random.Generator) -> Indices:
        """Return the things of a round in a random order."""
        return rng.permutation(resampled(self.weights, self.count, rng))


@dataclass(eq=False)
class OffPolicyShard(Shard):
    """Stored draws, with the targets of their examples where these have any, shape (E,)."""

    targets: Tensor | None = None


class OffPolicyLearner(Learner[OffPolicyShard]):
    """Minimises a method's loss over stored draws of the reference."""

    def __init__(self, method: OffPolicy, run: OngoingRun) -> None:
        settings, self.tokens = run.settings, PromptTokens(run.reference, run.data)
        self.draws, rewards, self.learned_from = run.data.scored_draws(method.needs_draws, method)
        self.examples = method.examples(rewards, seed=settings.seed)
        prompts, draws, weights, _ = self.examples
        if not len(prompts):
            raise ValueError(f"{method} finds no example in the draws: are all rewards of a prompt equal?")
        self.method = method.balanced(self.draws.log_probs[prompts, draws[:, 0]], weights)
        seed = settings.seed
        self.rounds = Rounds(len(prompts), seed) if weights is None else WeightedRounds(weights, seed)
        self.responses = settings.prompts * settings.group
        self.step_size = self.responses // draws.shape[1]  # examples
        self.shard_size = self.step_size // settings.shards

    def shard(self, step: int, place: int) -> OffPolicyShard:
        """Take the next examples."""
        prompts, draws, _, targets = self.examples
        chosen = self.rounds.at(step * self.step_size + place * self.shard_size, self.shard_size)
        pairs = [(prompts[example], draw) for example in chosen for draw in draws[example]]
        names = [self.draws.prompts[prompt] for prompt, _ in pairs]
        batch = self.tokens.batch(names, [self.draws.responses[p].token_ids[d].tolist() for p, d in pairs])
        reference = torch.tensor([self.draws.responses[p].log_probs[d] for p, d in pairs])
        told = None if targets is None else torch.from_numpy(targets[chosen])
        return OffPolicyShard(batch, names, reference.view(-1, draws.shape[1]), figures={}, targets=told)

    def loss(self, shard: OffPolicyShard, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the method's mean loss."""
        return self.method.loss(summed(log_probs).view_as(shard.reference), shard.reference, shard.targets).mean()
