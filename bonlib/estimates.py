"""What stored draws say about best-of-n: reward, win rate and KL, without a new draw."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bonlib.cdf import ROUNDING, Counts, begins, snapped
from bonlib.checks import whole
from bonlib.exact import Array, as_probs

_WEIGHTS = 2**24  # of subsets, kept at once


class Estimate(NamedTuple):
    """An estimate and its standard error, arrays of one shape."""

    value: Array
    standard_error: Array


def best_of_n_reward(samples: ArrayLike, n: int) -> Estimate:
    """Return the unbiased estimate of the mean best-of-n reward, from any number of samples of at least n.

    It is the mean over all n-subsets of the samples of their largest reward, so one set of draws serves every n.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m.

    Returns:
        The estimate for each prompt, shape (...), and its delete-one jackknife standard error, which errs on the
        safe side as n nears m (NaN for n = m, where a single subset is left and says nothing of its spread).

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.

    Source: Nakano et al. 2021 (WebGPT), section 3.2: Σ_i C(i−1, n−1)/C(m, n) r_(i).
    """
    rewards, n = _checked_samples(samples, n)
    m = rewards.shape[-1]
    rewards = np.sort(rewards, axis=-1)
    value = rewards @ _subset_weights(m, n)
    if n == m:
        return Estimate(value, np.full_like(value, np.nan))
    # Leaving out sample j keeps the weights of those below it and shifts those above it down by one place.
    weights = _subset_weights(m - 1, n)
    below = np.cumsum(rewards[..., :-1] * weights, axis=-1)
    above = np.cumsum((rewards[..., 1:] * weights)[..., ::-1], axis=-1)[..., ::-1]
    zero = np.zeros_like(value)[..., None]
    left_out = np.concatenate([zero, below], axis=-1) + np.concatenate([above, zero], axis=-1)
    return Estimate(value, np.sqrt((m - 1) * np.var(left_out, axis=-1)))


def best_of_n_weights(samples: ArrayLike, n: int, *, rounding: float = ROUNDING) -> Array:
    """Return how likely best-of-n keeps each of m samples, if its n draws are n of them taken at random.

    With these weights, the mean of anything over the samples estimates its mean over best-of-n, without bias.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Returns:
        Probabilities, shape (..., m); samples of equal reward have equal ones, as if they came in random order.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.

    Source: Nakano et al. 2021 (WebGPT), section 3.2.
    """
    rewards, n = _checked_samples(samples, n)
    upto = _subset_cdf(rewards.shape[-1], n)
    lower, upper = _ranks(snapped(rewards, rounding))
    return (upto[upper] - upto[lower]) / (upper - lower)


def best_of_n_mean(
    samples: ArrayLike, n: int | Sequence[int], values: ArrayLike | None = None, *, rounding: float = ROUNDING
) -> Array:
    """Return the unbiased estimate of the mean of anything over best-of-n: of a second reward, of the length.

    It is the sum of the values with the weights of `best_of_n_weights`, for many n at once.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m; or several, which the last axis of the result is then for.
        values: what to average, finite, shape (..., m); the rewards themselves if None.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Returns:
        The estimate for each prompt, shape (...) or (..., number of n).

    Raises:
        ValueError: if `n` is out of range, or a reward or value is not finite.

    Source: Nakano et al. 2021 (WebGPT), section 3.2.
    """
    rewards, ns, single = _checked_draws(samples, n)
    found = _for_each(_levels(rewards, values, rounding), [partial(_subset_weights, rewards.shape[-1], k) for k in ns])
    return found[..., 0] if single else found


def best_of_n_win_rate(samples: ArrayLike, n: int | Sequence[int], *, rounding: float = ROUNDING) -> Array:
    """Return the unbiased estimate of how often best-of-n beats another reference response, ties counting one half.

    It is the mean over all ways to take n samples as competitors and one of the others as their opponent. That the
    opponent is none of them matters: against all m samples, itself among them, the best of n seems to win more often.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m > n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m − 1; or several, which the last axis of the result is then for.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Returns:
        The estimate for each prompt, shape (...) or (..., number of n): n/(n+1) where no two rewards are equal.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.

    Source: Beirami et al., Lemma 5.1; Hoeffding 1948 (U-statistics).
    """
    rewards, ns, single = _checked_draws(samples, n, opponents=1)
    m, times = rewards.shape[-1], _times_beaten(rewards, rounding)
    found = 1 - _for_each(times, [partial(_subset_cdf, m - 1, each) for each in ns]) / (2 * m)
    return found[..., 0] if single else found


def best_of_random_n_mean(
    samples: ArrayLike, chances: ArrayLike, values: ArrayLike | None = None, *, rounding: float = ROUNDING
) -> Array:
    """Return the unbiased estimate of the mean of anything over the best of a random number N of draws.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m); the last axis is one prompt's.
        chances: P(N = 1), P(N = 2), …, at most m of them, summing to one, such as `DrawCount.chances(m)`.
        values: what to average, finite, shape (..., m); the rewards themselves if None.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Returns:
        The estimate for each prompt, shape (...).

    Raises:
        ValueError: if `chances` are no distribution or too many, or a reward or value is not finite.

    Source: derived here: the mixture of the weights of `best_of_n_mean`.
    """
    rewards, mixture = _checked_mixture(samples, chances)
    return _levels(rewards, values, rounding) @ _mixed(_subset_weights, rewards.shape[-1], mixture)


def best_of_random_n_win_rate(samples: ArrayLike, chances: ArrayLike, *, rounding: float = ROUNDING) -> Array:
    """Return the unbiased estimate of how often the best of a random number N of draws beats another draw.

    Arguments as in `best_of_random_n_mean`, with at most m − 1 `chances`: the opponent is none of the N.
    """
    rewards, mixture = _checked_mixture(samples, chances, opponents=1)
    m = rewards.shape[-1]
    return 1 - _times_beaten(rewards, rounding) @ _mixed(_subset_cdf, m - 1, mixture) / (2 * m)


def best_of_n_kl(
    samples: ArrayLike,
    n: int | Sequence[int],
    *,
    log_probs: ArrayLike | None = None,
    responses: Any = None,
    rounding: float = ROUNDING,
) -> Array:
    """Return an estimate of KL(π_n ‖ π) in nats from m reference samples: E log((F≤^n − F^n) / (F≤ − F)) over π_n.

    Known log-probabilities make it much more accurate where responses repeat, or share their reward with few others;
    give `responses` with them, since nothing else can tell whether two draws of one reward are one response.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; take m at least 2n.
        n: number of draws, a whole number from 1 to m; or several, which the last axis of the result is then for.
        log_probs: log-probability of each sample under the distribution that it was drawn from, shape (..., m), such as
            `draws.log_probs`. Without `responses`, draws of one reward and log-probability are taken for one response
            unless they are too many for that. The mass F≤ − F of other rewards is counted, as that of all is if None.
        responses: which draws are one response, shape (..., m): their texts, such as `draws.texts`, or anything else
            that can be hashed.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Raises:
        ValueError: if `n` is out of range, a reward or log-probability is not a number in its range, `responses` has
            another shape, or they came much oftener or more rarely than `log_probs` say.

    Source: Beirami et al., in the spirit of Corollary 4.2; the weights are those of Horvitz and Thompson (1952).
    """
    rewards, ns, single = _checked_draws(samples, n)
    m = rewards.shape[-1]
    rows = snapped(rewards, rounding).reshape(-1, m)
    known = np.full(rows.shape, np.nan)
    if log_probs is not None:
        log_probs = np.asarray(log_probs, dtype=np.float64)
        if log_probs.shape != rewards.shape or not (log_probs <= 0).all() or not np.isfinite(log_probs).all():
            raise ValueError(
                f"log_probs has shape {log_probs.shape} or holds what is no log-probability; it must be finite, at "
                f"most 0, and of the shape {rewards.shape} of samples"
            )
        known = log_probs.reshape(-1, m)
    row, stands_for, log_g, log_cdf = _masses(
        rows, known, None if responses is None else _numbered(responses, rewards.shape)
    )
    share = np.minimum(np.exp(log_g - log_cdf), 1.0)
    with np.errstate(divide="ignore"):
        log_missed = np.log1p(-share)
    found = np.empty((len(rows), len(ns)))
    for place, each in enumerate(ns):
        with np.errstate(divide="ignore"):
            log_found = np.log(-np.expm1(each * log_missed))  # 1 − (F/F≤)^n
        few = np.log(each) + log_g - log_cdf
        log_lift = each * log_cdf + np.where(each * share < 1e-12, few, log_found) - log_g
        weights = stands_for * np.exp(log_lift)
        kl = np.bincount(row, weights * log_lift, len(rows)) / np.bincount(row, weights, len(rows))
        found[:, place] = np.maximum(kl, 0.0)  # as a KL is, where an estimate may not be
    shape = rewards.shape[:-1]
    return found[:, 0].reshape(shape) if single else found.reshape(*shape, len(ns))


def _numbered(responses: Any, shape: tuple[int, ...]) -> Counts:
    """A number for each response of each prompt, the same for equal ones."""
    try:
        rows = [responses]
        for _ in shape[:-1]:
            rows = [row for block in rows for row in block]
        numbers: list[dict[Hashable, int]] = [{} for _ in rows]
        table = [[known.setdefault(item, len(known)) for item in row] for known, row in zip(numbers, rows, strict=True)]
        return np.reshape(np.array(table, dtype=np.intp), shape).reshape(-1, shape[-1])
    except (TypeError, ValueError):
        raise ValueError(
            f"responses must have the shape {shape} of samples, a text (or something else to hash) for each: give "
            "draws.texts, or leave it out"
        ) from None


def _masses(rewards: Array, log_probs: Array, responses: Counts | None) -> tuple[Counts, Array, Array, Array]:
    """What each reward stands for: which prompt it is of, its mass, the logarithm of F≤ − F, and that of F≤.

    From rewards without rounding, (P, m), and log-probabilities, NaN where there are none. A response of probability p
    is among m samples with chance s = 1 − (1−p)^m. So one that was seen stands for the mass p/s: for itself if it is
    likely, for 1/m of the distribution if it is not. What the responses of a reward stand for is its mass. A reward of
    one response has the mass p, and in the middle of the interval of F that this response stands for.
    """
    prompts, m = rewards.shape
    offset = np.arange(prompts)[:, None] * m
    levels, group, times = np.unique(offset + _ranks(rewards)[0], return_inverse=True, return_counts=True)
    group, log_probs, rungs, row = group.reshape(-1), log_probs.reshape(-1), len(times), levels // m
    named = group if responses is None else (offset + responses).reshape(-1)
    _, first, response = np.unique(named, return_index=True, return_inverse=True)
    rung, likely = group[first], log_probs[first]  # of each response
    # One text with several log-probabilities or rewards is several responses: they are counted, as are unknown ones.
    agrees = (np.abs(log_probs - likely[response]) < 0.01) & (group == rung[response])
    counted = np.bincount(np.append(group[~agrees], rung[response[~agrees]]), minlength=rungs) > 0
    came = np.bincount(response)
    again = (came > 1) & ~counted[rung]
    excess, variance = _excess(came[again], np.exp(likely[again]), m)
    if responses is None:  # a reward that came more often than one response does is that of several
        unlike = np.abs(excess) > 2 * np.sqrt(variance)
        of = row[rung[again]]
        beyond, spread = (np.bincount(of[~unlike], part[~unlike], prompts) for part in (excess, variance))
        unlike |= (np.abs(beyond) > 2 * np.sqrt(spread))[of]  # together they say more than one by one
        counted[rung[again][unlike]] = True
    elif (unlike := np.abs(excess) > 6 * np.sqrt(1 + variance + (0.1 * (came[again] - excess)) ** 2)).any():
        worst = np.argmax(unlike)
        raise ValueError(
            f"log_probs are not those of the distribution that samples came from: a response of probability "
            f"{np.exp(likely[again][worst]):.2g} came {came[again][worst]} times in {m}: give draws.log_probs"
        )
    p = np.where(counted[rung], 0.0, np.exp(likely))
    with np.errstate(divide="ignore"):
        chance = -np.expm1(m * np.log1p(-p))
    unseen = np.maximum(np.where(m * p < 1e-9, 1 / m, p / np.maximum(chance, 1e-300)) - p, 0.0)
    known = np.where(counted, times / m, np.bincount(rung, p, rungs))
    more = np.where(counted, 0.0, np.bincount(rung, unseen, rungs))
    more = np.where((np.bincount(row, more) > 0)[row], more, known)  # all that came is so likely that it had to come
    more *= (np.maximum(1.0 - np.bincount(row, known), 0.0) / np.bincount(row, more))[row]
    stands_for = np.maximum(known + more, 1e-300)
    alone = ~counted & (np.bincount(rung, minlength=rungs) == 1)
    log_g = np.log(stands_for)
    log_g[rung] = np.where(alone[rung], likely, log_g[rung])
    ladder = np.zeros(rewards.shape)  # one prompt a row: a sum along all of them would carry its rounding on
    at = row, np.arange(rungs) - np.searchsorted(row, row)
    ladder[at] = stands_for
    upto = np.cumsum(ladder, axis=1)[at]
    return row, stands_for, log_g, np.log(np.minimum(upto - np.where(alone, more / 2, 0.0), 1.0))


def _excess(times: Counts, p: Array, m: int) -> tuple[Array, Array]:
    """How much oftener than expected responses came that came twice at least, of probabilities p, and its variance."""
    p = np.clip(p, 1e-3 / m, 1 - 1e-12)
    never, once = (1 - p) ** m, m * p * (1 - p) ** (m - 1)
    mean = (m * p - once) / (1 - never - once)
    variance = (m * p * (1 - p) + (m * p) ** 2 - once) / (1 - never - once) - mean**2
    return times - mean, np.maximum(variance, 0.0)


def _ranks(rewards: Array) -> tuple[Counts, Counts]:
    """How many samples are below each reward, and how many are not above it; the last axis is one prompt's."""
    m = rewards.shape[-1]
    order = np.argsort(rewards, axis=-1)
    new = begins(np.take_along_axis(rewards, order, axis=-1))
    ends = np.concatenate([new[..., 1:], np.ones_like(new[..., :1])], axis=-1)
    below = np.maximum.accumulate(np.where(new, np.arange(m), 0), axis=-1)
    upto = np.minimum.accumulate(np.where(ends, np.arange(1, m + 1), m)[..., ::-1], axis=-1)[..., ::-1]
    lower, upper = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(lower, order, below, axis=-1)
    np.put_along_axis(upper, order, upto, axis=-1)
    return lower, upper


def _checked_samples(samples: ArrayLike, n: int, opponents: int = 0) -> tuple[Array, int]:
    """The samples as an array, and n as an integer that leaves so many opponents, or a ValueError."""
    rewards = np.asarray(samples, dtype=np.float64)
    if rewards.ndim == 0 or not np.isfinite(rewards).all():
        raise ValueError("samples must be an array of finite rewards: drop or repair the responses without one")
    m = rewards.shape[-1]
    if m <= opponents:
        raise ValueError(f"samples has {m} a prompt; {opponents} plays against the best of the others: draw more")
    apart = f" and {opponents} to play against" if opponents else ""
    return rewards, whole("n", n, 1, m - opponents, what=f"with {m} samples a prompt{apart} it")


def _checked_draws(samples: ArrayLike, n: int | Sequence[int], opponents: int = 0) -> tuple[Array, list[int], bool]:
    """The samples, the numbers of draws, each checked, and whether a single one was asked for."""
    single = np.ndim(n) == 0
    asked: Any = [n] if single else n
    if len(asked) == 0:
        raise ValueError("n is empty; give a number of draws, or several")
    rewards = np.asarray(samples, dtype=np.float64)
    return rewards, [_checked_samples(rewards, each, opponents)[1] for each in asked], single


def _checked_mixture(samples: ArrayLike, chances: ArrayLike, opponents: int = 0) -> tuple[Array, Array]:
    """The samples, and the chances of numbers of draws that leave so many opponents."""
    mixture = as_probs("chances", chances)
    rewards, _ = _checked_samples(samples, 1, opponents)
    if len(mixture) > rewards.shape[-1] - opponents:
        raise ValueError(
            f"chances has {len(mixture)} entries; there are {rewards.shape[-1]} samples a prompt: give one a number of "
            f"draws from 1 to {rewards.shape[-1] - opponents} at most"
        )
    return rewards, mixture


def _mixed(weights: Callable[[int, int], Array], m: int, mixture: Array) -> Array:
    """The mean of the weights of n out of m over a random n."""
    return reduce(np.add, (chance * weights(m, n) for n, chance in enumerate(mixture, 1) if chance > 0))


def _levels(rewards: Array, values: ArrayLike | None, rounding: float) -> Array:
    """Values in the order of the rewards, the mean of them where rewards are equal: each is kept as often."""
    given = rewards if values is None else np.asarray(values, dtype=np.float64)
    if given.shape != rewards.shape or not np.isfinite(given).all():
        raise ValueError(f"values has shape {given.shape} or one that is not finite; samples has shape {rewards.shape}")
    keys = snapped(rewards, rounding)
    order = np.argsort(keys, axis=-1)
    keys, ranked = np.take_along_axis(keys, order, axis=-1), np.take_along_axis(given, order, axis=-1)
    levels = np.flatnonzero(begins(keys))
    times = np.diff(np.append(levels, keys.size))
    return np.repeat(np.add.reduceat(ranked.reshape(-1), levels) / times, times).reshape(ranked.shape)


def _times_beaten(rewards: Array, rounding: float) -> Counts:
    """For how many samples all competitors are worse, or no better, if they are among the k lowest; k = 0 … m − 1."""
    m = rewards.shape[-1]
    lower, upper = _ranks(snapped(rewards, rounding))
    # All n competitors are worse than a sample, or no better, if they are among so many of the others.
    among = np.arange(rewards.size // m)[:, None] * m + np.concatenate([lower, upper - 1], axis=-1).reshape(-1, 2 * m)
    return np.bincount(among.reshape(-1), minlength=rewards.size).reshape(rewards.shape)


def _for_each(rows: Array | Counts, weights: list[Callable[[], Array]]) -> Array:
    """Rows, (..., m), with each of some weights, (m,): (..., number of weights); not too many in memory at once."""
    few = max(_WEIGHTS // rows.shape[-1], 1)
    parts = [weights[begin : begin + few] for begin in range(0, len(weights), few)]
    return np.concatenate([rows @ np.stack([each() for each in part]).T for part in parts], axis=-1)


def _subset_cdf(m: int, n: int) -> Array:
    """The probability that a random n-subset of m is among the k smallest, k = 0 … m."""
    return np.minimum(np.concatenate([[0.0], np.cumsum(_subset_weights(m, n))]), 1.0)


def _subset_weights(m: int, n: int) -> Array:
    """The probability that the i-th smallest of m is the largest of a random n-subset, i = 1 … m."""
    ranks = np.arange(m, n, -1)
    from_top = (n / m) * np.concatenate([[1.0], np.cumprod((ranks - n) / (ranks - 1))])
    return np.concatenate([np.zeros(n - 1), from_top[::-1]])
