"""Bounds and estimators for how far best-of-n is from its reference, and how good it can be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def kl_bound(n: ArrayLike) -> Array:
    """Return log n − (n−1)/n, an upper bound on KL(π_n ‖ π) in nats that much of the literature takes for its value.

    Args:
        n: number of draws, real, at least 1, any shape.

    Returns:
        The bound, of the shape of `n`.

    Source: Beirami et al., Eq. 4 and Theorem 3.1.
    """
    n = _draws(n)
    return np.log(n) - (n - 1) / n


def win_rate_bound(n: ArrayLike) -> Array:
    """Return n/(n+1), an upper bound on the win rate of best-of-n against its reference.

    Args:
        n: number of draws, real, at least 1, any shape.

    Source: Beirami et al., Theorem 5.3.
    """
    n = _draws(n)
    return n / (n + 1)


def kl_from_winner(log_prob: ArrayLike, n: ArrayLike) -> Array:
    """Return K̂_n, the estimate of KL(π_n ‖ π) in nats from the probability ε of the winning response alone.

    Its expectation over winners is an upper bound on the KL, and it never exceeds `kl_bound`.

    Args:
        log_prob: log ε of the winner under the reference, at most 0; any shape, −inf is the limit ε = 0.
        n: number of draws, real, at least 1; broadcast against `log_prob`.

    Returns:
        The estimate, of the broadcast shape.

    Source: Beirami et al., Definition 4.3.
    """
    log_eps, n = np.broadcast_arrays(np.asarray(log_prob, dtype=np.float64), _draws(n))
    if not (log_eps <= 0).all():
        raise ValueError(f"log_prob is {log_eps[~(log_eps <= 0)].flat[0]}; a log-probability is at most 0")
    eps = np.exp(log_eps)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_miss = np.log1p(-eps)  # of one draw missing the winner
        missed = np.exp(n * log_miss)
        found = -np.expm1(n * log_miss)
        # log of found / (n ε), which tends to 0 with n ε: there the quotient is taken from its expansion.
        shortfall = np.where(n * eps < 1e-8, -(n - 1) * eps / 2, np.log(found) - np.log(n) - log_eps)
        all_missed = np.where(missed > 0, missed * (n - 1) * log_miss, 0.0)
    return np.log(n) - missed * (n - 1) / n + all_missed + found * shortfall


def _draws(n: ArrayLike) -> Array:
    n = np.asarray(n, dtype=np.float64)
    bad = ~((n >= 1) & np.isfinite(n))
    if bad.any():
        raise ValueError(f"n is {n[bad].flat[0]}; the number of draws must be finite and at least 1")
    return n
