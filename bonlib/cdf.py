"""What a finite sample of rewards says about the reward's distribution, and about best-of-n."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import digamma

from bonlib.checks import number, whole
from bonlib.exact import Array

Counts = NDArray[np.intp]
Smoothing = Literal["posterior", "add_one", "add_half", "clamp", "none"]

# A judge scores equal texts a little differently from batch to batch: in float32 by 1e-8 to 1e-7 of the rewards' size.
# Rewards of a prompt whose difference is at most this share of their size are one reward: of the larger of the two, or
# of the upper quartile of the prompt's, where that is more. Pass `rounding=0.0` where every digit of a reward is meant.
ROUNDING = 1e-6


class Estimate(NamedTuple):
    """An estimate and its standard error, arrays of one shape."""

    value: Array
    standard_error: Array


class RewardCdf(Protocol):
    """The distribution of the reward of reference responses, known or estimated, for one prompt or for many.

    Each method takes rewards and returns as many numbers: of any shape for one prompt, of shape (P, ...) for P.
    """

    def strict(self, r: ArrayLike) -> Array:
        """F(r) = P[r(Y) < r]."""
        ...

    def weak(self, r: ArrayLike) -> Array:
        """F≤(r) = P[r(Y) <= r]."""
        ...

    def log_strict(self, r: ArrayLike) -> Array:
        """Log F(r)."""
        ...

    def log_weak(self, r: ArrayLike) -> Array:
        """Log F≤(r)."""
        ...


class EmpiricalCdf:
    """The CDF estimated by counting: of M reference samples, k are worse than r (or, for the weak one, no better).

    Args:
        samples: rewards of reference responses: shape (M,) for one prompt, shape (P, M) for P of them, or a list of
            P arrays of different lengths.
        smoothing: what is made of k and M, for the CDF and for its logarithm:

            - "none": k/M. Its logarithm is −inf where k = 0.
            - "clamp": k/M, but at least `floor`/M.
            - "add_one": (k+1)/(M+1), as in the official vBoN code.
            - "add_half": (k+½)/(M+1).
            - "posterior": (k+a)/(M+a+b), and as logarithm its posterior mean ψ(k+a) − ψ(M+a+b) under a Beta(a, b)
              prior. With a = b = 1, the default, it is right on average for draws of the reference with a continuous
              reward; with a = n, b = 1 for draws of best-of-n.
        prior: a and b of "posterior", above 0 (b may be 0).
        floor: of "clamp", above 0.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Raises:
        ValueError: if there is no sample for a prompt, a reward is not finite, or an argument is out of range.

    Source: Amini et al., Eq. 6 and footnote 8; Sessa et al., section 4.1.
    """

    def __init__(
        self,
        samples: ArrayLike | Sequence[ArrayLike],
        smoothing: Smoothing = "posterior",
        *,
        prior: tuple[float, float] = (1.0, 1.0),
        floor: float = 1.0,
        rounding: float = ROUNDING,
    ) -> None:
        if smoothing not in ("posterior", "add_one", "add_half", "clamp", "none"):
            raise ValueError(
                f"smoothing is {smoothing!r}; it must be 'posterior', 'add_one', 'add_half', 'clamp' or 'none'"
            )
        if not (prior[0] > 0 and prior[1] >= 0 and floor > 0):
            raise ValueError(f"prior is {prior} and floor {floor}; a and floor must be positive, b not negative")
        self.smoothing, self.prior, self.floor = smoothing, prior, floor
        rows, self._single = _rows("samples", samples)
        self.m: Counts = np.array([len(row) for row in rows])
        self._starts = np.cumsum(self.m) - self.m
        ranked = np.concatenate([np.sort(row) for row in rows])
        # Rows of different lengths make a table when the shorter ones repeat their last entry.
        table = ranked[self._starts[:, None] + np.minimum(np.arange(self.m.max()), self.m[:, None] - 1)]
        tolerance = _tolerance(ranked, np.repeat(_size(table)[:, 0], self.m), rounding)
        # What is as good as a sample within the tolerance is neither better nor worse.
        self._from, self._upto = ranked - tolerance, ranked + tolerance

    def strict(self, r: ArrayLike) -> Array:
        """Return the estimate of F(r), of the shape of `r`: any for one prompt, (P, ...) for P prompts."""
        return self._smoothed(*self._count(r, "left"))

    def weak(self, r: ArrayLike) -> Array:
        """Return the estimate of F≤(r), shapes as in `strict`."""
        return self._smoothed(*self._count(r, "right"))

    def log_strict(self, r: ArrayLike) -> Array:
        """Return the estimate of log F(r), shapes as in `strict`."""
        return self._log_smoothed(*self._count(r, "left"))

    def log_weak(self, r: ArrayLike) -> Array:
        """Return the estimate of log F≤(r), shapes as in `strict`."""
        return self._log_smoothed(*self._count(r, "right"))

    def _count(self, r: ArrayLike, side: Literal["left", "right"]) -> tuple[Counts, Counts]:
        """How many samples are below (left) or not above (right) each reward, and of how many."""
        rewards = np.asarray(r, dtype=np.float64)
        if np.isnan(rewards).any():
            raise ValueError("r holds NaN; drop or repair that response")
        if not self._single and (rewards.ndim == 0 or len(rewards) != len(self.m)):
            raise ValueError(f"r has shape {rewards.shape}; its first axis must hold the {len(self.m)} prompts")
        shape = (1,) * rewards.ndim if self._single else (-1,) + (1,) * (rewards.ndim - 1)
        m, before = self.m.reshape(shape), self._starts.reshape(shape) - 1
        is_counted, border = (np.less, self._upto) if side == "left" else (np.less_equal, self._from)
        # A binary search in all prompts' samples at once, for the last that counts: it moves on by powers of two.
        last, end = np.broadcast_to(before, rewards.shape), before + m
        step = 1 << int(self.m.max()).bit_length()
        while step := step // 2:
            further = np.minimum(last + step, end)
            last = np.where(is_counted(border.take(further), rewards), further, last)
        return last - before, np.broadcast_to(m, rewards.shape)

    def _smoothed(self, k: Counts, m: Counts) -> Array:
        a, b = self.prior
        if self.smoothing == "none":
            return k / m
        if self.smoothing == "clamp":
            return np.maximum(k, self.floor) / m
        if self.smoothing == "posterior":
            return (k + a) / (m + a + b)
        return (k + (1 if self.smoothing == "add_one" else 0.5)) / (m + 1)

    def _log_smoothed(self, k: Counts, m: Counts) -> Array:
        if self.smoothing == "posterior":
            a, b = self.prior
            # There are few different counts, and digamma is slow.
            table = digamma(np.arange(int(self.m.max()) + 1) + a)
            return table[k] - digamma(m + a + b)
        with np.errstate(divide="ignore"):
            return np.log(self._smoothed(k, m))


class ExponentialCdf:
    """A smooth log F of the form −a e^{−b r}, strict and weak alike, as the vBoN paper fits it for summarisation.

    Args:
        a: scale, positive, shape () for one prompt or (P,).
        b: rate in units of 1/reward, positive, likewise.

    Source: Amini et al., section 6.
    """

    def __init__(self, a: ArrayLike, b: ArrayLike) -> None:
        self.a, self.b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if self.a.shape != self.b.shape or self.a.ndim > 1 or not ((self.a > 0) & (self.b > 0)).all():
            raise ValueError(f"a is {a!r} and b is {b!r}; both must be positive and of one shape, () or (prompts,)")

    @classmethod
    def fit(cls, samples: ArrayLike | Sequence[ArrayLike]) -> ExponentialCdf:
        """Fit a and b by non-linear least squares to the logarithm of the counted CDF at the samples.

        Args:
            samples: rewards of reference responses, shapes as for `EmpiricalCdf`, at least two different ones a prompt.

        Raises:
            ValueError: if a prompt's rewards are all equal, or one is not finite.
        """
        rows, single = _rows("samples", samples)
        fitted = np.array([_fit_exponential(row) for row in rows])
        return cls(*(fitted[0] if single else fitted.T))

    def strict(self, r: ArrayLike) -> Array:
        """Return F(r), of the shape of `r`: any for one prompt, (P, ...) for P prompts."""
        return np.exp(self.log_strict(r))

    def weak(self, r: ArrayLike) -> Array:
        """Return F≤(r), the same as F(r)."""
        return self.strict(r)

    def log_strict(self, r: ArrayLike) -> Array:
        """Return log F(r) = −a e^{−b r}, shapes as in `strict`."""
        rewards = np.asarray(r, dtype=np.float64)
        shape = self.a.shape + (1,) * (rewards.ndim - self.a.ndim)
        with np.errstate(over="ignore"):
            return -self.a.reshape(shape) * np.exp(-self.b.reshape(shape) * rewards)

    def log_weak(self, r: ArrayLike) -> Array:
        """Return log F≤(r), the same as log F(r)."""
        return self.log_strict(r)


def _fit_exponential(row: Array) -> Array:
    """The pair a, b by least squares in their logarithms, so that both stay positive, on standardised rewards."""
    values, counts = np.unique(snapped(row), return_counts=True)
    if len(values) < 2:
        raise ValueError(f"samples has a prompt whose {len(row)} rewards are all {values[0]}; a curve needs two values")
    centre, scale = row.mean(), row.std()
    z, log_cdf = (values - centre) / scale, np.log(np.cumsum(counts) / len(row))

    def misfit(log_ab: Array) -> Array:
        return (np.exp(np.minimum(log_ab[0] - np.exp(log_ab[1]) * z, 50.0)) + log_cdf) * np.sqrt(counts)

    log_a, log_b = least_squares(misfit, [np.log(np.log(2)), 0.0]).x
    b = np.exp(log_b) / scale
    return np.array([np.exp(log_a + b * centre), b])


def _rows(name: str, samples: ArrayLike | Sequence[ArrayLike]) -> tuple[list[Array], bool]:
    """The samples as one array a prompt, and whether they are those of a single prompt."""
    items = samples if isinstance(samples, np.ndarray) else list(samples)  # type: ignore[arg-type]
    if len(items) == 0:
        raise ValueError(f"{name} is empty; an estimate needs at least one reward")
    single = np.ndim(items[0]) == 0
    rows = [np.asarray(row, dtype=np.float64) for row in ([items] if single else items)]
    for place, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0 or not np.isfinite(row).all():
            raise ValueError(
                f"{name}[{place}] has shape {row.shape} or a reward that is not finite; each prompt needs a list of at "
                "least one finite reward"
            )
    return rows, single


def snapped(rewards: ArrayLike, rounding: float = ROUNDING) -> Array:
    """Return rewards in which those that differ by rounding are equal: to the lowest of them.

    Neighbours within the tolerance hang together, and where many do, as in a million draws of a continuous reward, the
    chain is cut at each tolerance from its lowest.

    Args:
        rewards: finite, shape (..., m); the last axis is one prompt's.
        rounding: share of their size up to which a difference is rounding, see `ROUNDING`; 0 leaves them as they are.
    """
    table = np.asarray(rewards, dtype=np.float64)
    if rounding == 0 or not table.size:
        return table
    order = np.argsort(table, axis=-1)
    ranked = np.take_along_axis(table, order, axis=-1)
    tolerance = _tolerance(ranked, _size(ranked), rounding)
    begins = np.ones(ranked.shape, dtype=bool)
    np.greater(np.diff(ranked), tolerance[..., 1:], out=begins[..., 1:])
    above_lowest = ranked - _at_beginning(ranked, begins)
    steps = np.floor(np.divide(above_lowest, tolerance, out=np.zeros_like(ranked), where=tolerance > 0))
    begins[..., 1:] |= np.diff(steps) > 0
    result = np.empty_like(table)
    np.put_along_axis(result, order, _at_beginning(ranked, begins), axis=-1)
    return result


def _at_beginning(ranked: Array, begins: NDArray[np.bool_]) -> Array:
    """For each entry of a row the value at the last place up to it where something begins."""
    places = np.where(begins, np.arange(ranked.shape[-1]), 0)
    return np.take_along_axis(ranked, np.maximum.accumulate(places, axis=-1), axis=-1)


def _tolerance(rewards: Array, size: Array, rounding: float) -> Array:
    return number("rounding", rounding, least=0, below=1) * np.maximum(np.abs(rewards), size)


def _size(ranked: Array) -> Array:
    """Upper quartile of the sizes of the different rewards, (..., 1), from rewards in order, (..., m).

    Neither a response that comes again and again nor one of −1e9 moves it, even if there are but 0 and 1 besides.
    """
    new = np.ones(ranked.shape, dtype=bool)
    np.not_equal(ranked[..., 1:], ranked[..., :-1], out=new[..., 1:])
    sizes = np.sort(np.where(new, np.abs(ranked), np.inf), axis=-1)
    last = np.count_nonzero(new, axis=-1, keepdims=True) - 1
    return np.take_along_axis(sizes, 3 * last // 4, axis=-1)


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


def best_of_n_win_rate(samples: ArrayLike, n: int, *, rounding: float = ROUNDING) -> Array:
    """Return the unbiased estimate of how often best-of-n beats another reference response, ties counting one half.

    It is the mean over all ways to take n samples as competitors and one of the others as their opponent. That the
    opponent is none of them matters: against all m samples, itself among them, the best of n seems to win more often.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m > n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m − 1.
        rounding: share of the rewards' size up to which a difference is rounding, see `ROUNDING`; 0 for none.

    Returns:
        The estimate for each prompt, shape (...): n/(n+1) where no two rewards are equal.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.

    Source: Beirami et al., Lemma 5.1; Hoeffding 1948 (U-statistics).
    """
    rewards, n = _checked_samples(samples, n, opponents=1)
    others = rewards.shape[-1] - 1
    upto = _subset_cdf(others, n)
    lower, upper = _ranks(snapped(rewards, rounding))
    # All n competitors are worse than a sample, or no better, if they are among so many of the others.
    return 1 - (upto[lower] + upto[upper - 1]).mean(axis=-1) / 2


def best_of_n_kl(
    samples: ArrayLike,
    n: int,
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
        n: number of draws, a whole number from 1 to m.
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
    rewards, n = _checked_samples(samples, n)
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
    names = [None] * len(rows) if responses is None else _numbered(responses, rewards.shape)
    found = [_kl_of_row(row, n, logs, which) for row, logs, which in zip(rows, known, names, strict=True)]
    return np.reshape(found, rewards.shape[:-1])


def _numbered(responses: Any, shape: tuple[int, ...]) -> list[Counts]:
    """A number for each response of each prompt, the same for equal ones."""
    try:
        rows = [responses]
        for _ in shape[:-1]:
            rows = [row for block in rows for row in block]
        numbers: list[dict[Hashable, int]] = [{} for _ in rows]
        table = [[known.setdefault(item, len(known)) for item in row] for known, row in zip(numbers, rows, strict=True)]
        return list(np.reshape(np.array(table, dtype=np.intp), shape).reshape(-1, shape[-1]))
    except (TypeError, ValueError):
        raise ValueError(
            f"responses must have the shape {shape} of samples, a text (or something else to hash) for each: give "
            "draws.texts, or leave it out"
        ) from None


def _kl_of_row(rewards: Array, n: int, log_probs: Array, responses: Counts | None) -> float:
    """The estimate for one prompt, from rewards without rounding, and log-probabilities, NaN where there are none.

    A response of probability p is among m samples with chance s = 1 − (1−p)^m. So one that was seen stands for the mass
    p/s: for itself if it is likely, for 1/m of the distribution if it is not. What the responses of a reward stand for
    is its mass. A reward of one response has the mass p, and in the middle of the interval of F that this response
    stands for.
    """
    m = len(rewards)
    _, group, times = np.unique(rewards, return_inverse=True, return_counts=True)
    rungs = len(times)
    _, first, response = np.unique(group if responses is None else responses, return_index=True, return_inverse=True)
    rung, likely = group[first], log_probs[first]  # of each response
    # One text with several log-probabilities or rewards is several responses: they are counted, as are unknown ones.
    agrees = (np.abs(log_probs - likely[response]) < 0.01) & (group == rung[response])
    counted = np.bincount(np.append(group[~agrees], rung[response[~agrees]]), minlength=rungs) > 0
    came = np.bincount(response)
    again = (came > 1) & ~counted[rung]
    excess, variance = _excess(came[again], np.exp(likely[again]), m)
    if responses is None:  # a reward that came more often than one response does is that of several
        unlike = np.abs(excess) > 2 * np.sqrt(variance)
        if abs(excess[~unlike].sum()) > 2 * np.sqrt(variance[~unlike].sum()):  # together they say more than one by one
            unlike[:] = True
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
    more = more if more.sum() > 0 else known  # all that came is so likely that it had to come
    more = more * (max(1.0 - known.sum(), 0.0) / more.sum())
    stands_for = np.maximum(known + more, 1e-300)
    alone = ~counted & (np.bincount(rung, minlength=rungs) == 1)
    log_g = np.log(stands_for)
    log_g[rung] = np.where(alone[rung], likely, log_g[rung])
    log_cdf = np.log(np.minimum(np.cumsum(stands_for) - np.where(alone, more / 2, 0.0), 1.0))
    share = np.minimum(np.exp(log_g - log_cdf), 1.0)
    with np.errstate(divide="ignore"):
        log_found = np.log(-np.expm1(n * np.log1p(-share)))  # 1 − (F/F≤)^n
    log_lift = n * log_cdf + np.where(n * share < 1e-12, np.log(n) + log_g - log_cdf, log_found) - log_g
    weights = stands_for * np.exp(log_lift)
    return max(float(weights @ log_lift / weights.sum()), 0.0)  # as a KL is, where an estimate may not be


def _excess(times: Counts, p: Array, m: int) -> tuple[Array, Array]:
    """How much oftener than expected responses came that came twice at least, of probabilities p, and its variance."""
    p = np.clip(p, 1e-3 / m, 1 - 1e-12)
    never, once = (1 - p) ** m, m * p * (1 - p) ** (m - 1)
    mean = (m * p - once) / (1 - never - once)
    variance = (m * p * (1 - p) + (m * p) ** 2 - once) / (1 - never - once) - mean**2
    return times - mean, np.maximum(variance, 0.0)


def _ranks(rewards: Array) -> tuple[Counts, Counts]:
    """How many samples are below each reward, and how many are not above it; the last axis is one prompt's."""
    rows = rewards.reshape(-1, rewards.shape[-1])
    both = [[np.searchsorted(np.sort(row), row, side) for row in rows] for side in ("left", "right")]
    lower, upper = (np.reshape(counts, rewards.shape) for counts in both)
    return lower, upper


def _checked_samples(samples: ArrayLike, n: int, opponents: int = 0) -> tuple[Array, int]:
    """The samples as an array, and n as an integer that leaves so many opponents, or a ValueError."""
    rewards = np.asarray(samples, dtype=np.float64)
    if rewards.ndim == 0 or not np.isfinite(rewards).all():
        raise ValueError("samples must be an array of finite rewards: drop or repair the responses without one")
    m = rewards.shape[-1]
    apart = f" and {opponents} to play against" if opponents else ""
    return rewards, whole("n", n, 1, m - opponents, what=f"with {m} samples a prompt{apart} it")


def _subset_cdf(m: int, n: int) -> Array:
    """The probability that a random n-subset of m is among the k smallest, k = 0 … m."""
    return np.minimum(np.concatenate([[0.0], np.cumsum(_subset_weights(m, n))]), 1.0)


def _subset_weights(m: int, n: int) -> Array:
    """The probability that the i-th smallest of m is the largest of a random n-subset, i = 1 … m."""
    ranks = np.arange(m, n, -1)
    from_top = (n / m) * np.concatenate([[1.0], np.cumprod((ranks - n) / (ranks - 1))])
    return np.concatenate([np.zeros(n - 1), from_top[::-1]])
