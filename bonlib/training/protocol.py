"""What the training loop asks of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bonlib.training.reward_cdf import LogCdf

Array = NDArray[np.float64]


Indices = NDArray[np.intp]


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
