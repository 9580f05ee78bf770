"""What the loop, a method and its learner ask of each other.

The loop asks the method for a learner, the learner for the shards of a step, lets it weigh them all together, and then
has the policy read their parts one by one, and asks for the loss of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.models.loaded import LoadedModel
from bonlib.models.reading import TokenBatch, token_batch
from bonlib.training.policy import Anchor
from bonlib.training.settings import TrainingData, TrainSettings

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class TrainingMethod(ABC):
    """A training method with its settings, which are the fields of the dataclass: a run is told apart by them.

    Attributes:
        late: fields that came late, with the value that is that of all runs before.
    """

    late: ClassVar[Mapping[str, Any]] = {}

    def described(self) -> dict[str, Any]:
        """Return all fields by name, without late ones at their old value: older runs keep their identity."""
        return {name: value for name, value in asdict(self).items() if self.late.get(name, ...) != value}

    @property
    def asks_anchor(self) -> bool:
        """Whether a copy of the policy follows it, and draws."""
        return False

    @property
    def needs_draws(self) -> int:
        """How many stored draws a prompt it needs."""
        return 0

    @property
    def needs_cdf(self) -> bool:
        """Whether it must be told the distribution of the reference's rewards."""
        return False

    @abstractmethod
    def learner(self, run: OngoingRun) -> Learner[Any]:
        """Return what learns by this method."""


class OngoingRun(Protocol):
    """What a learner asks of the run that it belongs to.

    Attributes:
        data: prompts and their judges.
        settings: sizes of a step.
        reference: where the policy started.
        policy: what learns.
        loaded: its language model, which draws.
        anchor: what follows the policy, where the method has one.
    """

    data: TrainingData
    settings: TrainSettings
    reference: LoadedModel
    policy: torch.nn.Module
    loaded: LoadedModel
    anchor: Anchor | None

    def expect_finite(self, name: str, numbers: Tensor, prompts: Sequence[str]) -> None:
        """Stop the run, and say which prompts are in question, if a number is not finite."""
        ...

    def add_up(self, numbers: Tensor) -> Tensor:
        """Return the sum of a tensor over processes."""
        ...


@dataclass(eq=False)
class Shard:
    """A part of a step's responses, with all that their loss needs.

    Attributes:
        batch: what the policy reads, with gradients.
        prompts: of the responses; where a method learns from others besides, of those drawn from the policy.
        reference: log π; on policy of each token, (B, T), off policy of each example's responses, (E, roles).
        figures: on policy, means for the curve and the progress bar.
    """

    batch: TokenBatch
    prompts: Sequence[str]
    reference: Tensor
    figures: Mapping[str, float]


S = TypeVar("S", bound=Shard)


class Learner(Generic[S]):
    """One way to learn.

    Attributes:
        epochs: gradient steps on the same shards.
        responses: drawn, or taken from the store, at each step.
        learned_from: a hash of stored draws, and of the CDF, that it learns from.
    """

    epochs = 1
    responses: int
    learned_from: str | None = None

    def shard(self, step: int, place: int) -> S:
        """Return what a step learns from, the part at one of its `settings.shards` places."""
        raise NotImplementedError

    def weigh(self, shards: Sequence[S]) -> None:
        """Write down what has to be known of all shards of this process before the first gradient."""

    def parts(self, shard: S) -> Sequence[Shard]:
        """Return what of a shard is read with gradients at once; the losses of its parts add up to its own."""
        return [shard]

    def loss(self, shard: S, log_probs: Tensor, values: Tensor | None) -> Tensor:
        """Return the mean loss of a shard, or of a part of it, from what the policy says of its tokens, (B, T) each."""
        raise NotImplementedError

    def stepped(self, steps: int) -> None:
        """Take note that so many steps are done."""


class PromptTokens:
    """The prompts as token ids, and batches of them with responses."""

    def __init__(self, reference: LoadedModel, data: TrainingData) -> None:
        room, self.pad_id = data.sampling.max_new_tokens, reference.pad_token_id
        self.ids = dict(zip(data.prompts, reference.encode(data.prompts, room), strict=True))
        self.device = reference.device

    def batch(self, prompts: Sequence[str], responses: Sequence[Sequence[int]]) -> TokenBatch:
        """Return prompts and responses (−1 after their end) as one batch."""
        real = [[token for token in row if token >= 0] for row in responses]
        return token_batch([self.ids[prompt] for prompt in prompts], real, pad_id=self.pad_id, device=self.device)


class Rounds:
    """An endless row of things, each of `count` once a round, in a new random order each round."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.round = count, seed, -1
        self.order = np.empty(0, np.intp)

    def at(self, begin: int, count: int) -> list[int]:
        """Return the things at `count` places of the row."""
        return [self._one(place) for place in range(begin, begin + count)]

    def _one(self, place: int) -> int:
        which, within = divmod(place, self.count)
        if which != self.round:
            self.round, self.order = which, self.ordered(np.random.default_rng([self.seed, which]))
        return int(self.order[within])

    def ordered(self, rng: np.random.Generator) -> Indices:
        """Return the things of a round in a random order."""
        return rng.permutation(self.count)


def summed(log_probs: Tensor) -> Tensor:
    """Return log-probabilities of whole responses, (B,), from those of tokens, (B, T)."""
    return log_probs.cpu().double().sum(1)  # Apple's GPUs have no float64
