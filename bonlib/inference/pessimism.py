"""Pessimism: what a reward exceeds a threshold by is the chance to be kept, however many draws there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import xlogy

from bonlib.checks import number, one_of, settle, whole
from bonlib.exact import Array, Outcomes, as_n
from bonlib.inference.cases import all_cases
from bonlib.inference.rules import Choice, OfN, all_spent, checked_like, checked_rewards, register
from bonlib.inference.stopping import reservation_value

Fallback = Literal["fresh", "last"]


@dataclass(frozen=True)
class Pessimism(OfN):
    """Keep the first of `n` draws that is accepted, with chance (reward − λ)^+ / (best reward − λ).

    Best is the best of the draws, so that one is always accepted, and λ is such that (reward − λ)^+ is β on average
    over the draws. As n grows it nears `pessimistic_policy`, by way of `pessimistic_best_of` if λ were known.

    Args:
        n: draws, a whole number, at least 1.
        beta: β > 0 in units of reward; towards 0 only the best are accepted, towards infinity all.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Huang et al. 2025 (InferenceTimePessimism).
    """

    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, beta=_checked_beta(self.beta))

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the first that is accepted, in the order of the draws, with rewards (..., n)."""
        table = checked_rewards(rewards, self.n)
        table = table - table.max(axis=-1, keepdims=True)
        threshold = reservation_value(table, self.beta)[..., None]
        chance = np.random.default_rng(whole("seed", seed)).random(table.shape)
        return Choice((chance * -threshold < table - threshold).argmax(axis=-1), all_spent(table))

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, by going through all cases, shape (K,).

        Raises:
            TooManyOutcomesError: if the draws fall on the outcomes in more ways than can be gone through.
        """
        return pessimism_from_draws(outcomes, self.n, self.beta)


def pessimistic_policy(outcomes: Outcomes, beta: float) -> Array:
    """Return π_χ = π (r − λ)^+ / β, which has the largest E_p r − (β/2) χ²(p ‖ π) of all p, shape (K,).

    Args:
        outcomes: the world.
        beta: β > 0 in units of reward; from mean − least reward on nothing is cut off, at infinity it is π.

    Raises:
        ValueError: if `beta` is out of range.

    Source: Huang et al. 2025.
    """
    advantage = outcomes.rewards - outcomes.rewards[outcomes.probs > 0].max()
    threshold = reservation_value(advantage, _checked_beta(beta), outcomes.probs)
    policy = outcomes.probs * np.maximum(advantage - threshold, 0)
    return policy / policy.sum()


def pessimistic_best_of(outcomes: Outcomes, n: int, beta: float, fallback: Fallback = "fresh") -> Array:
    """Return the law of what is accepted first of n draws where λ and the best reward are known, shape (K,).

    Args:
        outcomes: the world.
        n: draws that may be accepted, a whole number, at least 1.
        beta: β > 0 in units of reward.
        fallback: what is kept if none is: "fresh", another draw, whatever it is; or "last", the last of the n. So n
            with a fresh one is n + 1 with the last.

    Raises:
        ValueError: if an argument is out of range.

    Source: Huang et al. 2025; the law is derived here.
    """
    n = whole("n", n, 1)
    one_of("fallback", fallback, ("fresh", "last"))
    policy = pessimistic_policy(outcomes, beta)
    none = (1 - 1 / _largest_ratio(outcomes, policy)) ** (n if fallback == "fresh" else n - 1)
    return (1 - none) * policy + none * outcomes.probs


def pessimism_from_draws(
    outcomes: Outcomes, n: int, beta: float, *, best: float | None = None, again: bool = False
) -> Array:
    """Return the law of what is accepted first of n draws where λ is that of n draws, shape (K,).

    Args:
        outcomes: the world.
        n: draws that may be accepted, a whole number, at least 1.
        beta: β > 0 in units of reward.
        best: the largest reward that can come; that of the draws if None, as `Pessimism.choose` has it. If none is
            accepted, another draw is kept.
        again: whether λ is that of n draws of their own, so that there are up to 2n + 1.

    Raises:
        ValueError: if an argument is out of range.
        TooManyOutcomesError: if the draws fall on the outcomes in more ways than can be gone through.

    Source: derived here. With a time of arrival for each draw, uniform and its own, one is the first accepted if all
        others come later or are not: a polynomial in its time, which Gauss's quadrature integrates exactly.
    """
    possible = outcomes.probs > 0
    levels, place = np.unique(outcomes.rewards[possible], return_inverse=True)
    n = whole("n", n, 1)
    mass = np.asarray(np.bincount(place, outcomes.probs[possible]), dtype=np.float64)
    counts, chance = all_cases(mass, n)
    best_drawn = np.max(np.broadcast_to(levels, counts.shape), axis=1, keepdims=True, where=counts > 0, initial=-np.inf)
    advantage = levels - best_drawn
    low = reservation_value(advantage, _checked_beta(beta), counts / n)[:, None]
    top = 0.0 if best is None else number("best", best, least=levels[-1]) - best_drawn
    accept = np.clip((advantage - low) / (top - low), 0, 1)
    if again:
        one = accept @ mass
        taken, none = accept * mass * ((1 - (1 - one) ** n) / one)[:, None], (1 - one) ** n
    else:
        times, weights = np.polynomial.legendre.leggauss(n // 2 + 1)
        taken, none = np.zeros(counts.shape), np.prod((1 - accept) ** counts, axis=1)
        for time, weight in zip((times + 1) / 2, weights / 2, strict=True):
            later = 1 - accept * time
            taken += weight * counts * accept * np.prod(later**counts, axis=1, keepdims=True) / later
    law = np.array(outcomes.probs)
    law[possible] *= (chance @ taken / mass + chance @ none)[place]
    return law


def best_of_n_slope(outcomes: Outcomes, n: float) -> Array:
    """Return dπ_n/dn, how the probability of each outcome changes with the number of draws, shape (K,).

    Args:
        outcomes: the world.
        n: number of draws, real, finite, at least 1.

    Raises:
        ValueError: if `n` is out of range.

    Source: Khalaf et al. 2025 (hedging); here for ties.
    """
    n, ladder = float(as_n(n)), outcomes.ladder
    rate = xlogy(ladder.cdf**n, ladder.cdf) - xlogy(ladder.strict_cdf**n, ladder.strict_cdf)
    return np.divide(outcomes.probs * rate, ladder.mass, out=np.zeros(len(outcomes)), where=outcomes.probs > 0)


def hedged_n(outcomes: Outcomes, gold: ArrayLike, most: float = 1e6) -> float:
    """Return the number of draws at which best-of-n by a proxy has the largest gold reward.

    Args:
        outcomes: the world with the proxy as reward.
        gold: true rewards, shape (K,).
        most: largest number that is looked at.

    Returns:
        Real n from 1 to `most`: an end where gold falls from the first or rises to the last.

    Raises:
        ValueError: if an argument is out of range.

    Source: Khalaf et al. 2025 (hedging).
    """
    true = checked_like("gold", gold, outcomes.rewards)
    grid = np.geomspace(1, float(number("most", most, above=1)), 400)
    place = int(np.argmax([outcomes.best_of(n) @ true for n in grid]))
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, 399)]

    def slope(log_n: float) -> float:
        return float(best_of_n_slope(outcomes, np.exp(log_n)) @ true)

    if not slope(np.log(low)) > 0 > slope(np.log(high)):
        return float(grid[place])
    return float(np.exp(brentq(slope, np.log(low), np.log(high), xtol=1e-15, rtol=1e-14)))


def _largest_ratio(outcomes: Outcomes, policy: Array) -> float:
    """M = max π_χ/π."""
    possible = outcomes.probs > 0
    return float(np.max(policy[possible] / outcomes.probs[possible]))


def _checked_beta(beta: float) -> float:
    return float(number("beta", beta, above=0, what="its limit 0 keeps the best outcomes, and it"))


register(
    name="pessimism",
    make=Pessimism,
    label="pessimism",
    knob="beta",
    grid=(0.1, 0.3, 1.0),
    scale="reward",
    keeps="the first accepted, with chance ∝ (reward − λ)^+",
    costs="n draws and rewards",
    source="Huang et al. 2025",
    place=40,
)
