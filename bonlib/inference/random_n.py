"""Best of a random number of draws, whose law is exact for each distribution of that number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bonlib.checks import shown
from bonlib.exact import Array, Outcomes
from bonlib.inference.draw_counts import DrawCount, GeometricCount, LogSeries, OnePlusPoisson, TruncatedPoisson
from bonlib.inference.rules import Choice, OfN, checked_rewards, register


@dataclass(frozen=True)
class BestOfRandomN(OfN):
    """Keep the best of the first N of `n` draws, N at random; all of them where N is more.

    Args:
        n: draws that there are, a whole number, at least 1.
        count: the distribution of N.

    Raises:
        ValueError: if `n` is out of range, or `count` no distribution.
    """

    count: DrawCount

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.count, DrawCount):
            raise ValueError(f"count is {shown(self.count)}; it must be a DrawCount, such as TruncatedPoisson(4)")

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the best of a random number of draws with rewards (..., n), the first of them where several are."""
        table = checked_rewards(rewards, self.n)
        spent = np.minimum(self.count.sample(table.shape[:-1], seed=seed), self.n)
        drawn = np.arange(self.n) < spent[..., None]
        return Choice(np.where(drawn, table, -np.inf).argmax(axis=-1), spent)

    def law(self, outcomes: Outcomes) -> Array:
        """Return the law of the best of min(N, n), shape (K,)."""
        law = np.zeros(len(outcomes))
        for k, chance in enumerate(self.count.chances(self.n), 1):
            if chance > 0:
                law += chance * outcomes.best_of(k)
        return law

    def cost(self, outcomes: Outcomes) -> float:
        """Return E min(N, n)."""
        return float(self.count.chances(self.n) @ np.arange(1, self.n + 1))


_COSTS = "N draws and rewards, of n at most"
register(
    name="truncated-poisson",
    make=lambda n, t: BestOfRandomN(n, TruncatedPoisson(t)),
    label="best of a Poisson number above 0",
    knob="t",
    grid=(1.0, 4.0, 16.0),
    keeps="the best of N draws, N ~ Poisson(t) above 0",
    costs=_COSTS,
    source="this workbook",
    place=20,
)
register(
    name="one-plus-poisson",
    make=lambda n, mu: BestOfRandomN(n, OnePlusPoisson(mu)),
    label="best-of-Poisson",
    knob="mu",
    grid=(1.0, 4.0, 16.0),
    keeps="the best of N draws, N ~ 1 + Poisson(μ)",
    costs=_COSTS,
    source="Khalaf et al. 2025",
    place=21,
)
register(
    name="geometric",
    make=lambda n, q: BestOfRandomN(n, GeometricCount(q)),
    label="best of a geometric number",
    knob="q",
    grid=(0.5, 0.8, 0.95),
    keeps="the best of N draws, another with chance q after each",
    costs=_COSTS,
    source="this workbook",
    place=22,
)
register(
    name="log-series",
    make=lambda n, t: BestOfRandomN(n, LogSeries(t)),
    label="best of a log-series number",
    knob="t",
    grid=(1.0, 2.0, 4.0),
    keeps="the best of N draws, P(N = k) ∝ (1 − e^{−t})^k/k",
    costs=_COSTS,
    source="this workbook; its law is WIND's, Yang et al. 2024",
    place=23,
)
