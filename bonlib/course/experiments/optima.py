"""Where a method ends if nothing stands in its way: neither draws, nor an estimate, nor a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import wrightomega

from bonlib.exact import Array, Outcomes
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bond import Bond
from bonlib.methods.dpo import Dpo
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound


def optimum(method: Any, outcomes: Outcomes, steps: int) -> Array | None:
    """Return the optimum of a method's objective over all policies, probabilities of shape (K,).

    Args:
        method: as a run trains it; none is known of others than are listed here.
        outcomes: reference and rewards.
        steps: of the run, for an anchor that moves.

    Returns:
        The optimum; None where there is none (DPO without noise in its pairs, J-BOND) or none is known.
    """
    match method:
        case VbonBound():
            return _up_to_term_b(outcomes, method.n)
        case Vbon() | BonSft():
            return outcomes.best_of(method.n)
        case Bond() if method.anchor_rate == 1 and not method.regulariser:  # each round from where the last one ended
            rounds = -(-steps // method.anchor_every)
            for _ in range(rounds):
                outcomes = outcomes.rebase(_jeffreys(method, outcomes))
            return outcomes.probs
        case Bond() if not method.anchor_rate:
            return _jeffreys(method, outcomes)
        case KlRl():
            return outcomes.tilt(method.beta)
        case Dpo() if method.identity:
            return outcomes.tilt(method.beta, "calibrated")
    return None


def _up_to_term_b(outcomes: Outcomes, n: float) -> Array:
    return outcomes.tilt(1 / (n - 1), "log_cdf") if n > 1 else outcomes.probs


def _jeffreys(method: Bond, outcomes: Outcomes) -> Array:
    """The minimiser of (1−w) KL(π_n ‖ p) + w KL(p ‖ q), q its optimum without the first term.

    There −(1−w) π_n/p + w log(p/q) is the same for all outcomes, so that x = (1−w) π_n/(w p) solves x + log x = z.
    """
    best, w = outcomes.best_of(method.n), method.jeffreys_weight
    pulled = best if method.term_b else _up_to_term_b(outcomes, method.n)
    if w in (0, 1):
        return pulled if w else best
    share = (1 - w) / w * best
    possible = share > 0
    z = np.log(share[possible]) - np.log(pulled[possible])

    def policy(shift: float) -> Array:
        return np.asarray(share[possible] / wrightomega(z + shift))

    probs = np.zeros(len(outcomes))
    probs[possible] = policy(float(brentq(lambda shift: policy(shift).sum() - 1, -50, 50, xtol=1e-14)))
    return probs / probs.sum()
