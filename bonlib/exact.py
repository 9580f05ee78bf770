"""Exact best-of-n on finite outcome sets: the distribution, its neighbours, how far they are and how good.

Everything is float64 and, where numbers may be tiny or n huge, in log space. Nothing here samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]
Ties = Literal["first", "order"]

SUM_TOLERANCE = 1e-9


class _Ladder(NamedTuple):
    """The outcomes as rungs of rising reward, one rung for all that tie.

    Per rung: `cdf` is F≤, `strict_cdf` is F, `log_cdf` is log F≤ and `log_ratio` is log(F / F≤). Per outcome:
    `rung` is its rung and `log_share` the log of its part of the rung's probability.
    """

    cdf: Array
    strict_cdf: Array
    log_cdf: Array
    log_ratio: Array
    rung: NDArray[np.intp]
    log_share: Array


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A reference policy over finitely many outcomes, and their rewards; everything is in the caller's order.

    Args:
        probs: probabilities π of the outcomes, shape (K,), K >= 1; zeros are allowed. They must sum to one within
            1e-9 and are then divided by their sum.
        rewards: rewards r of the outcomes, shape (K,), finite; equal rewards are ties.

    Raises:
        ValueError: if a shape, a probability or a reward is not as above.

    Source: Beirami et al., Lemma 2.3; Amini et al., Proposition 1.
    """

    probs: Array
    rewards: Array

    def __init__(self, probs: ArrayLike, rewards: ArrayLike) -> None:
        p = as_probs("probs", probs)
        r = np.array(rewards, dtype=np.float64)
        if r.shape != p.shape:
            raise ValueError(f"rewards has shape {r.shape}; it must have the shape of probs, {p.shape}")
        if not np.isfinite(r).all():
            worst = int(np.flatnonzero(~np.isfinite(r))[0])
            raise ValueError(
                f"rewards[{worst}] is {r[worst]}; every reward must be finite: drop or repair that outcome"
            )
        for name, value in (("probs", p), ("rewards", r)):
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.probs)

    @cached_property
    def log_probs(self) -> Array:
        """Log π(y), shape (K,); −inf where an outcome cannot occur."""
        with np.errstate(divide="ignore"):
            return _frozen(np.log(self.probs))

    @cached_property
    def cdf(self) -> Array:
        """F≤(y) = P[r(Y) <= r(y)], shape (K,)."""
        return _frozen(self._ladder.cdf[self._ladder.rung])

    @cached_property
    def strict_cdf(self) -> Array:
        """F(y) = P[r(Y) < r(y)], shape (K,)."""
        return _frozen(self._ladder.strict_cdf[self._ladder.rung])

    @cached_property
    def calibrated_reward(self) -> Array:
        """c(y) = (F(y) + F≤(y)) / 2, shape (K,): the chance to beat a reference draw, ties counting one half.

        Source: Beirami et al., Eq. 30.
        """
        return _frozen((self.cdf + self.strict_cdf) / 2)

    def log_best_of(self, n: float, ties: Ties = "first") -> Array:
        """Return log π_n(y), the log-probabilities of the best of `n` draws, shape (K,).

        Args:
            n: number of draws, real, finite, at least 1.
            ties: "first", the first drawn among the best wins, so ties share in proportion to π; or "order", the
                higher index counts as better.

        Raises:
            ValueError: if `n` or `ties` is out of range.

        Source: Beirami et al., Lemma 2.3 (π_n = F≤^n − F^n); Amini et al., Appendix C (total order).
        """
        n = as_n(n)
        if ties not in ("first", "order"):
            raise ValueError(f"ties is {ties!r}; it must be 'first' or 'order'")
        ladder = self._ladder if ties == "first" else self._ladder_in_order
        # Both terms are at most 0: no cancellation, whatever n (F**n − G**n loses every digit here).
        log_rung = n * ladder.log_cdf + _log1mexp(n * ladder.log_ratio)
        return log_rung[ladder.rung] + ladder.log_share

    def best_of(self, n: float, ties: Ties = "first") -> Array:
        """Return π_n(y), the probabilities of the best of `n` draws, shape (K,); arguments as in `log_best_of`."""
        return np.exp(self.log_best_of(n, ties))

    def tilt(self, beta: float) -> Array:
        """Return the optimum of KL-regularised reward maximisation, π(y) exp(r(y)/β) normalised, shape (K,).

        Args:
            beta: KL coefficient β > 0 in units of reward; infinity gives the reference back.

        Raises:
            ValueError: if `beta` is not positive.

        Source: Amini et al., Eq. 2; Beirami et al., Eq. 2.
        """
        beta = float(beta)
        if not beta > 0:
            raise ValueError(
                f"beta is {beta}; the KL coefficient must be positive (its limit 0 keeps the best outcome)"
            )
        # Rewards are taken relative to the best possible one before the division, so that a small β cannot overflow.
        advantage = self.rewards - self.rewards[self.probs > 0].max()
        logits = self.log_probs + np.where(self.probs > 0, advantage, 0.0) / beta
        return np.exp(logits - logsumexp(logits))

    def rewind(self, threshold: float) -> Array:
        """Return the rewind-and-repeat policy, draw until r(y) >= `threshold`, shape (K,).

        Its KL to the reference is −log α, with α the probability of acceptance.

        Args:
            threshold: smallest reward that is accepted; some outcome that can occur must reach it.

        Raises:
            ValueError: if no possible outcome reaches `threshold` (the loop would never end) or it is NaN.

        Source: Beirami et al., Lemma 6.1.
        """
        accepted = np.where(self.rewards >= threshold, self.probs, 0.0)
        total = accepted.sum()
        if not total > 0:
            best = self.rewards[self.probs > 0].max()
            raise ValueError(f"threshold is {threshold}; no possible outcome reaches it, the best reward is {best}")
        return accepted / total

    def win_rate(self, p: ArrayLike) -> float:
        """Return the probability that a draw of policy `p` beats a draw of the reference, ties counting one half.

        Args:
            p: probabilities of the policy, shape (K,).

        Source: Beirami et al., Lemma 5.1.
        """
        return float(self._policy(p) @ self.calibrated_reward)

    def mean_reward(self, p: ArrayLike) -> float:
        """Return the expected reward under policy `p`, probabilities of shape (K,)."""
        return float(self._policy(p) @ self.rewards)

    def _policy(self, p: ArrayLike) -> Array:
        policy = as_probs("p", p)
        if policy.shape != self.probs.shape:
            raise ValueError(f"p has shape {policy.shape}; it must have one entry an outcome, {self.probs.shape}")
        return policy

    @cached_property
    def _ladder(self) -> _Ladder:
        _, rung = np.unique(self.rewards, return_inverse=True)
        return self._climb(rung)

    @cached_property
    def _ladder_in_order(self) -> _Ladder:
        rung = np.empty(len(self), dtype=np.intp)
        rung[np.argsort(self.rewards, kind="stable")] = np.arange(len(self))
        return self._climb(rung)

    def _climb(self, rung: NDArray[np.intp]) -> _Ladder:
        mass = np.asarray(np.bincount(rung, weights=self.probs), dtype=np.float64)
        below = _cumulative(mass)
        above = np.append(_cumulative(mass[::-1])[-2::-1], 0.0)
        cdf = np.where(below > 0.5, 1 - above, below)
        strict_cdf = np.append(0.0, cdf[:-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            # Each logarithm comes from the side where its argument is small, hence known to full relative accuracy.
            log_cdf = np.where(below > 0.5, np.log1p(-above), np.log(below))
            log_ratio = np.where(strict_cdf < mass, np.log(strict_cdf / cdf), np.log1p(-mass / cdf))
        log_ratio[mass == 0] = 0.0  # also below the first possible outcome, where it is 0/0
        return _Ladder(cdf, strict_cdf, log_cdf, log_ratio, rung, self._log_shares(rung, mass))

    def _log_shares(self, rung: NDArray[np.intp], mass: Array) -> Array:
        """Log of each outcome's part of its rung; the largest's from what the others leave, to keep its digits."""
        possible = self.probs > 0
        if len(mass) == len(self):
            return np.where(possible, 0.0, -np.inf)
        by_rung = np.lexsort((self.probs, rung))
        largest = by_rung[np.cumsum(np.bincount(rung)) - 1]
        others = np.array(self.probs)
        others[largest] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = self.log_probs - np.log(mass)[rung]
            shares[largest] = np.log1p(-np.bincount(rung, weights=others) / mass)
        return np.where(possible, shares, -np.inf)


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p ‖ q) in nats; infinite where `p` has mass that `q` lacks.

    Args:
        p: probabilities, shape (K,).
        q: probabilities, shape (K,).

    Raises:
        ValueError: if the shapes differ or either is not a distribution.
    """
    p, q = as_probs("p", p), as_probs("q", q)
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q {q.shape}; both must be over the same outcomes")
    held = p > 0
    with np.errstate(divide="ignore"):
        divergence = float(np.sum(p[held] * (np.log(p[held]) - np.log(q[held]))))
    return max(divergence, 0.0)  # rounding may leave −1e-17 where p = q


def as_probs(name: str, value: ArrayLike) -> Array:
    """Return `value` as a float64 distribution that sums to one, or raise a ValueError that calls it `name`."""
    probs = np.array(value, dtype=np.float64)
    if probs.ndim != 1 or probs.size == 0:
        raise ValueError(f"{name} has shape {probs.shape}; it must be one-dimensional with at least one outcome")
    bad = ~(np.isfinite(probs) & (probs >= 0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name}[{first}] is {probs[first]}; probabilities must be finite and not negative")
    total = float(probs.sum())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"{name} sums to {total!r}; probabilities must sum to one within 1e-9: divide by the sum")
    return probs / total


def as_n(n: float) -> float:
    """Return the number of draws as a float, or raise a ValueError if it is not a finite number of at least 1."""
    number = float(n)
    if not 1 <= number < np.inf:
        raise ValueError(f"n is {n}; the number of draws must be finite and at least 1")
    return number


def _frozen(value: Array) -> Array:
    value.setflags(write=False)
    return value


def _cumulative(mass: Array) -> Array:
    """Cumulative sums, in extended precision where the platform has it: a million small terms lose no digits."""
    return np.cumsum(mass, dtype=np.longdouble).astype(np.float64)


def _log1mexp(x: Array) -> Array:
    """log(1 − e^x) for x <= 0, by the branch that keeps its relative accuracy."""
    with np.errstate(divide="ignore"):
        return np.where(x > -np.log(2), np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
