"""Worlds in which a response is written in two steps, a beginning and what comes after it: all can be listed.

On them methods that choose while responses are being written have laws that are known exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval
from numpy.typing import ArrayLike
from scipy.special import gammaln, xlogy

from bonlib.checks import as_numbers, number, settle, whole
from bonlib.exact import Array, Outcomes, as_probs
from bonlib.inference.rules import checked_like
from bonlib.inference.steering import Ties


@dataclass(frozen=True, eq=False)
class Tree:
    """A reference policy over A beginnings and, after each, C ends, with a reward for either.

    Args:
        probs: of the beginnings, shape (A,); they sum to one.
        partial: rewards of the beginnings, shape (A,), finite; equal ones are ties.
        children: probabilities of the ends after each beginning, shape (A, C); rows sum to one, and zeros fill a row
            with fewer ends.
        rewards: of the whole responses, shape (A, C), finite.

    Raises:
        ValueError: if a shape, a probability or a reward is not as above.
    """

    probs: Array
    partial: Array
    children: Array
    rewards: Array

    def __init__(self, probs: ArrayLike, partial: ArrayLike, children: ArrayLike, rewards: ArrayLike) -> None:
        p, rows = as_probs("probs", probs), as_numbers("children", children)
        if rows.ndim != 2 or len(rows) != len(p):
            raise ValueError(f"children has shape {rows.shape}; it must have a row for each of the {len(p)} beginnings")
        rows = np.stack([as_probs(f"children[{place}]", row) for place, row in enumerate(rows)])
        s, r = checked_like("partial", partial, p), checked_like("rewards", rewards, rows)
        settle(self, probs=p, partial=s, children=rows, rewards=r)

    @cached_property
    def outcomes(self) -> Outcomes:
        """The whole responses, A · C of them, those with the same beginning together."""
        return Outcomes((self.probs[:, None] * self.children).ravel(), self.rewards.ravel())

    @cached_property
    def values(self) -> Array:
        """E[r | beginning], shape (A,)."""
        return (self.children * self.rewards).sum(axis=1)

    def judged_by(self, partial: ArrayLike) -> Tree:
        """Return the same tree with other rewards of the beginnings, shape (A,)."""
        return Tree(self.probs, partial, self.children, self.rewards)

    def best_children(self, k: float) -> Tree:
        """Return the tree in which a beginning goes on with the best of `k` ends: its children are best-of-k."""
        best = [Outcomes(p, r).best_of(k) for p, r in zip(self.children, self.rewards, strict=True)]
        return Tree(self.probs, self.partial, best, self.rewards)

    def turned(self, angle: float, *, seed: int = 0) -> Tree:
        """Return the tree with rewards of its beginnings that inform at 0, say nothing near π/2 and mislead at π.

        They are cos(angle) · v + sin(angle) · u, with v the values E[r | beginning] and u a random direction, both
        with mean 0 and variance 1 under the reference, and uncorrelated.

        Args:
            angle: in radians.
            seed: of the direction.

        Raises:
            ValueError: if all beginnings are equally good, or there are fewer than three.
        """
        directions, angle = list[Array](), number("angle", angle)
        for raw in (self.values, np.random.default_rng(whole("seed", seed)).normal(size=len(self.probs))):
            column = raw - self.probs @ raw
            for other in directions:
                column = column - (self.probs @ (column * other)) * other
            variance = self.probs @ column**2
            if not variance > 1e-20:
                raise ValueError("values are all equal, or there are fewer than three beginnings: nothing to turn")
            directions.append(column / np.sqrt(variance))
        return self.judged_by(np.cos(angle) * directions[0] + np.sin(angle) * directions[1])

    def rank_correlation(self) -> float:
        """Return Spearman's correlation of the beginning's and the whole response's reward, under the reference."""
        partial = np.repeat(Outcomes(self.probs, self.partial).calibrated_reward, self.children.shape[1])
        final, probs = self.outcomes.calibrated_reward, self.outcomes.probs
        # Mid-ranks have mean 1/2, whatever ties.
        x, y = partial - 0.5, final - 0.5
        spread = (probs @ x**2) * (probs @ y**2)
        return float(probs @ (x * y) / np.sqrt(spread)) if spread > 0 else 0.0


def survivors_law(tree: Tree, n: int, survivors: int, ties: Ties = "exact") -> Array:
    """Return how likely each whole response is the best of those whose beginnings were among the best, shape (A · C,).

    Of `n` beginnings the best `survivors` by their partial reward go on, each in one way, and the best response is
    kept. Let c be the partial reward of the last that must go on, with j beginnings above it. Then j draws from all
    responses with a beginning above c, and e from those with one at c, compete. With v the chance that a rival of the
    same reward is passed over, the best of them is y, above c, with probability
    j (π(y)/P) ∫ G(y, v)^(j−1) G'(y, v)^e dv, and likewise at c. P is the chance of a beginning above c, and
    G(y, v) = F + v · (F≤ − F) given one, G' the same given one at c.

    Args:
        tree: the world.
        n: beginnings, at least 1.
        survivors: m, from 1 to n.
        ties: "exact", just m go on, ties at c at random; or "cut", all at c do.

    Raises:
        ValueError: if an argument is out of range.

    Source: derived for this library; it is checked by enumeration.
    """
    n = whole("n", n, 1)
    survivors = whole("survivors", survivors, 1, n)
    points, weights = np.polynomial.legendre.leggauss((n + 1) // 2)  # exact for polynomials of degree n − 1
    v, dv = (points[:, None] + 1) / 2, weights / 2
    probs = tree.outcomes.probs
    _, level = np.unique(tree.outcomes.rewards, return_inverse=True)
    law = np.zeros(len(probs))
    cutoffs, rung = np.unique(tree.partial, return_inverse=True)
    for cutoff in range(len(cutoffs)):
        sides = [np.repeat(side, tree.children.shape[1]) for side in (rung > cutoff, rung == cutoff, rung < cutoff)]
        masses = [float(probs[side].sum()) for side in sides]
        if not masses[1]:
            continue
        given = [np.where(side, probs, 0.0) / (mass or 1.0) for side, mass in zip(sides[:2], masses[:2], strict=True)]
        at = [np.bincount(level, weights=part) for part in given]
        above, equal = (np.cumsum(mass) - mass + v * mass for mass in at)  # (points, levels)
        for j, chances in enumerate(_compositions(n, survivors, masses, ties)):
            if j:
                law += given[0] * (dv @ (j * above ** (j - 1) * polyval(equal, chances)))[level]
            law += given[1] * (dv @ (above**j * polyval(equal, polyder(chances))))[level]
    return law


def _compositions(n: int, m: int, masses: Sequence[float], ties: Ties) -> Iterator[Array]:
    """For j = 0, 1, … below m, how likely j go on from above the cutoff, and e = 0, 1, … from it, and it is the cutoff.

    `masses` are the chances that a beginning is above, at and below it.
    """
    for j in range(m):
        tied = np.arange(m - j, n - j + 1)
        counts = np.stack([np.full(len(tied), j), tied, n - j - tied], axis=1)
        chances = np.exp(gammaln(n + 1) + (xlogy(counts, masses) - gammaln(counts + 1)).sum(axis=1))
        yield np.append(np.zeros(m - j), chances if ties == "cut" else chances.sum())


def one_checkpoint(checkpoints: tuple[int, ...]) -> None:
    """Raise unless there is one checkpoint, which a tree has at its fork."""
    if len(checkpoints) != 1:
        raise ValueError(f"checkpoints is {checkpoints}; the law on a tree is that of one checkpoint, at its fork")
