"""Exact optima and laws of training that knows how draws are used: against each other, best of n, or filtered."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, log_softmax, softmax

from bonlib.checks import as_numbers, number, whole
from bonlib.exact import Array, Outcomes, as_probs

STEPS = 1000  # until the iteration gives up; it takes some 50


class SelfPlay(NamedTuple):
    """What WIND's equilibrium is over continuous rewards.

    Attributes:
        win_rate: against the reference.
        kl: to the reference, nats.
        draws: mean of N, if the equilibrium is drawn as best of a random N.
    """

    win_rate: float
    kl: float
    draws: float


def wind_optimum(outcomes: Outcomes, beta: float) -> Array:
    """Return the policy that no other beats: it maximises E[y beats y'] − β KL(· ‖ π) against itself, shape (K,).

    It is π exp(c/β), normalised, where c is the chance to beat a draw of that very policy, ties counting one half.

    Args:
        outcomes: the reference and its rewards.
        beta: KL coefficient β, above 0, in units of win rate.

    Raises:
        ValueError: if `beta` is not above 0.
        RuntimeError: if the iteration does not settle.

    Source: Yang et al. 2024 (WIND), its iteration with step size 1/β, which halves the distance each time.
    """
    beta = float(number("beta", beta, above=0, what="the KL coefficient"))
    log_policy = outcomes.log_probs
    for _ in range(STEPS):
        against_itself = outcomes.rebase(softmax(log_policy)).calibrated_reward
        answer = log_softmax(outcomes.log_probs + against_itself / beta)
        moved = np.where(outcomes.probs > 0, (log_policy + answer) / 2, -np.inf)
        step, log_policy = np.exp(moved) - np.exp(log_policy), moved
        if np.abs(step).max() < 1e-16:
            return softmax(log_policy)
    raise RuntimeError(f"beta is {beta}; the iteration has not settled after {STEPS} steps: take a larger one")


def wind_continuous(beta: float) -> SelfPlay:
    """Return what the equilibrium of `wind_optimum` reaches where no two rewards tie, the limit of many outcomes.

    It is best of N draws with N from the logarithmic series of parameter a = 1 − e^(−1/β): its density over u = F is
    βa / (1 − au). Its win rate is that of the tilt of u at the same β, at a higher KL.

    Args:
        beta: KL coefficient β, above 0, in units of win rate.

    Raises:
        ValueError: if `beta` is not above 0.

    Source: derived from the fixed point of Yang et al. 2024 (WIND): F' = exp(F/β)/Z.
    """
    half = 1 / (2 * number("beta", beta, above=0, what="the KL coefficient"))
    win_rate = (1 + 1 / math.tanh(half) - 1 / half) / 2
    kl = half + math.log(-math.expm1(-2 * half) / (2 * half))
    return SelfPlay(win_rate, kl, math.expm1(2 * half) / (2 * half) if half < 350 else math.inf)


def inference_win_rate(outcomes: Outcomes, policy: ArrayLike, n: int) -> float:
    """Return the chance that best-of-n of a policy beats best-of-n of the reference, ties counting one half.

    Args:
        outcomes: the reference and its rewards.
        policy: probabilities, shape (K,).
        n: number of draws of each, whole, at least 1.

    Raises:
        ValueError: if `policy` is no distribution over the outcomes or `n` is out of range.

    Source: Balashankar et al. 2024 (InfAlign).
    """
    n = whole("n", n, 1, what="the number of draws")
    return outcomes.rebase(outcomes.best_of(n)).win_rate(outcomes.rebase(policy).best_of(n))


def best_of_slope(outcomes: Outcomes, policy: ArrayLike, n: int, values: ArrayLike | None = None) -> Array:
    """Return how fast the mean value of best-of-n of a policy grows with each probability, shape (K,).

    The gradient in the policy's logits is `policy * (slope − policy @ slope)`. With rewards as values it is that of
    max@n; with the calibrated reward under best-of-n of the reference, that of `inference_win_rate`.

    Args:
        outcomes: where the outcomes stand.
        policy: probabilities, shape (K,).
        n: number of draws, whole, at least 1.
        values: of outcomes, equal where rewards tie, shape (K,); None for the rewards.

    Raises:
        ValueError: if `policy` is no distribution over the outcomes, a shape is another or `n` is out of range.

    Source: Balashankar et al. 2024 (InfAlign), for win rates; Walder and Karkhanis 2025 (PKPO), for rewards.
    """
    n = whole("n", n, 1, what="the number of draws")
    by_rung, rung = _by_rung(outcomes, values)
    probs = as_probs("policy", policy)
    if probs.shape != rung.shape:
        raise ValueError(f"policy has shape {probs.shape}; it must have one entry an outcome, {rung.shape}")
    cdf = np.cumsum(np.bincount(rung, weights=probs))[:-1]
    # The mean is the best value less Σ (rise to the next rung) Q^n, so no two large numbers cancel.
    missed = np.append(np.cumsum((np.diff(by_rung) * cdf ** (n - 1))[::-1])[::-1], 0.0)
    return np.asarray(n * (by_rung[-1] - missed)[rung], dtype=np.float64)


def best_of_optimum(outcomes: Outcomes, n: int, beta: float, values: ArrayLike | None = None) -> Array:
    """Return the policy with the highest mean value of its best-of-n, less β KL(· ‖ π), shape (K,).

    It is π exp(R/β), normalised, where R is its own `best_of_slope`. From a rung of rewards to the next R grows by n
    Q^(n−1) times the rise of the value, Q the policy's chance of no more than the lower rung. So the chance of the
    lowest rung decides all others, and their sum finds it. The objective is concave: there is one optimum.

    Args:
        outcomes: the reference and its rewards.
        n: number of draws, whole, at least 1.
        beta: KL coefficient β, above 0, in units of the value.
        values: of outcomes, equal where rewards tie and not falling where they rise, shape (K,); None for the rewards.

    Raises:
        ValueError: if an argument is out of range.

    Source: the stationary point of Balashankar et al. 2024 (InfAlign), climbed from below.
    """
    n = whole("n", n, 1, what="the number of draws")
    beta = float(number("beta", beta, above=0, what="the KL coefficient"))
    by_rung, rung = _by_rung(outcomes, values)
    mass = np.bincount(rung, weights=outcomes.probs)
    pulls = np.diff(by_rung, prepend=by_rung[0]) * n / beta
    if pulls.min() < 0:
        raise ValueError(
            "values falls where rewards rise; best-of-n keeps the highest reward: give values in its order"
        )

    def climbed(lowest: float) -> tuple[list[float], float]:
        """Log policy/reference of the rungs, from that of the lowest, and the sum of the policy, at most 2."""
        log_ratio, total, found = lowest, 0.0, []
        for pull, part in zip(pulls.tolist(), mass.tolist(), strict=True):
            log_ratio += pull * total ** (n - 1) if pull else 0.0
            found.append(log_ratio)
            total += part * math.exp(min(log_ratio, 700.0))
            if total > 2:
                break
        return found, min(total, 2.0)

    low = -1.0
    while climbed(low)[1] > 1:
        low *= 2
    ratios, _ = climbed(float(brentq(lambda lowest: climbed(lowest)[1] - 1, low, 1e-9, xtol=1e-15, rtol=1e-15)))
    return np.asarray(softmax(outcomes.log_probs + np.array(ratios)[rung]))


def infalign_optimum(outcomes: Outcomes, n: int, beta: float) -> Array:
    """Return the policy with the highest `inference_win_rate`, less β KL(· ‖ π), shape (K,).

    Args:
        outcomes: the reference and its rewards.
        n: number of draws of both sides, whole, at least 1.
        beta: KL coefficient β, above 0, in units of win rate.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Balashankar et al. 2024 (InfAlign), its coupled optimum.
    """
    n = whole("n", n, 1, what="the number of draws")
    return best_of_optimum(outcomes, n, beta, outcomes.rebase(outcomes.best_of(n)).calibrated_reward)


def filtered(outcomes: Outcomes, weights: ArrayLike) -> Array:
    """Return the law of a draw kept by rank: of N draws, the i-th best is taken with the i-th weight, shape (K,).

    Draws that tie are equally likely to be the better one.

    Args:
        outcomes: the policy that draws, and its rewards.
        weights: of the best, the second best, …, the worst of N draws, shape (N,); they sum to one.

    Raises:
        ValueError: if the weights are no distribution.

    Source: Zhang et al. 2024 (PF-PPO); the laws are those of order statistics.
    """
    weights = as_probs("weights", weights)
    count, above, mass = len(weights), outcomes.ladder.above, outcomes.ladder.mass
    ranks = np.arange(count)[:, None]
    # The (i+1)-th best is no better than a rung exactly if at most i draws are above it.
    found = bdtr(ranks, count, above) - bdtr(ranks, count, np.minimum(above + mass, 1.0))
    share = np.divide(outcomes.probs, mass, out=np.zeros(len(outcomes)), where=mass > 0)
    return np.asarray(weights @ found * share, dtype=np.float64)


def _by_rung(outcomes: Outcomes, values: ArrayLike | None) -> tuple[Array, NDArray[np.intp]]:
    """The values of the rungs of rewards, rising, and the rung of each outcome."""
    given = outcomes.rewards if values is None else as_numbers("values", values)
    if given.shape != outcomes.rewards.shape:
        raise ValueError(f"values has shape {given.shape}; it must be that of the outcomes, {outcomes.rewards.shape}")
    _, first, rung = np.unique(outcomes.rewards, return_index=True, return_inverse=True)
    return given[first], rung
