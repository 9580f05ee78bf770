"""Soft best-of-n: a draw is kept with a probability that grows with its reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from bonlib.checks import number, settle, whole
from bonlib.exact import Array, Outcomes
from bonlib.inference.rules import Choice, all_spent, checked_rewards, register


@dataclass(frozen=True)
class SoftBestOfN:
    """Of `n` draws keep one with probability ∝ exp(reward / temperature).

    Args:
        n: draws to choose among, a whole number, at least 1.
        temperature: λ > 0 in units of reward; towards 0 it is best-of-n, towards infinity random-of-n.

    Raises:
        ValueError: if `n` or `temperature` is out of range.

    Source: Verdun et al. 2025.
    """

    n: int
    temperature: float
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        what = "its limit 0 is best-of-n, and it"
        settle(self, n=whole("n", self.n, 1), temperature=number("temperature", self.temperature, above=0, what=what))

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return one of draws with rewards (..., n), at random."""
        table = checked_rewards(rewards, self.n)
        gumbel = np.random.default_rng(whole("seed", seed)).gumbel(size=table.shape)
        # The largest of scores with Gumbel noise is a draw from their softmax.
        with np.errstate(over="ignore"):
            advantage = (table - table.max(axis=-1, keepdims=True)) / self.temperature
        return Choice((advantage + gumbel).argmax(axis=-1), all_spent(table))

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, shape (K,)."""
        return outcomes.soft_best_of(self.n, self.temperature)

    def cost(self, outcomes: Outcomes) -> float:
        """Return n."""
        return float(self.n)


register(
    name="soft",
    make=SoftBestOfN,
    label="soft best-of-n",
    knob="temperature",
    grid=(0.1, 0.3, 1.0),
    scale="reward",
    keeps="one with probability ∝ exp(reward / λ)",
    costs="n draws and rewards",
    source="Verdun et al. 2025",
    place=10,
)
