"""When to stop drawing: each draw has a cost, and the best so far can be kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bonlib.checks import number
from bonlib.exact import Array, Outcomes
from bonlib.inference.rules import checked_rewards


def reservation_value(rewards: ArrayLike, cost: float, probs: ArrayLike | None = None) -> Array:
    """Return z with E(r − z)^+ = cost: another draw is worth its cost as long as the best so far is below z.

    It is the largest of (Σ π r − cost) / Σ π over the j best outcomes, j = 1, 2, …

    Args:
        rewards: of outcomes or of draws, finite, shape (..., K).
        cost: of a draw, above 0, in units of reward.
        probs: probabilities of the outcomes, shape (K,) or (..., K); equal ones if None, as of draws.

    Returns:
        z, shape (...): below the largest reward, at cost / P(r is the largest) at most.

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
        if given.shape[-1:] != table.shape[-1:] or not (given >= 0).all() or not np.allclose(given.sum(axis=-1), 1):
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


def rewind(outcomes: Outcomes, threshold: float) -> Array:
    """Return the rewind-and-repeat policy, draw until r(y) >= `threshold`, shape (K,).

    Its KL to the reference is −log α, with α the probability of acceptance.

    Args:
        outcomes: a reference and its rewards.
        threshold: smallest reward that is accepted; some outcome that can occur must reach it.

    Raises:
        ValueError: if no possible outcome reaches `threshold` (the loop would never end) or it is NaN.

    Source: Beirami et al., Lemma 6.1.
    """
    accepted = np.where(outcomes.rewards >= threshold, outcomes.probs, 0.0)
    total = accepted.sum()
    if not total > 0:
        best = outcomes.rewards[outcomes.probs > 0].max()
        raise ValueError(f"threshold is {threshold}; no possible outcome reaches it, the best reward is {best}")
    return accepted / total


def rewind_at(outcomes: Outcomes, acceptance: float) -> Array:
    """Return rewind-and-repeat with acceptance probability α = `acceptance`, shape (K,).

    Where no threshold gives just that α, the outcomes at the threshold are accepted with the chance that does; so the
    policy moves continuously from the reference (α = 1) to the best outcomes (α at most their probability).

    Args:
        outcomes: a reference and its rewards.
        acceptance: α, above 0 and at most 1; 1/α draws are made on average.

    Raises:
        ValueError: if `acceptance` is out of range.

    Source: Beirami et al., Eq. 39 and Lemma 6.1.
    """
    alpha = float(acceptance)
    if not 0 < alpha <= 1:
        raise ValueError(f"acceptance is {alpha}; a probability of acceptance is above 0 and at most 1")
    ladder = outcomes.ladder
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip((alpha - ladder.above) / ladder.mass, 0, 1)
    accepted = np.where(outcomes.probs > 0, outcomes.probs * chance, 0.0)
    return accepted / accepted.sum()
