"""Best-of-n among given draws, and its control, random-of-n."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import whole


def best_of_n(rewards: ArrayLike, n: int) -> NDArray[np.intp]:
    """Return which draws best-of-n keeps, from m draws a prompt cut into m // n groups of n.

    Args:
        rewards: of the draws, shape (prompts, m), finite, with m >= n.
        n: draws to choose among, a whole number, at least 1.

    Returns:
        Indices of the kept draws, shape (prompts, m // n): the first of the best in each group, as an argmax over
        i.i.d. draws has it.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.
    """
    groups = cut_into_groups(rewards, n)
    return places_of(groups, groups.argmax(axis=2))


def random_of_n(rewards: ArrayLike, n: int, *, seed: int) -> NDArray[np.intp]:
    """Return a random draw of each of the groups that `best_of_n` chooses from: the control without a reward.

    Arguments as in `best_of_n`; `seed` decides the choice.
    """
    groups = cut_into_groups(rewards, n)
    choice = np.random.default_rng(whole("seed", seed)).integers(groups.shape[2], size=groups.shape[:2])
    return places_of(groups, choice)


def places_of(groups: NDArray[np.float64], choice: NDArray[np.intp]) -> NDArray[np.intp]:
    """Places among all draws of what was chosen of each group."""
    return choice + groups.shape[2] * np.arange(groups.shape[1])


def cut_into_groups(rewards: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return rewards, (prompts, m), as groups of n, (prompts, m // n, n), after a check of them."""
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"rewards has shape {table.shape}; it must be (prompts, draws)")
    if not np.isfinite(table).all():
        prompt, draw = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"rewards[{prompt}, {draw}] is {table[prompt, draw]}; drop or repair that response")
    n = whole("n", n, 1, table.shape[1], what=f"with {table.shape[1]} draws a prompt it")
    count = table.shape[1] // n
    return table[:, : count * n].reshape(len(table), count, n)
