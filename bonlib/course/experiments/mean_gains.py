"""What training favours a response by, in its mean over the others of its group, where these matter; and its rest."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, softmax
from scipy.stats import binom

from bonlib.exact import Array, Outcomes, as_probs
from bonlib.inference_aware import best_of_slope
from bonlib.methods.filtration import Filtered, filter_weights
from bonlib.methods.kl_rl import KlRl
from bonlib.methods.max_at_k import MaxAtK
from bonlib.methods.wind import Wind

STEPS = 10_000  # until the iteration gives up


def mean_gain(method: object, policy: Outcomes, group: int = 0) -> Array | None:
    """Return what a method's advantages are on average, its KL apart and up to a constant, shape (K,).

    Args:
        method: as training has it.
        policy: the probabilities that it draws with, and the rewards.
        group: draws that are compared with each other; only policy filtration has another mean for another.

    Returns:
        The means; None of a method whose returns do not depend on the other draws, so that they are the means.
    """
    match method:
        case Wind():
            return policy.calibrated_reward
        case MaxAtK():
            return best_of_slope(policy, policy.probs, method.k)
        case Filtered():
            return filtered_gain(policy, filter_weights(group, method.kept).numpy())
    return None


def filtered_gain(policy: Outcomes, weights: ArrayLike) -> Array:
    """Return the mean of group · share kept · (r above the others' mean) over the other draws, shape (K,).

    Of a draw and another one, worse or better, the first is kept with the weight of its rank: as many ranks down as
    others are better. Where rewards tie, chance puts them in order.

    Args:
        policy: the probabilities that it draws with, and the rewards.
        weights: of the ranks, from the best to the worst, shape (group,), at least two.

    Raises:
        ValueError: if the weights are no distribution or too few.

    Source: the mean of `bonlib.methods.filtration.filtered_advantages`, derived here.
    """
    weights, ladder = as_probs("weights", weights), policy.ladder
    group = len(weights)
    if group < 2:
        raise ValueError(f"weights has {group} entry; a draw is compared with others: give at least 2")
    values, first, rung = np.unique(policy.rewards, return_index=True, return_inverse=True)
    rises = np.diff(values)
    ahead = np.append(0.0, np.cumsum(rises * ladder.cdf[first][:-1]))[rung]  # E (r − another's)^+
    behind = np.append(np.cumsum((rises * ladder.above[first][:-1])[::-1])[::-1], 0.0)[rung]
    gain = np.zeros(len(policy))
    # A mean over a rung of a polynomial in the chance that another draw is better, of degree group − 2: no digit is
    # lost to a difference, however small the rung.
    for node, part in zip(*np.polynomial.legendre.leggauss(group // 2), strict=True):
        better = np.minimum(ladder.above + ladder.mass * (1 + node) / 2, 1.0)
        for i in range(group - 1):
            chance = binom.pmf(i, group - 2, better)
            gain += group * part / 2 * chance * (weights[i] * ahead - weights[i + 1] * behind)
    return gain


def resting_point(method: KlRl, outcomes: Outcomes, group: int = 0, start: ArrayLike | None = None) -> Array:
    """Return the policy at which a method's mean update is nothing, π exp(its own mean gain / β), shape (K,).

    It need not be the maximum of anything. The iteration goes half the way, or less where that does not come nearer.

    Args:
        method: one that `mean_gain` knows.
        outcomes: the reference and its rewards.
        group: draws that are compared with each other.
        start: probabilities that the iteration begins at, above 0, shape (K,); the reference if None.

    Raises:
        ValueError: if the method's gain does not depend on the policy.
        RuntimeError: if the iteration does not settle.
    """
    log_policy = outcomes.log_probs if start is None else np.log(as_probs("start", start))
    share, before = 0.5, np.inf
    for _ in range(STEPS):
        gain = mean_gain(method, outcomes.rebase(softmax(log_policy)), group)
        if gain is None:
            raise ValueError(f"method is {method}; its gain is the same whatever the policy: take `Outcomes.tilt`")
        answer = log_softmax(outcomes.log_probs + gain / method.beta)
        distance = float(np.abs(np.exp(answer) - np.exp(log_policy)).sum())
        if distance < 1e-13:
            return softmax(answer)
        share = max(share / 2, 1e-3) if distance > before else share
        with np.errstate(invalid="ignore"):
            log_policy = np.where(outcomes.probs > 0, log_policy + share * (answer - log_policy), -np.inf)
        before = distance
    raise RuntimeError(f"method is {method}; the iteration has not settled after {STEPS} steps: take a larger beta")
