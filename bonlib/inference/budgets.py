"""One budget of draws for many prompts: how many each of them gets."""

from __future__ import annotations

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from bonlib.checks import as_numbers, whole
from bonlib.estimates import best_of_n_mean
from bonlib.exact import Array
from bonlib.inference.rules import checked_table

Counts = NDArray[np.intp]


def uniform_budget(prompts: int, total: int) -> Counts:
    """Return as many draws for each prompt, and one of the remainder for each of the first, shape (P,).

    Raises:
        ValueError: if there is not a draw for each.
    """
    prompts = whole("prompts", prompts, 1)
    each, rest = divmod(_checked_total(total, prompts), prompts)
    return each + (np.arange(prompts) < rest)


def greedy_budget(gains: ArrayLike, total: int, least: int = 1) -> Counts:
    """Return the draws for each prompt that have the highest sum of expected rewards, shape (P,).

    As each draw of a prompt gains less than the one before, taking the largest gains of all is optimal.

    Args:
        gains: E max of n + 1 draws − E max of n, for n = `least` and on, falling along n, shape (P, more).
        total: draws of all prompts together, from P · least to P · (least + more).
        least: draws that each prompt has in any case, at least 1.

    Raises:
        ValueError: if a gain is not finite or larger than the one before it, or a number of draws is out of range.

    Source: derived here: E max of n + 1 − E max of n = ∫ F≤^n (1 − F≤) dr falls with n.
    """
    table = as_numbers("gains", gains)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"gains has shape {table.shape} or one that is not finite; it must be (prompts, draws)")
    rises = np.diff(table, axis=1) > 1e-9 * np.abs(table).max(initial=0)
    if rises.any():
        prompt, place = np.argwhere(rises)[0]
        raise ValueError(f"gains[{prompt}, {place + 1}] is larger than the one before; those of a prompt must fall")
    (prompts, more), least = table.shape, whole("least", least, 1)
    left = _checked_total(total, prompts * least, prompts * (least + more)) - prompts * least
    falling = np.minimum.accumulate(table, axis=1)  # where rounding makes one larger than the one before
    places = np.broadcast_to(np.arange(more), table.shape)
    prompt, _ = np.unravel_index(np.lexsort((places.ravel(), -falling.ravel()))[:left], table.shape)
    return least + np.bincount(prompt, minlength=prompts)


def oracle_budget(rewards: ArrayLike, total: int) -> Counts:
    """Return the draws for each prompt, shape (P,), if all its M draws were known to say what more of them gain.

    Args:
        rewards: of i.i.d. reference responses, finite, shape (P, M).
        total: draws of all prompts together, from P to P · M.

    Raises:
        ValueError: if a reward is not finite or `total` is out of range.
    """
    table = checked_table(rewards)
    return greedy_budget(np.diff(best_of_n_mean(table, range(1, table.shape[1] + 1)), axis=1), total)


def adaptive_budget(rewards: ArrayLike, total: int, explore: int) -> Counts:
    """Return the draws for each prompt, shape (P,): as many to explore, and the others where they promise most.

    Args:
        rewards: of draws in the order in which they are made, finite, shape (P, M). Only the first `explore` of each
            prompt are looked at.
        total: draws of all prompts together, from P · explore to P · M.
        explore: draws of each prompt to begin with, from 2 to M.

    Raises:
        ValueError: if a reward is not finite, or `total` or `explore` is out of range.

    Source: in the form of Raman et al. 2025 (AdaBoN): two phases, and a density guessed from the first.
    """
    table = checked_table(rewards)
    explore = whole("explore", explore, 2, table.shape[1], what="without a spread nothing is learnt, so it")
    return greedy_budget(kernel_gains(table[:, :explore], table.shape[1] - explore), total, explore)


def kernel_gains(rewards: ArrayLike, more: int) -> Array:
    """Return what each of 1, 2, … further draws seems to add to the best of those so far, shape (P, more).

    The draws, each blurred by a normal kernel, are taken for the distribution. The bandwidth is Scott's, s k^{−1/5}
    from k draws of standard deviation s.

    Args:
        rewards: of draws so far, finite, shape (P, k), k at least 2.
        more: further draws.
    """
    table, more = checked_table(rewards), whole("more", more)
    width = np.std(table, axis=1, ddof=1, keepdims=True) * table.shape[1] ** -0.2
    nodes, weights = leggauss(48)
    at = 4.5 * (nodes + 1)  # above the best, in bandwidths: beyond 9 there is nothing
    behind = np.divide(table.max(axis=1, keepdims=True) - table, width, out=np.zeros(table.shape), where=width > 0)
    above = np.stack([ndtr(-(behind + each)).mean(axis=1) for each in at], axis=1)
    gains, part = np.empty((len(table), more)), 4.5 * width * weights * above
    for n in range(more):
        gains[:, n] = part.sum(axis=1)
        part *= 1 - above
    return gains


def _checked_total(total: int, least: int, most: float = np.inf) -> int:
    return whole("total", total, least, most, what=f"{least} are made in any case, so it")
