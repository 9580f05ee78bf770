"""How good a policy is, measured on samples; each figure comes with its standard error over prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bonlib.cdf import Estimate
from bonlib.exact import Array


def mean_over_prompts(values: ArrayLike) -> Estimate:
    """Return the mean of one figure a prompt and its standard error; prompts are the independent units.

    Args:
        values: one number a prompt, shape (prompts, ...) with at least two prompts.
    """
    per_prompt = np.asarray(values, dtype=np.float64)
    if per_prompt.ndim == 0 or len(per_prompt) < 2:
        raise ValueError(f"values has shape {per_prompt.shape}; a standard error needs at least two prompts")
    return Estimate(per_prompt.mean(axis=0), per_prompt.std(axis=0, ddof=1) / np.sqrt(len(per_prompt)))


def win_probability(rewards: ArrayLike, opponents: ArrayLike) -> Array:
    """Return, for each response, the share of its prompt's opponents that it beats, ties counting one half.

    Args:
        rewards: of the responses to judge, shape (prompts, a).
        opponents: rewards of independent reference responses to the same prompts, shape (prompts, b).

    Returns:
        Shape (prompts, a), in [0, 1]: the calibrated reward, estimated from b opponents.
    """
    mine, theirs = np.asarray(rewards, dtype=np.float64), np.asarray(opponents, dtype=np.float64)
    if mine.ndim != 2 or theirs.ndim != 2 or len(mine) != len(theirs):
        raise ValueError(
            f"rewards has shape {mine.shape} and opponents {theirs.shape}; both must be (prompts, responses) with the "
            "same prompts"
        )
    for name, value in (("rewards", mine), ("opponents", theirs)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has a reward that is not finite: drop or repair that response")
    ranked = np.sort(theirs, axis=1)
    beaten = np.stack([np.searchsorted(row, values, "left") for row, values in zip(ranked, mine, strict=True)])
    not_lost = np.stack([np.searchsorted(row, values, "right") for row, values in zip(ranked, mine, strict=True)])
    return (beaten + not_lost) / (2 * theirs.shape[1])


def win_rate(rewards: ArrayLike, opponents: ArrayLike) -> Estimate:
    """Return the win rate of a policy against the reference, ties counting one half, with its standard error.

    Arguments as in `win_probability`; at least two prompts.
    """
    return mean_over_prompts(win_probability(rewards, opponents).mean(axis=1))
