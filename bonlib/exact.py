"""Exact best-of-n on finite outcome sets: the distribution, its neighbours, how far they are and how good.

Everything is float64 and, where numbers may be tiny or n huge, in log space. Nothing here samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from bonlib.checks import as_numbers, one_of, settle

Array = NDArray[np.float64]
Ties = Literal["first", "order"]
TiltReward = Literal["raw", "calibrated", "log_cdf"]

SUM_TOLERANCE = 1e-9
BLOCK = 1 << 17  # outcomes worked on at once: what is made of them stays in the processor's cache
_SMALLEST = np.finfo(np.float64).tiny


class Ladder(NamedTuple):
    """The outcomes as rungs of rising reward, one rung for all that tie; each array holds an entry an outcome.

    Attributes:
        mass: probability of the outcome's rung, shape (K,), as all.
        above: probability of the better ones, small numbers with all their digits.
        cdf: F≤.
        strict_cdf: F.
        log_cdf: log F≤.
        log_ratio: log(F / F≤).
        log_share: log of the outcome's part of its rung; None where none is shared.
    """

    mass: Array
    above: Array
    cdf: Array
    strict_cdf: Array
    log_cdf: Array
    log_ratio: Array
    log_share: Array | None

    def part(self, part: slice) -> Ladder:
        """Return some of the outcomes."""
        return Ladder._make(None if column is None else column[part] for column in self)


class TradeOff(NamedTuple):
    """What a family of policies reaches, one entry a policy.

    Attributes:
        kl: KL to the reference in nats, shape (points,).
        win_rate: against the reference, ties counting one half, shape (points,).
        reward: expected reward, shape (points,).
    """

    kl: Array
    win_rate: Array
    reward: Array


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
        r = np.array(as_numbers("rewards", rewards))
        if r.shape != p.shape:
            raise ValueError(f"rewards has shape {r.shape}; it must have the shape of probs, {p.shape}")
        if not np.isfinite(r).all():
            worst = int(np.flatnonzero(~np.isfinite(r))[0])
            raise ValueError(
                f"rewards[{worst}] is {r[worst]}; every reward must be finite: drop or repair that outcome"
            )
        settle(self, probs=_frozen(p), rewards=_frozen(r))

    def __len__(self) -> int:
        return len(self.probs)

    @cached_property
    def log_probs(self) -> Array:
        """Log π(y), shape (K,); −inf where an outcome cannot occur."""
        with np.errstate(divide="ignore"):
            return _frozen(np.log(self.probs))

    @property
    def cdf(self) -> Array:
        """F≤(y) = P[r(Y) <= r(y)], shape (K,)."""
        return self.ladder.cdf

    @property
    def strict_cdf(self) -> Array:
        """F(y) = P[r(Y) < r(y)], shape (K,)."""
        return self.ladder.strict_cdf

    @property
    def log_cdf(self) -> Array:
        """Log F≤(y), shape (K,); −inf where nothing that can occur is as bad."""
        return self.ladder.log_cdf

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
        n, ladder = self._selection(n, ties)
        log_policy = np.empty(len(self))
        for part, (found, log_no_better) in blocks(len(self), 2):
            _selected(ladder, n, part, found, log_no_better)
            with np.errstate(divide="ignore"):
                log_probs = np.log(found, out=log_policy[part])
            log_probs += log_no_better
            # What is almost sure has a logarithm near 0, whose digits only log1p keeps.
            sure = np.flatnonzero(log_probs > -0.5)
            log_probs[sure] = log_no_better[sure] + np.log1p(-np.exp(n * ladder.log_ratio[part][sure]))
            if ladder.log_share is not None:
                log_probs += ladder.log_share[part]
        return log_policy

    def best_of(self, n: float, ties: Ties = "first") -> Array:
        """Return π_n(y), the probabilities of the best of `n` draws, shape (K,); arguments as in `log_best_of`."""
        n, ladder = self._selection(n, ties)
        policy = np.empty(len(self))
        for part, (room,) in blocks(len(self), 1):
            _best_of(ladder, n, part, policy[part], room)
        return policy

    def _selection(self, n: float, ties: Ties) -> tuple[float, Ladder]:
        one_of("ties", ties, ("first", "order"))
        return float(as_n(n)), self.ladder if ties == "first" else self._ladder_in_order

    def tilt(self, beta: float, reward: TiltReward = "raw") -> Array:
        """Return the optimum of KL-regularised reward maximisation, π(y) exp(r(y)/β) normalised, shape (K,).

        Args:
            beta: KL coefficient β > 0 in units of reward; infinity gives the reference back.
            reward: what is maximised: "raw", the reward itself; "calibrated", the chance to beat a reference draw,
                whose tilts have the highest win rate at their KL; or "log_cdf", log F≤, where β = 1/(n−1) gives
                best-of-n up to BOND's term B.

        Raises:
            ValueError: if `beta` is not positive or `reward` is none of the three.

        Source: Amini et al., Eq. 2 and Theorem 2; Beirami et al., Eq. 2; Sessa et al., Eq. 8.
        """
        beta = float(beta)
        if not beta > 0:
            raise ValueError(
                f"beta is {beta}; the KL coefficient must be positive (its limit 0 keeps the best outcome)"
            )
        rewards = {"raw": self.rewards, "calibrated": self.calibrated_reward, "log_cdf": self.log_cdf}
        return softmax(self.log_probs + self._advantage(rewards[one_of("reward", reward, rewards)]) / beta)

    def rebase(self, p: ArrayLike) -> Outcomes:
        """Return the same outcomes and rewards with policy `p`, shape (K,), as the reference to draw from.

        So `model.rebase(model.best_of(m)).best_of(n)` is best-of-n of best-of-m, which is best-of-(n·m).
        """
        return Outcomes(p, self.rewards)

    def trade_off(self, family: Callable[[float], ArrayLike], knobs: Iterable[float]) -> TradeOff:
        """Return KL, win rate and reward of a family of policies over a grid of its knob.

        Args:
            family: maps a knob to probabilities of shape (K,): `best_of` over n, `tilt` over β.
            knobs: values of the knob, shape (points,).
        """
        points = []
        for knob in knobs:
            total = kl = won = reward = 0.0
            for part, p, room in self._in_blocks(family, float(knob)):
                total += float(p.sum())
                won += float(p @ self.calibrated_reward[part])
                reward += float(p @ self.rewards[part])
                kl += _kl_sum(p, self.probs[part], room)
            points.append((_kl(kl, total, 1.0), won / total, reward / total))
        return TradeOff(*np.array(points, dtype=np.float64).reshape(-1, 3).T)

    def _in_blocks(self, family: Callable[[float], ArrayLike], knob: float) -> Iterator[tuple[slice, Array, Array]]:
        """A policy in blocks, with room for as many numbers; best-of-n is never whole in memory, which is slow."""
        if family == self.best_of:
            n, ladder = self._selection(knob, "first")
            for part, (p, room) in blocks(len(self), 2):
                _best_of(ladder, n, part, p, room)
                yield part, p, room
        else:
            policy, _ = self._policy(family(knob))
            for part, (room,) in blocks(len(self), 1):
                yield part, policy[part], room

    def win_rate(self, p: ArrayLike) -> float:
        """Return the probability that a draw of policy `p` beats a draw of the reference, ties counting one half.

        Args:
            p: probabilities of the policy, shape (K,).

        Source: Beirami et al., Lemma 5.1.
        """
        policy, total = self._policy(p)
        return float(policy @ self.calibrated_reward) / total

    def mean_reward(self, p: ArrayLike) -> float:
        """Return the expected reward under policy `p`, probabilities of shape (K,)."""
        policy, total = self._policy(p)
        return float(policy @ self.rewards) / total

    def reward_variance(self, p: ArrayLike) -> float:
        """Return the variance of the reward under policy `p`, probabilities of shape (K,)."""
        policy, total = self._policy(p)
        return float(policy @ (self.rewards - policy @ self.rewards / total) ** 2) / total

    def _advantage(self, rewards: Array) -> Array:
        """Rewards relative to the best possible one, so that dividing by a small temperature cannot overflow."""
        possible = self.probs > 0
        return np.where(possible, rewards - rewards[possible].max(), 0.0)

    def _policy(self, p: ArrayLike) -> tuple[Array, float]:
        policy, total = _checked_probs("p", p)
        if policy.shape != self.probs.shape:
            raise ValueError(f"p has shape {policy.shape}; it must have one entry an outcome, {self.probs.shape}")
        return policy, total

    @cached_property
    def ladder(self) -> Ladder:
        """Where each outcome stands among the others, ties together, for what is made of it in blocks."""
        _, rung = np.unique(self.rewards, return_inverse=True)
        return self._climb(rung)

    @cached_property
    def _ladder_in_order(self) -> Ladder:
        rung = np.empty(len(self), dtype=np.intp)
        rung[np.argsort(self.rewards, kind="stable")] = np.arange(len(self))
        return self._climb(rung)

    def _climb(self, rung: NDArray[np.intp]) -> Ladder:
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
        columns = (_frozen(column[rung]) for column in (mass, above, cdf, strict_cdf, log_cdf, log_ratio))
        return Ladder._make([*columns, self._log_shares(rung)])

    def _log_shares(self, rung: NDArray[np.intp]) -> Array | None:
        """Log of each outcome's part of its rung; the largest's from what the others leave, to keep its digits."""
        if len(np.unique(rung)) == len(self):
            return None
        by_rung = np.lexsort((self.probs, rung))
        largest = by_rung[np.cumsum(np.bincount(rung)) - 1]
        others = np.array(self.probs)
        others[largest] = 0.0
        mass = np.bincount(rung, weights=self.probs)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = self.log_probs - np.log(mass)[rung]
            shares[largest] = np.log1p(-np.bincount(rung, weights=others) / mass)
        return np.where(self.probs > 0, shares, -np.inf)


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p ‖ q) in nats; infinite where `p` has mass that `q` lacks.

    Args:
        p: probabilities, shape (K,).
        q: probabilities, shape (K,).

    Raises:
        ValueError: if the shapes differ or either is not a distribution.
    """
    (p, p_total), (q, q_total) = _checked_probs("p", p), _checked_probs("q", q)
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q {q.shape}; both must be over the same outcomes")
    return _kl(sum(_kl_sum(p[part], q[part], *room) for part, room in blocks(len(p), 1)), p_total, q_total)


def _kl_sum(p: Array, q: Array, room: Array) -> float:
    """Σ p log(p/q) of some outcomes; `room` is written over."""
    if q.min() < _SMALLEST:  # dividing by it could overflow
        held = p > 0
        p, q = p[held], q[held]
        return float(p @ (np.log(p) - np.log(q))) if (q > 0).all() else np.inf
    log_ratio = np.divide(p, q, out=room[: len(p)])
    np.maximum(log_ratio, _SMALLEST, out=log_ratio)  # where p is 0 any finite logarithm will do
    return float(p @ np.log(log_ratio, out=log_ratio))


def _kl(sum_: float, p_total: float, q_total: float) -> float:
    """KL from Σ p log(p/q) of probabilities whose sums are off one by rounding."""
    return max(float(sum_ / p_total - np.log(p_total / q_total)), 0.0)  # rounding may leave −1e-17 where p = q


def entropy(p: ArrayLike) -> float:
    """Return the Shannon entropy of probabilities `p`, shape (K,), in nats."""
    p = as_probs("p", p)
    return float(-p @ np.log(np.maximum(p, _SMALLEST)))


def renyi2(p: ArrayLike) -> float:
    """Return the Rényi entropy of order two, −log Σ p², of probabilities `p`, shape (K,), in nats.

    e to minus this is the chance that two draws are the same.

    Source: Beirami et al., Eq. 16.
    """
    p = as_probs("p", p)
    return float(-np.log(p @ p))


def as_probs(name: str, value: ArrayLike) -> Array:
    """Return `value` as a float64 distribution that sums to one, or raise a ValueError that calls it `name`."""
    probs, total = _checked_probs(name, value)
    return probs / total


def _checked_probs(name: str, value: ArrayLike) -> tuple[Array, float]:
    """The probabilities as given and their sum, which may be off one by rounding; without a copy, for large sets."""
    probs = as_numbers(name, value)
    if probs.ndim != 1 or probs.size == 0:
        raise ValueError(f"{name} has shape {probs.shape}; it must be one-dimensional with at least one outcome")
    total = float(probs.sum())
    if not (probs.min() >= 0 and np.isfinite(total)):  # also where a NaN is
        first = int(np.flatnonzero(~(np.isfinite(probs) & (probs >= 0)))[0])
        raise ValueError(f"{name}[{first}] is {probs[first]}; probabilities must be finite and not negative")
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"{name} sums to {total!r}; probabilities must sum to one within 1e-9: divide by the sum")
    return probs, total


def as_n(n: ArrayLike) -> Array:
    """Return numbers of draws as float64, or raise a ValueError if one is not finite or below 1."""
    numbers = as_numbers("n", n)
    bad = ~((numbers >= 1) & np.isfinite(numbers))
    if bad.any():
        raise ValueError(f"n is {numbers[bad].flat[0]}; the number of draws must be finite and at least 1")
    return numbers


def blocks(count: int, rooms: int = 0) -> Iterator[tuple[slice, Array]]:
    """Yield blocks of so many outcomes, and for each some room, (rooms, block), that is the same for all of them."""
    room = np.empty((rooms, min(BLOCK, count)))
    for begin in range(0, count, BLOCK):
        part = slice(begin, min(begin + BLOCK, count))
        yield part, room[:, : part.stop - begin]


def _best_of(ladder: Ladder, n: float, part: slice, policy: Array, room: Array) -> None:
    """Write the probabilities of the best of n of some outcomes; `room` is written over."""
    _selected(ladder, n, part, policy, room)
    if ladder.log_share is not None:
        room += ladder.log_share[part]
    policy *= np.exp(room, out=room)


def _selected(ladder: Ladder, n: float, part: slice, found: Array, log_no_better: Array) -> None:
    """Write the two factors of F≤^n − F^n = F≤^n · (1 − (F/F≤)^n), the first as its logarithm.

    Neither cancels, whatever n; the difference itself loses every digit.
    """
    np.multiply(n, ladder.log_ratio[part], out=found)
    np.expm1(found, out=found)
    np.negative(found, out=found)
    np.multiply(n, ladder.log_cdf[part], out=log_no_better)


def _frozen(value: Array) -> Array:
    value.setflags(write=False)
    return value


def _cumulative(mass: Array) -> Array:
    """Cumulative sums, in extended precision where the platform has it: a million small terms lose no digits."""
    return np.cumsum(mass, dtype=np.longdouble).astype(np.float64)
