"""How much gold reward is lost by choosing with a proxy: upper bounds for soft best-of-n, pessimism and best-of-n.

All are against another policy π*, in terms of the proxy's error ε = √E_π(proxy − gold)² and of the coverage
C = E_{π*}[π*/π] = 1 + χ²(π* ‖ π).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bonlib.checks import number
from bonlib.exact import Outcomes, as_n, as_probs, kl_divergence
from bonlib.inference.rules import checked_like
from bonlib.inference.soft_best_of_n import reward_gap_bound, soft_kl_bound


def best_of_n_regret_bound(outcomes: Outcomes, gold: ArrayLike, comparator: ArrayLike, n: float) -> float:
    """Return an upper bound on the gold reward that best-of-n by a proxy has less than another policy.

    Args:
        outcomes: the world with the proxy as reward.
        gold: true rewards, shape (K,).
        comparator: probabilities of the other policy π*, shape (K,), on outcomes that can come.
        n: number of draws, real, finite, at least 1.

    Returns:
        R (1 − 1/C_∞)^n + ε n/√(2n − 1) + ε√C: it falls, and rises again. R is the range of the proxy, C_∞ = max π*/π.

    Raises:
        ValueError: if an argument is out of range.

    Source: derived here, in the form of Huang et al. 2025, from E_{π_n}[π_n/π] <= n²/(2n − 1).
    """
    (error, coverage), n = _error_and_coverage(outcomes, gold, comparator), float(as_n(n))
    possible = outcomes.probs > 0
    top_coverage = np.max(np.asarray(comparator)[possible] / outcomes.probs[possible])
    missed = np.ptp(outcomes.rewards[possible]) * (1 - 1 / top_coverage) ** n
    return float(missed + error * (n / np.sqrt(2 * n - 1) + np.sqrt(coverage)))


def soft_regret_bound(
    outcomes: Outcomes, gold: ArrayLike, comparator: ArrayLike, n: float, temperature: float
) -> float:
    """Return an upper bound on the gold reward that soft best-of-n by a proxy has less than another policy.

    Args:
        outcomes: the world with the proxy as reward.
        gold: true rewards, shape (K,).
        comparator: probabilities of the other policy π*, shape (K,), on outcomes that can come.
        n: number of draws, real, finite, at least 1.
        temperature: λ > 0 in units of the proxy.

    Returns:
        ε√C + λ KL(π* ‖ π) + `reward_gap_bound` + ε √(the largest growth, see `soft_kl_bound`), with ε and C as in
        `proxy_error` and `chi_squared`.

    Raises:
        ValueError: if an argument is out of range.

    Source: derived here, in the form of Aminian et al. 2025.
    """
    error, coverage = _error_and_coverage(outcomes, gold, comparator)
    temperature = number("temperature", temperature, above=0)
    by_proxy = temperature * kl_divergence(comparator, outcomes.probs) + reward_gap_bound(outcomes, n, temperature)
    spread = np.ptp(outcomes.rewards[outcomes.probs > 0]) / temperature
    return float(error * (np.sqrt(coverage) + np.exp(soft_kl_bound(n, spread) / 2)) + by_proxy)


def pessimism_regret_bound(outcomes: Outcomes, gold: ArrayLike, comparator: ArrayLike, beta: float) -> float:
    """Return an upper bound on the gold reward that π_χ by a proxy has less than another policy.

    It is least at β = ε/√C, where it is 2ε√C.

    Args:
        outcomes: the world with the proxy as reward.
        gold: true rewards, shape (K,).
        comparator: probabilities of the other policy π*, shape (K,), on outcomes that can come.
        beta: β > 0 in units of the proxy.

    Returns:
        ε√C + βC/2 + ε²/(2β), ε of `proxy_error` and C = 1 + χ²(π* ‖ π).

    Raises:
        ValueError: if an argument is out of range.

    Source: derived here, in the form of Huang et al. 2025.
    """
    error, coverage = _error_and_coverage(outcomes, gold, comparator)
    beta = float(number("beta", beta, above=0))
    return float(error * np.sqrt(coverage) + beta * coverage / 2 + error**2 / (2 * beta))


def proxy_error(outcomes: Outcomes, gold: ArrayLike) -> float:
    """Return ε, the root of the mean square under π by which the reward and gold, shape (K,), differ."""
    true = checked_like("gold", gold, outcomes.rewards)
    return float(np.sqrt(outcomes.probs @ (outcomes.rewards - true) ** 2))


def chi_squared(p: ArrayLike, q: ArrayLike) -> float:
    """Return χ²(p ‖ q) = E_p[p/q] − 1; infinite where `p` has mass that `q` lacks.

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
        return float(p[held] @ (p[held] / q[held]) - 1)


def _error_and_coverage(outcomes: Outcomes, gold: ArrayLike, comparator: ArrayLike) -> tuple[float, float]:
    error, coverage = proxy_error(outcomes, gold), 1 + chi_squared(comparator, outcomes.probs)
    if coverage == np.inf:
        raise ValueError("comparator has mass on an outcome that cannot come, where no bound holds: move it")
    return error, coverage
