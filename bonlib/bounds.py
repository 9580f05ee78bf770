"""Bounds and estimators for how far best-of-n is from its reference, and how good it can be.

Every function takes arrays and broadcasts; numbers of draws are real, from 1 to at least 1e12.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import elementwise
from scipy.special import digamma, logsumexp

from bonlib.exact import SUM_TOLERANCE, Array, as_n


def kl_bound(n: ArrayLike) -> Array:
    """Return A_n = log n − (n−1)/n, an upper bound on KL(π_n ‖ π) in nats that is often taken for its value.

    Args:
        n: number of draws, any shape.

    Returns:
        The bound, of the shape of `n`.

    Source: Beirami et al., Eq. 4 and Theorem 3.1.
    """
    n = as_n(n)
    return np.log(n) - (n - 1) / n


def kl_gap_upper(n: ArrayLike, probs: ArrayLike) -> Array:
    """Return 2 n (n−1) Σ π², an upper bound on A_n − KL(π_n ‖ π) in nats.

    It holds for n = 1 and n >= 2. For real n between, an improbable worst outcome with a fine rest breaks it: its part
    of the gap falls with π^n, that of the bound with π².

    Args:
        n: number of draws, any shape.
        probs: reference probabilities π, shape (..., K); `n` broadcasts against (...).

    Raises:
        ValueError: if `n` is out of range or `probs` does not sum to one along its last axis.

    Source: Beirami et al., Theorem 3.4 (Σ π² is e to minus the Rényi entropy of order two).
    """
    n = as_n(n)
    return 2 * n * (n - 1) * _collision(probs)


def kl_gap_lower(n: ArrayLike, top_prob: ArrayLike) -> Array:
    """Return A_n − K̂_n(ε∞), a lower bound on A_n − KL(π_n ‖ π) in nats that grows without limit once n ε∞ does.

    Args:
        n: number of draws, any shape.
        top_prob: probability ε∞ of the best outcome under the reference, from 0 to 1; broadcast against `n`.

    Source: Beirami et al., Theorem 3.6.
    """
    return _kl_gap(_log_chance("top_prob", top_prob), as_n(n))


def kl_from_winner(log_prob: ArrayLike, n: ArrayLike) -> Array:
    """Return K̂_n, the estimate of KL(π_n ‖ π) in nats from the probability ε of the winning response alone.

    Its expectation over winners is an upper bound on the KL, and it never exceeds `kl_bound`.

    Args:
        log_prob: log ε of the winner under the reference, at most 0; any shape, −inf is the limit ε = 0.
        n: number of draws; broadcast against `log_prob`.

    Returns:
        The estimate, of the broadcast shape.

    Raises:
        ValueError: if `log_prob` is positive or NaN, or `n` is out of range.

    Source: Beirami et al., Definition 4.3.
    """
    log_prob, n = _log_probs(log_prob), as_n(n)
    return np.log(n) - (n - 1) / n - _kl_gap(log_prob, n)


def kl_crude(log_prob: ArrayLike, n: ArrayLike) -> Array:
    """Return log((1 − (1−ε)^n) / ε), the cruder estimate from the winner's probability ε, in nats.

    Its expectation over winners is between KL(π_n ‖ π) and one nat more.

    Args:
        log_prob: log ε of the winner under the reference, at most 0; any shape, −inf is the limit ε = 0.
        n: number of draws; broadcast against `log_prob`.

    Source: Beirami et al., Lemma 4.1.
    """
    log_prob, n = _log_probs(log_prob), as_n(n)
    return np.log(n) + _shortfall(log_prob, n)


def win_rate_bound(n: ArrayLike) -> Array:
    """Return n/(n+1), an upper bound on the win rate of best-of-n against its reference.

    Args:
        n: number of draws, any shape.

    Source: Beirami et al., Theorem 5.3.
    """
    n = as_n(n)
    return n / (n + 1)


def win_rate_gap_upper(n: ArrayLike, probs: ArrayLike) -> Array:
    """Return (n−1)/2 Σ π², an upper bound on how far the win rate of best-of-n stays below n/(n+1).

    Args:
        n: number of draws, any shape.
        probs: reference probabilities π, shape (..., K); `n` broadcasts against (...).

    Source: Beirami et al., Theorem 5.4.
    """
    return (as_n(n) - 1) / 2 * _collision(probs)


def win_rate_gap_lower(n: ArrayLike, top_prob: ArrayLike) -> Array:
    """Return a lower bound on how far the win rate of best-of-n stays below n/(n+1); it tends to ε∞/2.

    Args:
        n: number of draws, any shape.
        top_prob: probability ε∞ of the best outcome under the reference, from 0 to 1; broadcast against `n`.

    Source: Beirami et al., Theorem 5.6: n/(n+1) (1 − (1−ε∞)^{n+1}) − (1 − (1−ε∞)^n)(1 − ε∞/2).
    """
    n, log_eps = as_n(n), _log_chance("top_prob", top_prob)
    eps = np.exp(log_eps)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-eps)
    some, one_more = -np.expm1(n * log_miss), -np.expm1((n + 1) * log_miss)
    return np.maximum(n / (n + 1) * one_more - some * (1 - eps / 2), 0.0)  # rounding may leave −1e-17


def win_rate_frontier(kl: ArrayLike) -> Array:
    """Return the highest win rate that any policy can have at a given KL to any reference.

    It is that of the exponential tilt of a calibrated reward that is uniform on [0, 1]: atoms only cost.

    Args:
        kl: KL to the reference in nats, not negative, any shape; infinity gives 1.

    Raises:
        ValueError: if a KL is negative or NaN.

    Source: the optimum of Beirami et al., Eq. 2, for a continuous calibrated reward: win rate 1/(1−e^{−t}) − 1/t at
        KL t w − log((e^t − 1)/t).
    """
    kl = np.asarray(kl, dtype=np.float64)
    if not (kl >= 0).all():
        raise ValueError(f"kl is {kl[~(kl >= 0)].flat[0]}; a KL divergence is not negative")
    # w is 1 to double precision beyond 50 nats, and sqrt(24 KL) is t to double precision below 1e-12.
    inside = np.clip(kl, 1e-12, 50.0)

    def excess(log_t: Array, target: Array) -> Array:
        return _uniform_tilt(np.exp(log_t))[1] - target

    bracket = np.full_like(inside, np.log(1e-7)), np.full_like(inside, 60.0)
    solved = elementwise.find_root(excess, bracket, args=(inside,))
    return _uniform_tilt(np.where(kl < 1e-12, np.sqrt(24 * np.minimum(kl, 1)), np.exp(solved.x)))[0]


def blockwise_kl_bound(n: ArrayLike, lengths: ArrayLike, block: ArrayLike) -> Array:
    """Return E⌈T/m⌉ A_n, an upper bound in nats on the KL of blockwise best-of-n to its reference.

    Args:
        n: number of draws for each block, any shape.
        lengths: lengths T of responses drawn from the *blockwise* policy (under the reference the bound fails), in
            tokens with the end token; shape (samples,), or a single number.
        block: tokens m in a block, a whole number of at least 1; broadcast against `n`.

    Raises:
        ValueError: if a length or block is below 1 or not whole, or there is no length.

    Source: Beirami et al., Theorem B.1.
    """
    lengths, block = np.asarray(lengths, dtype=np.float64), np.asarray(block, dtype=np.float64)
    for name, value in (("lengths", lengths), ("block", block)):
        if value.size == 0 or not ((value >= 1) & (value == np.floor(value)) & np.isfinite(value)).all():
            raise ValueError(f"{name} is {value}; it must hold whole numbers of at least 1")
    blocks = np.ceil(lengths.reshape(-1) / block[..., None]).mean(axis=-1)
    return blocks * kl_bound(n)


def rewind_kl(trials: ArrayLike) -> Array:
    """Return the harmonic number H_{T−1}, an unbiased estimate of the KL of rewind-and-repeat in nats.

    Args:
        trials: number T of draws made until one was accepted, that one included; whole, at least 1, any shape.

    Raises:
        ValueError: if a number of trials is below 1 or not whole.

    Source: Beirami et al., Theorem 6.3.
    """
    trials = np.asarray(trials, dtype=np.float64)
    bad = ~((trials >= 1) & (trials == np.floor(trials)) & np.isfinite(trials))
    if bad.any():
        raise ValueError(f"trials is {trials[bad].flat[0]}; it counts draws and must be whole and at least 1")
    return np.where(trials == 1, 0.0, digamma(trials) + np.euler_gamma)


def tilted_mean(values: ArrayLike, weights: ArrayLike, t: ArrayLike) -> Array:
    """Return (1/t) log E e^{t Z}, which moves from the minimum (t → −∞) over the mean (t = 0) to the maximum of Z.

    Args:
        values: of Z, shape (..., K).
        weights: probabilities of the values, shape (..., K), summing to one along the last axis.
        t: tilt in units of 1/Z, may be infinite; broadcast against (...).

    Raises:
        ValueError: if a value is not finite, `weights` is not a distribution or `t` is NaN.

    Source: Li et al. 2023, Eq. 2; Beirami et al., Eq. 133.
    """
    values, t = np.asarray(values, dtype=np.float64), np.asarray(t, dtype=np.float64)
    weights = _distributions("weights", weights)
    if values.ndim == 0 or values.shape[-1] != weights.shape[-1]:
        raise ValueError(f"values has shape {values.shape} and weights {weights.shape}; the last axes must agree")
    if not np.isfinite(values).all() or np.isnan(t).any():
        raise ValueError("values must be finite and t must not be NaN: drop what has no value")
    values, weights = np.broadcast_arrays(values, weights)
    mean = np.sum(weights * values, axis=-1)
    possible = weights > 0
    lowest = np.min(values, axis=-1, where=possible, initial=np.inf)
    highest = np.max(values, axis=-1, where=possible, initial=-np.inf)
    # Tilts are taken of Z − mean: near t = 0 that leaves small numbers, of which log1p and expm1 keep the digits.
    spread = np.where(possible, values - mean[..., None], 0.0)
    finite = np.where(np.isfinite(t) & (t != 0), t, 1.0)
    exponent = finite[..., None] * spread
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        near = np.log1p(np.sum(weights * np.expm1(exponent), axis=-1))
        far = logsumexp(exponent, b=weights, axis=-1)
    shift = np.where(np.max(np.abs(exponent), axis=-1) < 1, near, far) / finite
    shift = np.select([t == 0, t == np.inf, t == -np.inf], [0.0, highest - mean, lowest - mean], shift)
    return mean + shift


def _kl_gap(log_eps: Array, n: Array) -> Array:
    """A_n − K̂_n(ε), without the logarithms of n and ε that cancel in it."""
    eps = np.exp(log_eps)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_miss = np.log1p(-eps)  # of one draw missing the winner
        missed, found = np.exp(n * log_miss), -np.expm1(n * log_miss)
        all_missed = np.where(missed > 0, missed * (n - 1) * log_miss, 0.0)
    gap = -found * (n - 1) / n - all_missed - found * _shortfall(log_eps, n)
    return np.maximum(gap, 0.0)  # rounding may leave −1e-17 where ε is small


def _shortfall(log_eps: Array, n: Array) -> Array:
    """log((1 − (1−ε)^n) / (n ε)): how far the chance to find the winner stays below its first term."""
    eps = np.exp(log_eps)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -np.expm1(n * np.log1p(-eps))
        return np.where(n * eps < 1e-8, -(n - 1) * eps / 2, np.log(found) - np.log(n) - log_eps)


def _uniform_tilt(t: Array) -> tuple[Array, Array]:
    """Win rate and KL of the density ∝ e^{tu} on [0, 1], t >= 0."""
    small = np.minimum(t, 0.1)
    excess = small / 12 - small**3 / 720 + small**5 / 30240  # win rate − 1/2, and below the KL, as power series in t
    divergence = small**2 / 24 - small**4 / 960 + small**6 / 36288
    large = np.maximum(t, 0.1)
    missing = -np.expm1(-large)  # 1 − e^{−t}
    win = 1 / missing - 1 / large
    kl = large * (1 / missing - 1) - 1 + np.log(large) - np.log(missing)
    return np.where(t < 0.1, 0.5 + excess, win), np.where(t < 0.1, divergence, kl)


def _collision(probs: ArrayLike) -> Array:
    return np.sum(_distributions("probs", probs) ** 2, axis=-1)


def _distributions(name: str, value: ArrayLike) -> Array:
    """Check distributions along the last axis."""
    probs = np.asarray(value, dtype=np.float64)
    if probs.ndim == 0 or probs.size == 0:
        raise ValueError(f"{name} has shape {probs.shape}; its last axis must hold the probabilities of the outcomes")
    if not (probs >= 0).all():
        raise ValueError(f"{name} holds {probs[~(probs >= 0)].flat[0]}; probabilities must be finite and not negative")
    off = np.abs(probs.sum(axis=-1) - 1)
    if not (off <= SUM_TOLERANCE).all():
        raise ValueError(f"{name} sums to one only within {off.max():.3g}; divide by the sum")
    return probs


def _log_probs(log_prob: ArrayLike) -> Array:
    log_eps = np.asarray(log_prob, dtype=np.float64)
    if not (log_eps <= 0).all():
        raise ValueError(f"log_prob is {log_eps[~(log_eps <= 0)].flat[0]}; a log-probability is at most 0")
    return log_eps


def _log_chance(name: str, value: ArrayLike) -> Array:
    prob = np.asarray(value, dtype=np.float64)
    bad = ~((prob >= 0) & (prob <= 1))
    if bad.any():
        raise ValueError(f"{name} is {prob[bad].flat[0]}; a probability is from 0 to 1")
    with np.errstate(divide="ignore"):
        return np.log(prob)
