"""Where a method ends if nothing stands in its way: neither draws, nor an estimate, nor a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import softmax, wrightomega

from bonlib.course.experiments.mean_gains import resting_point
from bonlib.exact import Array, Outcomes
from bonlib.inference.draw_counts import lifted_reward
from bonlib.inference_aware import best_of_optimum, infalign_optimum, wind_optimum
from bonlib.methods.bon_regression import BonRegression
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon, bonbon_target
from bonlib.methods.bond import Bond
from bonlib.methods.dpo import Dpo
from bonlib.methods.filtration import Filtered
from bonlib.methods.infalign import InfAlignCtrl, ctrl_reward
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.max_at_k import MaxAtK
from bonlib.methods.qrpo import Qrpo, log_partition
from bonlib.methods.vbon import Vbon
from bonlib.methods.vbon_bound import VbonBound
from bonlib.methods.wind import Wind

FAMILIES: dict[str, Callable[[Outcomes, float], Array]] = {  # that no method here is trained for, by β; k = 4
    "infalign": lambda outcomes, beta: infalign_optimum(outcomes, 4, beta),
    "lifted": lambda outcomes, beta: _tilted(outcomes, beta * lifted_reward(outcomes, 1 / beta), beta),
}
BONBON_STEPS = 1000  # until its optimum has settled; 20 do for n = 8


def optimum(method: Any, outcomes: Outcomes, steps: int, group: int = 0) -> Array | None:
    """Return the optimum of a method's objective over all policies, probabilities of shape (K,).

    Of WIND, a game, it is the equilibrium. Policy filtration maximises nothing; its mean update is nothing there.

    Args:
        method: as a run trains it; none is known of others than are listed here.
        outcomes: reference and rewards.
        steps: of the run, for an anchor that moves.
        group: draws of which policy filtration keeps some.

    Returns:
        The optimum; None where there is none (DPO without noise in its pairs, J-BOND) or none is known.
    """
    match method:
        case VbonBound():
            return _up_to_term_b(outcomes, method.n)
        case Vbon() | BonSft() | BonRegression():
            return outcomes.best_of(method.n)
        case Bond() if method.anchor_rate == 1 and not method.regulariser:  # each round from where the last one ended
            rounds = -(-steps // method.anchor_every)
            for _ in range(rounds):
                outcomes = outcomes.rebase(_jeffreys(method, outcomes))
            return outcomes.probs
        case Bond() if not method.anchor_rate:
            return _jeffreys(method, outcomes)
        case KlRl() if type(method) is KlRl:  # those that build on it have other optima
            return outcomes.tilt(method.beta)
        case Wind():
            return wind_optimum(outcomes, method.beta)
        case InfAlignCtrl():
            transformed = ctrl_reward(torch.tensor(outcomes.calibrated_reward), exponent=method.exponent)
            return _tilted(outcomes, transformed.numpy(), method.beta)
        case MaxAtK():
            return best_of_optimum(outcomes, method.k, method.beta)
        case Filtered() if group:
            return resting_point(method, outcomes, group)
        case Bonbon() if method.sft_weight and method.n > 1:
            return _bonbon(method.n, method.sft_weight, outcomes)
        case Qrpo():
            return _least_squares(outcomes, method)
        case Dpo() if method.identity:
            return outcomes.tilt(method.beta, "calibrated")
    return None


def _tilted(outcomes: Outcomes, rewards: Array, beta: float) -> Array:
    return np.asarray(softmax(outcomes.log_probs + rewards / beta))


def _up_to_term_b(outcomes: Outcomes, n: float) -> Array:
    return outcomes.tilt(1 / (n - 1), "log_cdf") if n > 1 else outcomes.probs


def _least_squares(outcomes: Outcomes, method: Qrpo) -> Array:
    """The minimiser of E_π (x − t)², x = log p/π: with a price c on its sum x + c e^x = t, c above 0 where ties lift t.

    A policy that obeyed x = t would then sum to more than one.
    """
    _, rewards = method.known(outcomes)
    t = rewards / method.beta - log_partition(method.beta)

    def policy(log_price: float) -> Array:
        return np.asarray(outcomes.probs * np.exp(t - wrightomega(t + log_price)))

    free = outcomes.probs * np.exp(t)
    if free.sum() > 1 + 1e-13:
        free = policy(float(brentq(lambda log_price: policy(log_price).sum() - 1, -40, 40, xtol=1e-13)))
    return np.asarray(free / free.sum())


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


def _bonbon(n: int, a: float, outcomes: Outcomes) -> Array:
    """The minimiser of a E[−log p(best)] + (1−a) E[(m(best) − m(worst) − t)²], m = log p/π, over all n-tuples.

    m has one value a rung of rewards. Given the mean m of the worst where a rung is the best and of the best where it
    is the worst, each m solves D m + a π e^m = r; this settles by an order of magnitude each step or two.
    """
    _, rung = np.unique(outcomes.rewards, return_inverse=True)
    mass, best = (np.bincount(rung, weights=p) for p in (outcomes.probs, outcomes.best_of(n)))
    powers = [np.diff(np.append(0.0, np.minimum(np.cumsum(mass), 1.0)) ** k) for k in range(n + 1)]

    def mixed(values: Array, reverse: bool) -> Array:
        """Σ of P(best here, worst there) times a value there, over rungs below; above and worst here, in reverse."""
        total, turn = np.zeros(len(values)), slice(None, None, -1 if reverse else 1)
        for k in range(1, n):  # (x − y)^n, differenced in both, without its terms of one alone
            here, there = (powers[n - k], powers[k]) if reverse else (powers[k], powers[n - k])
            sums = np.append(0.0, np.cumsum((there * values)[turn])[:-1])[turn]
            total += (-1) ** (n - k + 1) * math.comb(n, k) * here * sums
        return total

    as_best, as_worst = (mixed(np.ones(len(mass)), reverse) for reverse in (False, True))
    stiff = 2 * (1 - a) * (as_best + as_worst)
    pulled = a * best + 2 * (1 - a) * bonbon_target(n) * (as_best - as_worst)
    m: Array = np.zeros(len(mass))
    for _ in range(BONBON_STEPS):
        r = (pulled + 2 * (1 - a) * (mixed(m, False) + mixed(m, True))) / stiff
        m, before = r - np.asarray(wrightomega(np.log(a * mass / stiff) + r)), m
        if mass @ np.abs(m - before) < 1e-13:
            break
    probs = outcomes.probs * np.exp(m)[rung]
    return np.asarray(probs / probs.sum())
