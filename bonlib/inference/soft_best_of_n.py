"""Soft best-of-n: a draw is kept with a probability that grows with its reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import number, settle, whole
from bonlib.exact import BLOCK, Array, Outcomes, as_n
from bonlib.inference.rules import Choice, OfN, all_spent, checked_rewards, register

CELL, POINTS = 1 / 32, 8  # grid of log-weights in nats, and the points of it that an outcome is interpolated from
_FARTHEST = 200_000  # nats between rewards up to which the integral is taken
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class SoftBestOfN(OfN):
    """Of `n` draws keep one with probability ∝ exp(reward / temperature).

    Args:
        n: draws to choose among, a whole number, at least 1.
        temperature: λ > 0 in units of reward; towards 0 it is best-of-n, towards infinity random-of-n.

    Raises:
        ValueError: if `n` or `temperature` is out of range.

    Source: Verdun et al. 2025.
    """

    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, temperature=_checked_temperature(self.temperature))

    def choose(self, rewards: ArrayLike, *, seed: int = 0) -> Choice:
        """Return one of draws with rewards (..., n), at random."""
        table = checked_rewards(rewards, self.n)
        generator = np.random.default_rng(whole("seed", seed))
        return Choice(softmax_draw(log_weights(table, self.temperature), generator), all_spent(table))

    def law(self, outcomes: Outcomes) -> Array:
        """Return how likely each outcome is kept, shape (K,)."""
        return soft_best_of(outcomes, self.n, self.temperature)


def log_weights(rewards: Array, temperature: float) -> Array:
    """Return log e^{r/λ} less that of the best, shape (..., n); a small temperature makes −∞ of all but the best."""
    with np.errstate(over="ignore"):
        return np.asarray((rewards - rewards.max(axis=-1, keepdims=True)) / temperature)


def softmax_draw(scores: Array, generator: np.random.Generator) -> NDArray[np.intp]:
    """Return a place on the last axis, drawn with probability ∝ exp(score), for scores of shape (..., n)."""
    # The largest of scores with Gumbel noise is a draw from their softmax.
    return (scores + generator.gumbel(size=scores.shape)).argmax(axis=-1)


def soft_best_of(outcomes: Outcomes, n: float, temperature: float) -> Array:
    """Return the law of soft best-of-n, shape (K,).

    Its limits are best-of-n (temperature 0), the reference (infinity), and the tilt π e^{r/λ} (n infinite).

    The relative error found was 1e-15 to 2e-12 for whole n, the most for many outcomes and probabilities of 1e-98; for
    others up to 1e-10, where n < 2 and π is as small as 1e-12. The time grows with the range of the rewards in
    temperatures, hardly with the outcomes.

    Args:
        outcomes: the world.
        n: number of draws, real, finite, at least 1.
        temperature: λ > 0 in units of reward.

    Raises:
        ValueError: if `n` or `temperature` is out of range, or the temperature so small that rewards of many outcomes
            are hundreds of thousands of temperatures apart.

    Source: Verdun et al. 2025 (soft best-of-n); with w = exp(r/λ) and φ(t) = Σ π e^{−tw} the probabilities are
        n π w ∫ e^{−tw} φ(t)^{n−1} dt, because 1/Σw_i = ∫ e^{−tΣw_i} dt.
    """
    n, temperature = float(as_n(n)), _checked_temperature(temperature)
    possible = outcomes.probs > 0
    advantage = np.where(possible, outcomes.rewards - outcomes.rewards[possible].max(), 0.0)
    if np.ptp(advantage) < CELL * temperature * (len(advantage) - POINTS):  # more outcomes than points of the grid
        lift = _lift_by_grid(advantage / temperature, outcomes.probs, n)
    else:
        levels, place = np.unique(advantage, return_inverse=True)
        # A step of 800 nats is as good as any larger one, and small numbers keep their digits.
        with np.errstate(over="ignore"):
            log_w = np.append(0.0, np.cumsum(np.minimum(np.diff(levels) / temperature, 800.0)))
        if min(log_w[-1], 100 * len(log_w)) > _FARTHEST:
            raise ValueError(
                f"temperature is {temperature}, with {len(log_w):,} rewards too far apart for it: take best_of({n:g})"
            )
        mass = np.asarray(np.bincount(place, weights=outcomes.probs), dtype=np.float64)
        lift = _lift(log_w - log_w[-1], mass, n)[place]
    policy = outcomes.probs * lift
    return policy / policy.sum()


def _lift(log_w: Array, mass: Array, n: float) -> Array:
    """P/π for rising weights: n w ∫ e^{−tw} φ(t)^{n−1} dt over t > 0, with φ(t) = Σ mass e^{−tw}.

    In s = log t the integrand is analytic for |Im s| < π/2, and there for whole n at most 1/cos(Im s) times what it is
    in all: the trapezoid rule with step 1/4 errs by a factor within 1e-15 of one. For other n a power of φ branches
    where φ is 0, which may be nearer; hence the smaller step. Nodes are where t w or n t w is of order one for some w.
    """
    step = 1 / 4 if n == int(n) else 1 / 16
    nodes = step * _nodes((-log_w[::-1] - np.log(n) - 45) / step, (-log_w[::-1] + 5) / step)
    below, above = np.append(0.0, np.cumsum(mass)), np.append(np.cumsum(mass[::-1])[::-1], 0.0)
    lift = np.zeros(len(log_w))
    for block in np.array_split(nodes, 1 + len(nodes) // 16):
        # Outside of this e^{-tw} is just 1 or 0.
        low, high = np.searchsorted(log_w, [-745.0 - block[-1], 7.0 - block[0]])
        tw = np.exp(np.minimum(block[:, None] + log_w[low:high], 700.0))
        fallen = np.exp(-tw)
        phi = below[low] + fallen @ mass[low:high]
        log_phi = np.log(np.maximum(phi, _SMALLEST))
        near = phi > 0.5
        log_phi[near] = np.log1p(np.expm1(-tw[near]) @ mass[low:high] - above[high])
        lift[low:high] += np.exp((n - 1) * log_phi) @ (tw * fallen)
    return n * step * lift


def _nodes(first: Array, last: Array) -> Array:
    """The whole numbers in any of the intervals, which are rising at both ends."""
    first, last = np.floor(first), np.ceil(last)
    first[1:] = np.maximum(first[1:], last[:-1] + 1)
    count = (last - first + 1).astype(np.int64)
    return np.repeat(first - np.append(0, np.cumsum(count)[:-1]), count) + np.arange(count.sum())


def _lift_by_grid(log_w: Array, probs: Array, n: float) -> Array:
    """P/π, from that of an equidistant grid of log-weights: it is a smooth function, as is what φ takes of each.

    Interpolation errs by 2e-14 at most in what was tried: masses from 1e-12, ranges from 6 to 200 nats, n to 1e6.
    """
    places = np.floor(log_w / CELL)
    start = places.min() + 1 - POINTS // 2
    places = (places - places.min()).astype(np.int64)
    size = int(places.max()) + POINTS
    mass = np.zeros(size)
    parts = [slice(begin, begin + BLOCK) for begin in range(0, len(log_w), BLOCK)]
    for part in parts:
        for point, weight in enumerate(_weights(log_w[part])):
            mass += np.bincount(places[part] + point, weights=weight * probs[part], minlength=size)
    used = np.flatnonzero(np.convolve(np.bincount(places), np.ones(POINTS)) > 0.5)
    on_grid = np.zeros(size)
    on_grid[used] = _lift(CELL * (start + used), mass[used], n)
    lift = np.zeros(len(log_w))
    for part in parts:
        for point, weight in enumerate(_weights(log_w[part])):
            lift[part] += weight * on_grid[places[part] + point]
    return lift


def _weights(log_w: Array) -> Array:
    """Lagrange's weights of the grid's points around each, shape (POINTS, outcomes)."""
    offsets = np.arange(POINTS) + 1 - POINTS // 2
    distance = log_w / CELL - np.floor(log_w / CELL) - offsets[:, None]
    weights = np.ones_like(distance)
    for point in range(1, POINTS):
        weights[point] = weights[point - 1] * distance[point - 1]
    right = np.ones_like(log_w)
    for point in range(POINTS - 1, -1, -1):
        weights[point] *= right / np.prod(np.delete(offsets[point] - offsets, point))
        right *= distance[point]
    return weights


class Approach(NamedTuple):
    """How soft best-of-n nears the tilt π_λ ∝ π e^{r/λ} as n grows; u = π_λ/π.

    Attributes:
        chi_squared: χ²(π_λ ‖ π), with which KL(π_λ ‖ P_n) <= log(1 + χ²/n).
        kl_rate: the limit of n² KL(π_λ ‖ P_n), and of n² KL(P_n ‖ π_λ): the variance of u under π_λ, halved.
        gap_rate: the limit of n times the mean reward that is missing: the covariance of reward and u under π_λ.
        kappa: κ = E_{π_λ}[r u] / E_{π_λ} r, of rewards above the least possible one.
        gap_scale: E_{π_λ} r of those; at most a share (κ − 1)/(n + κ − 1) of it is missing.
    """

    chi_squared: float
    kl_rate: float
    gap_rate: float
    kappa: float
    gap_scale: float


def approach_to_tilt(outcomes: Outcomes, temperature: float) -> Approach:
    """Return how fast soft best-of-n at this temperature nears its limit.

    Args:
        outcomes: the world.
        temperature: λ > 0 in units of reward.

    Raises:
        ValueError: if `temperature` is out of range.

    Source: derived here from P_n = π_λ (1 + (χ² − (u − 1))/n + O(1/n²)); the bound in χ² has the form of Verdun et al.
        2025, whose O(1/n) is O(1/n²) on finite sets.
    """
    tilt = outcomes.tilt(_checked_temperature(temperature))
    possible = outcomes.probs > 0
    tilt, probs, rewards = tilt[possible], outcomes.probs[possible], outcomes.rewards[possible]
    ratio, rewards = tilt / probs, rewards - rewards.min()
    mean_ratio, mean_reward = tilt @ ratio, tilt @ rewards
    covariance = tilt @ (rewards * (ratio - mean_ratio))
    return Approach(
        chi_squared=float(mean_ratio - 1),
        kl_rate=float(tilt @ (ratio - mean_ratio) ** 2 / 2),
        gap_rate=float(covariance),
        kappa=float(tilt @ (rewards * ratio) / mean_reward) if mean_reward > 0 else 1.0,
        gap_scale=float(mean_reward),
    )


def reward_gap_bound(outcomes: Outcomes, n: float, temperature: float) -> float:
    """Return an upper bound on the mean reward that soft best-of-n has less than the tilt.

    Arguments as in `soft_best_of`.

    Source: derived here, from P_n >= π_λ/(1 + (u − 1)/n).
    """
    near = approach_to_tilt(outcomes, temperature)
    return near.gap_scale * (near.kappa - 1) / (float(as_n(n)) + near.kappa - 1)


def soft_kl_bound(n: float, spread: float) -> float:
    """Return an upper bound on KL(soft best-of-n ‖ π) in nats, log(n/(1 + (n − 1)e^{−R/λ})).

    No probability grows by more than that, either.

    Args:
        n: number of draws, real, finite, at least 1.
        spread: R/λ, the range of the rewards in temperatures.

    Raises:
        ValueError: if an argument is out of range.

    Source: derived here.
    """
    n = float(as_n(n))
    return float(np.log(n) - np.log1p((n - 1) * np.exp(-number("spread", spread, least=0))))


def _checked_temperature(temperature: float) -> float:
    return float(number("temperature", temperature, above=0, what="its limit 0 is best-of-n, and it"))


register(
    name="soft",
    make=SoftBestOfN,
    label="soft best-of-n",
    knob="temperature",
    grid=(0.1, 0.3, 1.0),
    scale="reward",
    keeps="one with probability ∝ exp(reward / λ)",
    costs="n draws and rewards",
    source="Verdun et al. 2025",
    place=10,
)
