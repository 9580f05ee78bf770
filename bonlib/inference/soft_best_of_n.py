"""Soft best-of-n: a draw is kept with a probability that grows with its reward."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import number, whole
from bonlib.inference.best_of_n import cut_into_groups, places_of


def soft_best_of_n(rewards: ArrayLike, n: int, temperature: float, *, seed: int) -> NDArray[np.intp]:
    """Return which draws soft best-of-n keeps: of each n, one with probability ∝ exp(reward / temperature).

    Args:
        rewards: as in `best_of_n`.
        n: draws to choose among.
        temperature: λ > 0 in units of reward; towards 0 it is best-of-n, towards infinity random-of-n.
        seed: of the choice.

    Returns:
        Indices of the kept draws, shape (prompts, m // n).

    Raises:
        ValueError: if `n` or `temperature` is out of range, or a reward is not finite.

    Source: Verdun et al. 2025.
    """
    temperature = number("temperature", temperature, above=0, what="its limit 0 is best_of_n, and it")
    groups = cut_into_groups(rewards, n)
    gumbel = np.random.default_rng(whole("seed", seed)).gumbel(size=groups.shape)
    # The largest of scores with Gumbel noise is a draw from their softmax.
    with np.errstate(over="ignore"):
        advantage = (groups - groups.max(axis=2, keepdims=True)) / temperature
    return places_of(groups, (advantage + gumbel).argmax(axis=2))
