"""How good a policy is, measured on samples; each figure comes with its standard error over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.cdf import ROUNDING, EmpiricalCdf
from bonlib.checks import LOG_PROB_SLACK, whole
from bonlib.estimates import Estimate
from bonlib.exact import Array


def mean_over_prompts(values: ArrayLike) -> Estimate:
    """Return the mean of one figure a prompt and its standard error; prompts are the independent units.

    Args:
        values: one number a prompt, shape (prompts, ...) with at least two prompts.
    """
    per_prompt = np.asarray(values, dtype=np.float64)
    if per_prompt.ndim == 0 or len(per_prompt) < 2:
        raise ValueError(f"values has shape {per_prompt.shape}; a standard error needs at least two prompts")
    if not np.isfinite(per_prompt).all():
        raise ValueError("values holds a number that is not finite; drop or repair that prompt")
    return Estimate(per_prompt.mean(axis=0), per_prompt.std(axis=0, ddof=1) / np.sqrt(len(per_prompt)))


def win_probability(rewards: ArrayLike, opponents: ArrayLike, *, rounding: float = ROUNDING) -> Array:
    """Return, for each response, the share of its prompt's opponents that it beats, ties counting one half.

    Args:
        rewards: of the responses to judge, shape (prompts, a).
        opponents: rewards of independent reference responses to the same prompts, shape (prompts, b). For best-of-n of
            a prompt's only draws, which would be their own opponents, take `bonlib.estimates.best_of_n_win_rate`.
        rounding: share of the rewards' size up to which a difference is rounding, see `bonlib.cdf.ROUNDING`; 0: none.

    Returns:
        Shape (prompts, a), in [0, 1]: the calibrated reward, estimated from b opponents.
    """
    mine, theirs = np.asarray(rewards, dtype=np.float64), np.asarray(opponents, dtype=np.float64)
    if mine.ndim != 2 or theirs.ndim != 2 or len(mine) != len(theirs):
        raise ValueError(
            f"rewards has shape {mine.shape} and opponents {theirs.shape}; both must be (prompts, responses) with the "
            "same prompts"
        )
    if not theirs.size:
        raise ValueError(f"opponents has shape {theirs.shape}; there must be a prompt, and a response to play against")
    for name, value in (("rewards", mine), ("opponents", theirs)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} has a reward that is not finite: drop or repair that response")
    cdf = EmpiricalCdf(theirs, "none", rounding=rounding)
    return (cdf.strict(mine) + cdf.weak(mine)) / 2


def win_rate(rewards: ArrayLike, opponents: ArrayLike, *, rounding: float = ROUNDING) -> Estimate:
    """Return the win rate of a policy against the reference, ties counting one half, with its standard error.

    Arguments as in `win_probability`; at least two prompts.
    """
    return mean_over_prompts(win_probability(rewards, opponents, rounding=rounding).mean(axis=1))


def kl_k1(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Array:
    """Return log πθ(y) − log π(y) of responses drawn from πθ, whose mean is KL(πθ ‖ π) without bias.

    Args:
        log_probs: log πθ(y) of the distribution that the responses were drawn from, any shape, usually (B,), in nats.
        ref_log_probs: log π(y) under the reference, the same shape; −inf, where it excludes a response, gives infinity.

    Raises:
        ValueError: if shapes differ, a number is NaN or positive, or a response is impossible under πθ.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    mine, theirs = _checked_log_probs(log_probs, ref_log_probs)
    return mine - theirs


def kl_k3(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> Array:
    """Return e^−k1 − 1 + k1 with k1 as in `kl_k1`, never negative, whose mean is KL(πθ ‖ π) if their supports agree.

    Where πθ excludes what the reference can say, as under top-p, the mean is too low by the reference's mass there.
    A response far likelier under the reference than under πθ gives a huge number: the variance may be very large.

    Args:
        log_probs: as in `kl_k1`.
        ref_log_probs: as in `kl_k1`.

    Raises:
        ValueError: as `kl_k1`.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    k1 = kl_k1(log_probs, ref_log_probs)
    with np.errstate(over="ignore"):
        return np.expm1(-k1) + k1


def next_token_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Return the exact KL(πθ ‖ π) between two next-token distributions at each position, in nats.

    Its sum over the positions of a response drawn from πθ, the end token's included and the prompt's not, is the
    Rao–Blackwellised KL of that response: its mean is KL(πθ ‖ π) without bias, even where supports differ.

    Args:
        logits: of the policy, shape (..., V), float32 or float64; −inf excludes a token.
        ref_logits: of the reference, the same shape.

    Returns:
        Shape (...); infinity where the reference excludes a token that the policy can say.

    Raises:
        ValueError: if shapes or precision are not as said.

    Source: Amini et al. 2025, "Better estimation of the KL divergence between language models".
    """
    _check_logits(logits=logits, ref_logits=ref_logits)
    log_p, log_q = logits.log_softmax(dim=-1), ref_logits.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)


def next_token_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the next-token distribution at each position, in nats.

    Its sum over the positions of a response drawn from the policy has the entropy of the policy as its mean.

    Args:
        logits: shape (..., V), float32 or float64; −inf excludes a token.

    Returns:
        Shape (...).

    Raises:
        ValueError: if shape or precision is not as said.
    """
    _check_logits(logits=logits)
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)


def pareto_front(kl: ArrayLike, score: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other dominates, that is, has a KL no higher, a score no lower, and differs.

    Args:
        kl: divergence from the reference of each point, shape (B,).
        score: win rate or reward of each point, shape (B,); equal points are on the front together.

    Raises:
        ValueError: if shapes differ or a number is not finite.

    Source: Amini et al., Fig. 2.
    """
    x, y = _checked_points(kl, score, axes=1)
    levels, place = np.unique(x, return_inverse=True)
    best = np.full(len(levels), -np.inf)
    np.maximum.at(best, place, y)
    best_at_less = np.concatenate([[-np.inf], np.maximum.accumulate(best)[:-1]])
    return (y == best[place]) & (y > best_at_less[place])


def pareto_share(kl: ArrayLike, score: ArrayLike, methods: Sequence[str]) -> dict[str, float]:
    """Return, for each method, its share of the points that no other point of any method dominates.

    Args:
        kl: divergence from the reference of each point, shape (B,), B at least 1.
        score: win rate or reward of each point, shape (B,).
        methods: which method made each point, B names. A method with more points has more chances: give each as many.

    Returns:
        Shares that sum to one, in the order in which methods first appear.

    Raises:
        ValueError: if shapes differ, there is no point or a number is not finite.

    Source: Amini et al., Fig. 2.
    """
    front = pareto_front(kl, score)
    names = _checked_methods(methods, len(front))
    return {name: float(front[own].sum() / front.sum()) for name, own in names.items()}


class ShareEstimate(NamedTuple):
    """A method's share of a Pareto front, and how much it owes to the prompts that happened to be chosen.

    Attributes:
        value: the share, from all prompts.
        standard_error: standard deviation of the share over resampled sets of prompts.
        low: its 5 % percentile over them.
        high: its 95 % percentile over them.
    """

    value: float
    standard_error: float
    low: float
    high: float


def pareto_share_bootstrap(
    kl: ArrayLike, score: ArrayLike, methods: Sequence[str], *, replicates: int, seed: int
) -> dict[str, ShareEstimate]:
    """Return `pareto_share` of runs whose KL and score are means over prompts, with its spread over prompts.

    Prompts are drawn anew with replacement, the same for all runs; means, front and shares are made anew each time.
    Spread over training seeds is not in it, and noise in the means adds points to a front, so `value` may lie outside
    `low` to `high`.

    Args:
        kl: mean divergence of each run on each prompt, shape (runs, prompts), at least two prompts.
        score: mean win rate or reward of each run on each prompt, the same shape.
        methods: which method made each run, one name a run.
        replicates: how often to resample, at least 2; a thousand is plenty.
        seed: of the resampling.

    Raises:
        ValueError: if shapes differ, a number is not finite, or there are too few runs, prompts or replicates.

    Source: Amini et al., Fig. 2; Efron 1979 (the bootstrap).
    """
    x, y = _checked_points(kl, score, axes=2)
    runs, prompts = x.shape
    _checked_methods(methods, runs)
    if prompts < 2:
        raise ValueError(f"kl has shape {x.shape}, (runs, prompts); resampling needs at least two prompts")
    replicates = whole("replicates", replicates, 2)
    value = pareto_share(x.mean(axis=1), y.mean(axis=1), methods)
    rng = np.random.default_rng(whole("seed", seed))
    found = []
    for _ in range(replicates):
        drawn = rng.integers(prompts, size=prompts)
        mean_kl, mean_score = x.take(drawn, axis=1).mean(axis=1), y.take(drawn, axis=1).mean(axis=1)
        found.append(list(pareto_share(mean_kl, mean_score, methods).values()))
    spread = np.std(found, axis=0, ddof=1)
    low, high = np.percentile(found, [5, 95], axis=0)
    numbers = zip(value.values(), spread, low, high, strict=True)
    return {name: ShareEstimate(*map(float, four)) for name, four in zip(value, numbers, strict=True)}


def _checked_log_probs(log_probs: ArrayLike, ref_log_probs: ArrayLike) -> tuple[Array, Array]:
    mine, theirs = np.asarray(log_probs, dtype=np.float64), np.asarray(ref_log_probs, dtype=np.float64)
    if mine.shape != theirs.shape:
        raise ValueError(f"ref_log_probs has shape {theirs.shape}; it must be that of log_probs, {mine.shape}")
    for name, value in (("log_probs", mine), ("ref_log_probs", theirs)):
        if not (value <= LOG_PROB_SLACK).all():
            raise ValueError(f"{name} holds {value.max():.4g}; a log-probability is a number of at most 0")
    if not np.isfinite(mine).all():
        raise ValueError("log_probs holds -inf; give the log-probabilities of the policy that drew the responses")
    return mine, theirs


def _check_logits(**tensors: Tensor) -> None:
    (first, reference), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape != reference.shape or not tensor.shape[-1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must be (..., V), one logit a token, as {first} has, "
                f"{tuple(reference.shape)}"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {tensor.dtype}; a KL or an entropy needs float32 logits: use .float() first")


def _checked_points(kl: ArrayLike, score: ArrayLike, *, axes: int) -> tuple[Array, Array]:
    x, y = np.asarray(kl, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if x.ndim != axes or x.shape != y.shape:
        wanted = "one number a point, (B,)" if axes == 1 else "(runs, prompts)"
        raise ValueError(f"kl has shape {x.shape} and score {y.shape}; both must be {wanted}")
    for name, value in (("kl", x), ("score", y)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds a number that is not finite; drop or repair that point")
    return x, y


def _checked_methods(methods: Sequence[str], points: int) -> dict[str, NDArray[np.bool_]]:
    """Which points belong to each method, in the order in which methods first appear."""
    if points < 1 or len(methods) != points:
        raise ValueError(
            f"methods has {len(methods)} names for {points} points; give one a point, and a point at least"
        )
    return {name: np.array([method == name for method in methods]) for name in dict.fromkeys(methods)}
