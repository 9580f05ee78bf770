"""Best-of-n among given draws, and its control, random-of-n."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import whole
from bonlib.exact import Array, Outcomes
from bonlib.inference.rules import Choice, OfN, all_spent, checked_rewards, choose_in_groups, register


@dataclass(frozen=True)
class BestOfN(OfN):
    """Keep the best of `n` draws, the first of them where several are.

    Args:
        n: draws to choose among, a whole number, at least 1.

    Raises:
        ValueError: if `n` is out of range.

    Source: Beirami et al., Lemma 2.3.
    """

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the best of draws with rewards (..., n); nothing is random."""
        table = checked_rewards(rewards, self.n)
        return Choice(table.argmax(axis=-1), all_spent(table))

    def law(self, outcomes: Outcomes) -> Array:
        """Return π_n, shape (K,)."""
        return outcomes.best_of(self.n)


@dataclass(frozen=True)
class RandomOfN(OfN):
    """Keep a random one of `n` draws: the control without a reward.

    Args:
        n: draws to choose among, a whole number, at least 1.

    Raises:
        ValueError: if `n` is out of range.
    """

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return a random one of draws with rewards (..., n)."""
        table = checked_rewards(rewards, self.n)
        choice = np.random.default_rng(whole("seed", seed)).integers(self.n, size=table.shape[:-1])
        return Choice(choice, all_spent(table))

    def law(self, outcomes: Outcomes) -> Array:
        """Return the reference, shape (K,)."""
        return np.array(outcomes.probs)


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
    return choose_in_groups(BestOfN(n), rewards).kept


def random_of_n(rewards: ArrayLike, n: int, *, seed: int) -> NDArray[np.intp]:
    """Return a random draw of each of the groups that `best_of_n` chooses from: the control without a reward.

    Arguments as in `best_of_n`; `seed` decides the choice.
    """
    return choose_in_groups(RandomOfN(n), rewards, seed=seed).kept


register(
    name="best",
    make=BestOfN,
    label="best-of-n",
    keeps="the best",
    costs="n draws and rewards",
    source="Stiennon et al. 2020",
    place=1,
)
register(
    name="random",
    make=RandomOfN,
    label="a random one of n",
    keeps="any, the control",
    costs="n draws",
    source="–",
    place=0,
)
