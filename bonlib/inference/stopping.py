"""When to stop drawing: each draw has a cost, and the best so far can be kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from bonlib.checks import as_numbers, number, settle, shown, whole
from bonlib.exact import SUM_TOLERANCE, Array, Outcomes
from bonlib.inference.cases import CASES
from bonlib.inference.rules import Choice, KnownRule, OfN, TooManyOutcomesError, checked_rewards, register

Gain = Callable[[Array], Array]  # from the draws so far, (rows, k), what another is worth after 1, 2, … k of them


def reservation_value(rewards: ArrayLike, cost: float, probs: ArrayLike | None = None) -> Array:
    """Return z with E(r − z)^+ = cost: another draw is worth its cost as long as the best so far is below z.

    It is the largest of (Σ π r − cost) / Σ π over the j best outcomes, j = 1, 2, …

    Args:
        rewards: of outcomes or of draws, finite, shape (..., K).
        cost: of a draw, above 0, in units of reward.
        probs: probabilities of the outcomes, shape (K,) or (..., K); equal ones if None, as of draws.

    Returns:
        z, shape (...): below the largest reward, by cost / P(r is the largest) at most.

    Raises:
        ValueError: if an argument is out of range.

    Source: Weitzman 1979; Kalayci et al. 2025; the closed form is derived here.
    """
    table = checked_rewards(rewards)
    cost = float(number("cost", cost, above=0, what="at no cost drawing never ends, so it"))
    if probs is None:
        ranked = np.sort(table, axis=-1)[..., ::-1]
        mass = np.arange(1, table.shape[-1] + 1) / table.shape[-1]
        best = ranked[..., :1]
        total = np.cumsum(ranked - best, axis=-1) / table.shape[-1]
    else:
        given = np.asarray(probs, dtype=np.float64)
        sums_to_one = np.abs(given.sum(axis=-1) - 1) <= SUM_TOLERANCE
        if given.shape[-1:] != table.shape[-1:] or not (given >= 0).all() or not sums_to_one.all():
            raise ValueError(f"probs has shape {given.shape} or is no distribution; rewards has shape {table.shape}")
        table, given = np.broadcast_arrays(table, given)
        order = np.argsort(-table, axis=-1)
        ranked, chance = np.take_along_axis(table, order, axis=-1), np.take_along_axis(given, order, axis=-1)
        mass = np.cumsum(chance, axis=-1)
        best = np.max(ranked, axis=-1, keepdims=True, where=chance > 0, initial=-np.inf)
        total = np.cumsum(chance * (ranked - best), axis=-1)  # from the best on: small costs keep their digits
    with np.errstate(divide="ignore"):
        found: Array = best[..., 0] + ((total - cost) / mass).max(axis=-1)
    return found


def expected_excess(outcomes: Outcomes, at: ArrayLike) -> Array:
    """Return E(r − at)^+, what another draw adds on average to a best so far of `at`, of its shape."""
    order = np.argsort(outcomes.rewards)
    rewards, probs = outcomes.rewards[order], outcomes.probs[order]
    mass = np.append(np.cumsum(probs[::-1])[::-1], 0.0)
    total = np.append(np.cumsum((probs * rewards)[::-1])[::-1], 0.0)
    level = np.asarray(at, dtype=np.float64)
    above = np.searchsorted(rewards, level, side="right")
    return np.maximum(total[above] - level * mass[above], 0.0)


@dataclass(frozen=True)
class StopAt(OfN):
    """Stop at the first of at most `n` draws that reaches a threshold; where none does, keep the best of all.

    With `reservation_value` as its threshold no rule is worth more, whatever n is.

    Args:
        n: draws at most, a whole number, at least 1.
        threshold: smallest reward that is enough; below all of them it is the reference, above all best-of-n.

    Raises:
        ValueError: if `n` is out of range or `threshold` is not finite.

    Source: Weitzman 1979; Kalayci et al. 2025; the law at finite n is derived here.
    """

    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, threshold=number("threshold", self.threshold))

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the first of draws with rewards (..., n) that is enough, or the best; nothing is random."""
        table = checked_rewards(rewards, self.n)
        enough = table >= self.threshold
        stops = enough.any(axis=-1)
        first = enough.argmax(axis=-1)
        return Choice(np.where(stops, first, table.argmax(axis=-1)), np.where(stops, first + 1, self.n))

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, shape (K,); without a limit to n it would be `rewind`."""
        return np.where(
            outcomes.rewards >= self.threshold, outcomes.probs * self.cost(outcomes), outcomes.best_of(self.n)
        )

    def cost(self, outcomes: Outcomes) -> float:
        """Return how many draws it makes on average, (1 − F^n)/(1 − F) with F = P(r < threshold)."""
        enough = min(float(outcomes.probs[outcomes.rewards >= self.threshold].sum()), 1.0)
        with np.errstate(divide="ignore"):
            return float(-np.expm1(self.n * np.log1p(-enough)) / enough) if enough > 0 else float(self.n)


@dataclass(frozen=True)
class StopByGain(OfN):
    """Stop as soon as another draw seems to gain less than it costs, for rewards of which nothing else is known.

    Args:
        n: draws at most, a whole number, at least 1.
        cost_per_draw: above 0, in units of reward.
        gain: `spacing_gain`, `plug_in_gain`, or what `prior_gain` returns.

    Raises:
        ValueError: if `n` or `cost_per_draw` is out of range, or `gain` no function.
    """

    cost_per_draw: float
    gain: Gain = field(repr=False)  # a function has an address, and no more, to show

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, cost_per_draw=number("cost_per_draw", self.cost_per_draw, above=0))
        if not callable(self.gain):
            raise ValueError(f"gain is {shown(self.gain)}; it must be a function, such as spacing_gain")

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the best of draws with rewards (..., n) that were made when it stopped; nothing is random."""
        table = checked_rewards(rewards, self.n)
        rows = table.reshape(-1, self.n)
        spent = np.full(len(rows), self.n)
        left, seen = np.arange(len(rows)), min(16, self.n)
        while len(left):  # most stop soon: later draws are looked at for the others only
            stops = self.gain(rows[left, :seen]) < self.cost_per_draw
            stopped = stops.any(axis=1)
            spent[left[stopped]] = stops.argmax(axis=1)[stopped] + 1
            left = left[~stopped & (seen < self.n)]
            seen = min(4 * seen, self.n)
        kept = np.where(np.arange(self.n) < spent[:, None], rows, -np.inf).argmax(axis=1)
        return Choice(kept.reshape(table.shape[:-1]), spent.reshape(table.shape[:-1]))

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, shape (K,), from all K^n series of draws.

        Raises:
            TooManyOutcomesError: if there are more than 300,000.
        """
        series, chance = self._series(outcomes)
        kept = self.choose(outcomes.rewards[series]).kept
        return np.asarray(np.bincount(series[np.arange(len(series)), kept], chance, len(outcomes)), dtype=np.float64)

    def cost(self, outcomes: Outcomes) -> float:
        """Return how many draws it makes on average; raises as `law` does."""
        series, chance = self._series(outcomes)
        return float(chance @ self.choose(outcomes.rewards[series]).spent)

    def _series(self, outcomes: Outcomes) -> tuple[NDArray[np.intp], Array]:
        if len(outcomes) ** self.n > CASES:
            raise TooManyOutcomesError(
                f"n is {self.n}, for which {len(outcomes)} outcomes have more than {CASES:,} series: take fewer, or "
                "simulate"
            )
        series = np.array(list(product(range(len(outcomes)), repeat=self.n)), dtype=np.intp)
        return series, outcomes.probs[series].prod(axis=1)


def spacing_gain(rewards: Array) -> Array:
    """Return (best − second best)/k after each of k draws, shape (rows, k): infinite after one.

    Its mean after k draws is what the k-th has gained, E max of k − E max of k − 1: without bias, but a draw late.

    Source: derived here, by the exchangeability of draws; ties included.
    """
    best = np.maximum.accumulate(rewards, axis=1)
    before = np.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-np.inf)
    second = np.maximum.accumulate(np.minimum(rewards, before), axis=1)
    return (best - second) / np.arange(1, rewards.shape[1] + 1)


def plug_in_gain(rewards: Array) -> Array:
    """Return 0 after each draw: the draws so far, taken for the distribution, have none better than their best."""
    return np.zeros(rewards.shape)


def prior_gain(prior: Outcomes, strength: float) -> Gain:
    """Return the gain of another draw as other prompts' rewards have it, which count as much as `strength` draws.

    After k draws it is strength/(strength + k) E(r − best)^+ over the prior. With it, stopping is optimal for rewards
    whose distribution is itself drawn from a Dirichlet process around `prior`: as the gain only falls, looking one draw
    ahead is enough.

    Args:
        prior: rewards that other prompts had, such as `Outcomes(np.full(m, 1 / m), rewards)`.
        strength: above 0; towards 0 it is `plug_in_gain`, towards infinity the prior is taken for the truth.

    Source: derived here, after Ferguson 1973 (Dirichlet processes) and Chow and Robbins 1961 (the monotone case).
    """
    strength = float(number("strength", strength, above=0))

    def gain(rewards: Array) -> Array:
        unseen = strength / (strength + np.arange(1, rewards.shape[1] + 1))
        return unseen * expected_excess(prior, np.maximum.accumulate(rewards, axis=1))

    return gain


def stop_by_prior(n: int, cost_per_draw: float, prior: ArrayLike, strength: float = 4.0) -> StopByGain:
    """Return the rule that stops by `prior_gain`, from rewards that other prompts had, of any shape."""
    rewards = as_numbers("prior", prior).ravel()
    if not rewards.size or not np.isfinite(rewards).all():
        raise ValueError(f"prior is {shown(prior)}; it must hold finite rewards, one at least: drop the others")
    alike = Outcomes(np.full(rewards.size, 1 / rewards.size), rewards)
    return StopByGain(n, cost_per_draw, prior_gain(alike, strength))


def value_after_costs(rule: KnownRule, outcomes: Outcomes, cost_per_draw: float) -> float:
    """Return the mean reward of what a rule keeps less the cost of its draws."""
    return outcomes.mean_reward(rule.law(outcomes)) - number("cost_per_draw", cost_per_draw) * rule.cost(outcomes)


def value_without_recall(outcomes: Outcomes, n: int) -> float:
    """Return the best mean reward if each of `n` draws must be taken or lost at once: v_k = E max(r, v_{k−1})."""
    value = -np.inf
    for _ in range(whole("n", n, 1)):
        value = float(outcomes.probs @ np.maximum(outcomes.rewards, value))
    return value


class Attempts(NamedTuple):
    """How long to try where each draw succeeds or fails.

    Attributes:
        most: draws that are worth making as long as all have failed.
        value: prize less costs, on average.
    """

    most: int
    value: float


def worthwhile_attempts(successes: float, failures: float, prize: float, cost_per_draw: float) -> Attempts:
    """Return how many draws a verifier is worth asking for, if the chance of success is Beta(successes, failures).

    Args:
        successes: a > 0 of the Beta distribution.
        failures: b > 0: after t failures, the next draw succeeds with chance a/(a + b + t).
        prize: what the first success is worth, above 0.
        cost_per_draw: above 0, in the same unit.

    Source: derived here (beta-geometric).
    """
    named = {"successes": successes, "failures": failures, "prize": prize, "cost_per_draw": cost_per_draw}
    a, b, prize, cost = (float(number(name, value, above=0)) for name, value in named.items())
    most = max(int(np.ceil(prize * a / cost - a - b)), 0)
    still = np.exp(betaln(a, b + np.arange(most + 1)) - betaln(a, b))  # all of t draws have failed
    return Attempts(most, float(prize * (1 - still[-1]) - cost * still[:-1].sum()))


register(
    name="stop-at",
    make=StopAt,
    label="stop at a threshold",
    keeps="the first that is good enough, or the best",
    costs="draws and rewards until then, n at most",
    source="Weitzman 1979; Kalayci et al. 2025",
    place=30,
)
register(
    name="stop-by-spacing",
    make=lambda n, cost_per_draw: StopByGain(n, cost_per_draw, spacing_gain),
    label="stop by the best two",
    knob="cost_per_draw",
    grid=(0.01, 0.03, 0.1),
    scale="reward",
    keeps="the best until (best − second best)/k is below the cost of a draw",
    costs="draws and rewards until then, n at most",
    source="this workbook",
    place=31,
)
register(
    name="stop-by-prior",
    make=stop_by_prior,
    label="stop by other prompts' rewards",
    knob="cost_per_draw",
    grid=(0.01, 0.03, 0.1),
    scale="reward",
    keeps="the best until another draw gains less than it costs, as the rewards of other prompts (`prior`) have it",
    costs="draws and rewards until then, n at most",
    source="this workbook",
    place=32,
)
