"""Best-of-k of a trained policy, exactly: how good it is, and how good the best policy of the same KL would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from bonlib.checks import number
from bonlib.exact import Array, Outcomes, kl_divergence

KS = (1, 2, 4, 8)


class Selected(NamedTuple):
    """A policy whose best of k is worth most at its KL.

    Attributes:
        probs: of the outcomes, shape (K,).
        worth: mean worth of the best of k.
        kl: to the reference, in nats.
    """

    probs: Array
    worth: float
    kl: float


def best_at_kl(outcomes: Outcomes, worth: Array, k: int, kl: float) -> Selected:
    """Return the policy whose best of k is worth most among all that are as far from the reference.

    It is a `best_of_optimum`: with Q its weak CDF, log(q/π) rises from one reward to the next by (k/β) Q^(k−1) times
    what the worth rises. Climbing from the worst reward with any strength gives a measure that obeys this; divided by
    its sum it does so for another β, so that the strength alone has to be found.

    Args:
        outcomes: reference and rewards.
        worth: of the outcomes, shape (K,), the same for equal rewards, and not falling as rewards rise.
        k: number of draws.
        kl: KL(q ‖ π) in nats, positive; one that no policy of this kind has gives the best outcomes alone.

    Raises:
        ValueError: if `kl` is not positive.
    """
    goal = float(number("kl", kl, above=0, what="the KL to the reference"))
    _, first, rung = np.unique(outcomes.rewards, return_index=True, return_inverse=True)
    mass = np.bincount(rung, weights=outcomes.probs)
    rises = np.diff(worth[first], prepend=worth[first[0]])

    def climbed(log_strength: float) -> tuple[Array, float] | None:
        """Log q/π of each rung, and its KL; None where numbers end."""
        logs, strength, total = [], math.exp(log_strength), 0.0
        log_ratio = -strength * float(rises.sum()) if k == 1 else 0.0  # with one draw any start will do, so a low one
        try:
            for share, rise in zip(mass.tolist(), rises.tolist(), strict=True):
                log_ratio += strength * rise * total ** (k - 1)
                total += share * math.exp(log_ratio)
                logs.append(log_ratio)
        except OverflowError:
            return None
        log_ratios = np.array(logs) - math.log(total)
        return log_ratios, float(mass * np.exp(log_ratios) @ log_ratios)

    def excess(log_strength: float) -> float:
        found = climbed(log_strength)
        return 1e3 if found is None else found[1] - goal  # far beyond: all on the best

    low, high = -20.0, 0.0
    while excess(high) < 0 and high < 60:
        low, high = high, high + 1.0
    if excess(high) >= 0:
        high = float(brentq(excess, low, high, xtol=1e-13))
    found = climbed(high) or climbed(high - 1e-12)
    assert found is not None
    log_ratios, spent = found
    probs = outcomes.probs * np.exp(log_ratios)[rung]
    probs /= probs.sum()
    return Selected(probs, float(outcomes.rebase(probs).best_of(k) @ worth), spent)


def best_of_k(outcomes: Outcomes, policy: Array, n: int, ks: Sequence[int] = KS) -> dict[str, float]:
    """Return how good best-of-k of a policy is.

    Args:
        outcomes: reference and rewards.
        policy: its probabilities, shape (K,).
        n: that of the best-of-n which the policy is to stand for.
        ks: numbers of draws.

    Returns:
        For each k: its chance to beat one draw of the reference ("win_rate_2"), best-of-k of the reference ("duel_2",
        which InfAlign maximises) and best-of-kn of the reference ("even_2"), ties one half; its KL to the reference
        ("kl_2"); and the highest "duel_2" of any policy with the policy's own KL ("duel_bound_2").
    """
    mine, spent = outcomes.rebase(policy), kl_divergence(policy, outcomes.probs)
    found: dict[str, float] = {}
    for k in ks:
        law = mine.best_of(k)
        rivals = outcomes.rebase(outcomes.best_of(k))
        found |= {
            f"win_rate_{k}": outcomes.win_rate(law),
            f"duel_{k}": rivals.win_rate(law),
            f"even_{k}": outcomes.rebase(outcomes.best_of(k * n)).win_rate(law),
            f"kl_{k}": kl_divergence(law, outcomes.probs),
            f"duel_bound_{k}": best_at_kl(outcomes, rivals.calibrated_reward, k, spent).worth if spent > 0 else 0.5,
        }
    return found
