"""What draws with answers say: how often one of k is right, the answer that most give is, or the one that weighs most.

A prompt's draws are independent; an answer is anything that can be compared and hashed, and None where a response has
none. What best-of-n does by any score needs no answers: ``(best_of_n_weights(scores, n) * correct).sum(-1)``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, logsumexp, xlog1py, xlogy

from bonlib.cdf import Counts
from bonlib.checks import whole
from bonlib.exact import Array, as_n, as_probs


def pass_at_k(correct: ArrayLike, k: int) -> Array:
    """Return the unbiased estimate of the chance that one of k draws is right at least.

    It is best-of-k by a verifier that is never wrong. Of m draws, c of them right: 1 − C(m−c, k)/C(m, k).

    Args:
        correct: whether each draw is right, shape (..., m); the last axis is one prompt's.
        k: number of draws, from 1 to m.

    Returns:
        The estimate for each prompt, shape (...).

    Raises:
        ValueError: if `k` is out of range, or `correct` holds something else than right and wrong.

    Source: Chen et al. 2021 (Codex), Eq. 1.
    """
    right = _checked_correct(correct)
    left = right.shape[-1] - np.arange(_checked_k(k, right))
    times, place = np.unique(right.sum(axis=-1), return_inverse=True)
    with np.errstate(divide="ignore"):
        log_none = np.log1p(-np.minimum(times[:, None] / left, 1)).sum(axis=1)
    return np.reshape(-np.expm1(log_none)[place], right.shape[:-1])


def majority_at_k(answers: Any, correct: ArrayLike, k: int) -> Array:
    """Return the unbiased estimate of how often the answer that most of k draws give is right, ties shared evenly.

    It is the mean over all k-subsets of the draws, by counting: none is drawn.

    Args:
        answers: shape (..., m), the last axis one prompt's; who has None does not vote, and no vote is not right.
        correct: whether each draw is right, shape (..., m). If draws of one answer differ in that, as often as they.
        k: number of draws, from 1 to m.

    Returns:
        The estimate for each prompt, shape (...).

    Raises:
        ValueError: if `k` is out of range, or answers and `correct` have not one shape.

    Source: Wang et al. 2023 (self-consistency).
    """
    right = _checked_correct(correct)
    k, m = _checked_k(k, right), right.shape[-1]
    found = []
    for codes, rights in _voters(answers, right):
        votes = codes >= 0
        came, good = (np.bincount(codes[votes], weights).astype(float) for weights in (None, rights[votes]))
        total = 0.0
        for answer in np.flatnonzero(good):
            others = tuple(sorted(np.delete(came, answer).astype(int).tolist()))
            total += good[answer] / came[answer] * _leads_in_subset(int(came[answer]), others, m, k)
        found.append(total)
    return np.reshape(np.array(found, dtype=np.float64), right.shape[:-1])


def majority_law(probs: ArrayLike, k: int, *, silent: float = 0.0) -> Array:
    """Return how likely each answer is the one that most of k draws give, ties shared evenly, shape (A,).

    Args:
        probs: probability of each answer, shape (A,).
        k: number of draws, at least 1.
        silent: probability of a draw without an answer, which does not vote; the result is short of 1 by silent^k.

    Raises:
        ValueError: if `probs` and `silent` are none, or `k` is out of range.

    Source: Wang et al. 2023 (self-consistency), as a law: draws of a multinomial are Poisson draws given their sum.
    """
    p, k = as_probs("probs", np.append(np.asarray(probs, dtype=np.float64), silent)), whole("k", k, 1)
    times = np.arange(k + 1)
    *came, quiet = np.exp(xlogy(times, k * p[:, None]) - gammaln(times + 1) - k * p[:, None])
    all_came = np.exp(xlogy(k, k) - gammaln(k + 1) - k)
    return np.array([_leads(mine, np.delete(came, a, axis=0), quiet) for a, mine in enumerate(came)]) / all_came


def weighted_vote_at_k(
    answers: Any,
    scores: ArrayLike,
    correct: ArrayLike,
    k: int,
    *,
    temperature: float | None = None,
    subsets: int = 1000,
    seed: int = 0,
) -> Array:
    """Return an estimate of how often the answer with the largest sum of weights among k draws is right.

    Args:
        answers: shape (..., m), the last axis one prompt's; who has None does not vote, and no vote is not right.
        scores: of the draws, shape (..., m).
        correct: whether each draw is right, shape (..., m). If draws of one answer differ in that, as often as they.
        k: number of draws, from 1 to m.
        temperature: λ > 0 of the weights e^{score/λ}: infinity is the majority, and near 0 the best score decides.
            None for the scores themselves, which must then not be negative.
        subsets: so many random ones of k draws are looked at, or all where there are no more.
        seed: of these.

    Returns:
        The estimate for each prompt, shape (...); ties are shared evenly.

    Raises:
        ValueError: if an argument is out of range, or answers, scores and `correct` have not one shape.

    Source: Wang et al. 2023, Table 1 (weighted sum); the weights are those of soft best-of-n (Verdun et al. 2025).
    """
    right, values = _checked_correct(correct), np.asarray(scores, dtype=np.float64)
    k, m = _checked_k(k, right), right.shape[-1]
    if values.shape != right.shape or not np.isfinite(values).all():
        raise ValueError(
            f"scores has shape {values.shape} or holds what is not finite; it must be numbers of the shape "
            f"{right.shape} of correct"
        )
    if temperature is None and (values < 0).any():
        raise ValueError(f"scores holds {values.min():.4g}; what is summed must be at least 0: give a temperature")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; it must be above 0 (infinity is the majority), or None")
    places = _subsets(m, k, whole("subsets", subsets, 1), whole("seed", seed))
    found = []
    for (codes, rights), row in zip(_voters(answers, right), values.reshape(-1, m), strict=True):
        weights = row[places]
        if temperature is not None:
            logs = np.where(codes < 0, -np.inf, (row - row.max()) / temperature)[places]
            weights = np.exp(logs - np.maximum(logs.max(axis=1, keepdims=True), -_LARGEST))
        found.append(_share_right(codes[places], weights, rights[places]))
    return np.reshape(np.array(found, dtype=np.float64), right.shape[:-1])


def noisy_verifier_accuracy(
    p: ArrayLike, true_positive_rate: ArrayLike, false_positive_rate: ArrayLike, n: ArrayLike
) -> Array:
    """Return how often best-of-n by a verifier that errs is right: of n draws the first that it accepts, or any.

    It rises with n if and only if the verifier accepts right answers oftener than wrong ones.

    Args:
        p: chance that a draw is right.
        true_positive_rate: t, the chance that it accepts a right answer.
        false_positive_rate: f, the chance that it accepts a wrong one.
        n: number of draws, real, finite, at least 1.

    Returns:
        (1 − (1−v)^n) p t/v + (1−v)^(n−1) p (1−t) with v = p t + (1−p) f, of the shape that the arguments have together.

    Raises:
        ValueError: if a chance is not from 0 to 1, or `n` is out of range.

    Source: Stroebl, Kapoor & Narayanan 2024 (resampling with imperfect verifiers), as a law.
    """
    p, t, v = _accepted(p, true_positive_rate, false_positive_rate)
    n = as_n(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rejected = np.log1p(-v)
        draws = np.where(v > 0, -np.expm1(n * log_rejected) / v, n)  # made on average until one is accepted, n at most
        none_before = np.where(n > 1, np.exp((n - 1) * log_rejected), 1.0)
    return np.asarray(draws * p * t + none_before * p * (1 - t))


def noisy_verifier_ceiling(p: ArrayLike, true_positive_rate: ArrayLike, false_positive_rate: ArrayLike) -> Array:
    """Return what no number of draws passes, p t/v: the share of right answers among those that a verifier accepts.

    Args:
        p: chance that a draw is right.
        true_positive_rate: t, the chance that the verifier accepts a right answer.
        false_positive_rate: f, the chance that it accepts a wrong one.

    Returns:
        The limit of `noisy_verifier_accuracy`, which is p where the verifier accepts nothing.

    Raises:
        ValueError: if a chance is not from 0 to 1.

    Source: Stroebl, Kapoor & Narayanan 2024.
    """
    p, t, v = _accepted(p, true_positive_rate, false_positive_rate)
    return np.where(v > 0, p * t / np.where(v > 0, v, 1.0), p)


def self_certainty(logits: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Return how far a model's words are from random ones: KL(uniform ‖ p) on average over the tokens, nats.

    It is log-sum-exp of the logits, less their mean and log V; a reward that asks nobody else.

    Args:
        logits: before each token of a response, shape (..., T, V); log-probabilities will do.
        mask: 1 for a token, 0 for padding, shape (..., T); all are tokens if None.

    Returns:
        Shape (...): 0 if each token was equally likely everywhere.

    Raises:
        ValueError: if there is no token, or a logit of one is not finite.

    Source: Kang et al. 2025: −(1/V) Σ log(V p), the mean over tokens.
    """
    table = np.asarray(logits, dtype=np.float64)
    if table.ndim < 2 or 0 in table.shape[-2:]:
        raise ValueError(f"logits has shape {table.shape}; it must be (..., tokens, vocabulary) with one each at least")
    tokens = np.ones(table.shape[:-1]) if mask is None else np.asarray(mask, dtype=np.float64)
    if tokens.shape != table.shape[:-1] or not tokens.any(axis=-1).all():
        raise ValueError(f"mask has shape {tokens.shape} or a response without a token; it must be {table.shape[:-1]}")
    with np.errstate(invalid="ignore"):
        each = logsumexp(table, axis=-1) - table.mean(axis=-1) - np.log(table.shape[-1])
    each = np.where(tokens > 0, each, 0.0)
    if not np.isfinite(each).all():
        raise ValueError("logits holds a number that is not finite: leave out words that cannot come")
    return np.asarray((each * tokens).sum(axis=-1) / tokens.sum(axis=-1))


_LARGEST = np.finfo(np.float64).max
_gauss = lru_cache(np.polynomial.legendre.leggauss)


def _checked_correct(correct: ArrayLike) -> Array:
    right = np.asarray(correct, dtype=np.float64)
    if right.ndim == 0 or not ((right == 0) | (right == 1)).all():
        raise ValueError("correct must be an array of True and False, one a draw: leave out what was not judged")
    return right


def _checked_k(k: int, right: Array) -> int:
    return whole("k", k, 1, right.shape[-1], what=f"with {right.shape[-1]} draws a prompt it")


def _voters(answers: Any, right: Array) -> Iterator[tuple[Counts, Array]]:
    """A number for the answer of each draw, −1 for none, and whether it is right; a prompt a row."""
    table = np.asarray(answers, dtype=object)
    if table.shape != right.shape:
        raise ValueError(
            f"answers has shape {table.shape}; it must be that of correct, {right.shape}, None for no answer"
        )
    for row, rights in zip(table.reshape(-1, right.shape[-1]), right.reshape(-1, right.shape[-1]), strict=True):
        known: dict[Hashable, int] = {None: -1}
        yield np.array([known.setdefault(answer, len(known) - 1) for answer in row], dtype=np.intp), rights


@lru_cache(maxsize=1 << 14)  # prompts with the same counts are many
def _leads_in_subset(mine: int, others: tuple[int, ...], m: int, k: int) -> float:
    """The chance that an answer of `mine` draws leads in a random k-subset of m, `others` being those of the others.

    The numbers of times that answers are in it are independent binomials, given that they sum to k.
    """
    times = np.arange(k + 1)

    def came(counts: Array) -> Array:
        left = np.maximum(counts - times, 0)
        log_ways = gammaln(counts + 1) - gammaln(times + 1) - gammaln(left + 1)
        return np.where(times <= counts, np.exp(log_ways + xlogy(times, k / m) + xlog1py(left, -k / m)), 0.0)

    silent = came(np.array(float(m - mine - sum(others))))
    led = _leads(came(np.array(float(mine))), came(np.array(others, dtype=np.float64)[:, None]), silent)
    return float(led / came(np.array(float(m)))[k])


def _leads(mine: Array, others: Array, silent: Array) -> float:
    """The chance that an answer comes oftenest, ties shared evenly, and that k draws are made.

    Args:
        mine: chances that it comes 0 … k times, shape (k+1,).
        others: those of each other answer, shape (A−1, k+1).
        silent: those of draws without an answer, shape (k+1,).

    It is Σ_j mine_j ∫₀¹ [x^(k−j)] silent(x) Π_b (Σ_{i<j} others_bi x^i + y others_bj x^j) dy: of t others that come as
    often, each is beaten with chance y by a lot in [0, 1], which is 1/(t+1) on average. Both the integral, by Gauss's
    rule, and the coefficient, by Fourier's, are exact.
    """
    k, total = len(mine) - 1, 0.0
    longest = np.where(others > 0, np.arange(k + 1), 0).max(axis=1)
    spare = int(np.flatnonzero(silent)[-1])
    for j in (np.flatnonzero(mine[1:]) + 1).tolist():
        left = k - j
        degree = int(np.minimum(longest, min(j, left)).sum()) + min(spare, left)
        if degree < left:
            continue
        y, share = _gauss(min(left // j, len(others)) // 2 + 1)
        terms = np.repeat(others[None, :, : j + 1], len(y), axis=0)
        terms[..., j] *= (y[:, None] + 1) / 2
        size = max(left, degree - left) + 1  # no other power falls on the one that is wanted
        product = np.fft.rfft(terms[..., : left + 1], size).prod(axis=1) * np.fft.rfft(silent[: left + 1], size)
        total += mine[j] * float((share / 2) @ np.fft.irfft(product, size)[:, left])
    return total


def _subsets(m: int, k: int, count: int, seed: int) -> Counts:
    """So many random k-subsets of m places, or all if they are no more, shape (S, k)."""
    if comb(m, k) <= count:
        return np.array(list(combinations(range(m), k)))
    return np.argpartition(np.random.default_rng(seed).random((count, m)), k - 1, axis=1)[:, :k]


def _share_right(codes: Counts, weights: Array, rights: Array) -> float:
    """How often the answer of the largest sum of weights is right in subsets of draws, all of shape (S, k)."""
    subsets, answers = len(codes), int(codes.max()) + 1
    voting = codes >= 0
    places = (np.arange(subsets)[:, None] * answers + codes)[voting]
    came, summed, good = (
        np.bincount(places, each[voting], minlength=subsets * answers).reshape(subsets, answers)
        for each in (np.ones_like(weights), weights, rights)
    )
    summed = np.where(came > 0, summed, -np.inf)
    most = summed.max(axis=1, keepdims=True, initial=-np.inf)
    leads = (came > 0) & (summed >= most - 1e-12 * np.abs(most))
    with np.errstate(invalid="ignore"):
        right = np.where(leads, good / came, 0.0).sum(axis=1) / leads.sum(axis=1)
    return float(np.nan_to_num(right).mean())


def _accepted(
    p: ArrayLike, true_positive_rate: ArrayLike, false_positive_rate: ArrayLike
) -> tuple[Array, Array, Array]:
    """P, t and the chance v that a draw is accepted."""
    given = {"p": p, "true_positive_rate": true_positive_rate, "false_positive_rate": false_positive_rate}
    chances = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
    for name, chance in chances.items():
        if not ((chance >= 0) & (chance <= 1)).all():
            raise ValueError(f"{name} is {chance[~((chance >= 0) & (chance <= 1))].flat[0]}; it must be from 0 to 1")
    right, accepts, errs = chances.values()
    return right, accepts, right * accepts + (1 - right) * errs
