"""What a finite sample of rewards says about the reward's distribution, and about best-of-n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import digamma

from bonlib.exact import Array

Counts = NDArray[np.intp]
Smoothing = Literal["posterior", "add_one", "add_half", "clamp", "none"]


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
        self._sorted = np.concatenate([np.sort(row) for row in rows])
        self._starts = np.cumsum(self.m) - self.m

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
        m, last = self.m.reshape(shape), self._starts.reshape(shape) - 1
        is_counted = np.less if side == "left" else np.less_equal
        # A binary search in all prompts' samples at once: k grows by powers of two while the sample there counts.
        k = np.zeros(rewards.shape, dtype=np.intp)
        step = 1 << int(self.m.max()).bit_length()
        while step := step // 2:
            further = np.minimum(k + step, m)
            k = np.where(is_counted(self._sorted[last + further], rewards), further, k)
        return k, np.broadcast_to(m, rewards.shape)

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
    values, counts = np.unique(row, return_counts=True)
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


def best_of_n_weights(samples: ArrayLike, n: int) -> Array:
    """Return how likely best-of-n keeps each of m samples, if its n draws are n of them taken at random.

    With these weights, the mean of anything over the samples estimates its mean over best-of-n, without bias.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; the last axis is one prompt's.
        n: number of draws, a whole number from 1 to m.

    Returns:
        Probabilities, shape (..., m); samples of equal reward have equal ones, as if they came in random order.

    Raises:
        ValueError: if `n` is out of range or a reward is not finite.

    Source: Nakano et al. 2021 (WebGPT), section 3.2.
    """
    rewards, n = _checked_samples(samples, n)
    upto = np.concatenate([[0.0], np.cumsum(_subset_weights(rewards.shape[-1], n))])
    ranked = np.sort(rewards, axis=-1)
    lower, upper = _ranks(ranked, rewards)
    return (upto[upper] - upto[lower]) / (upper - lower)


def best_of_n_kl(samples: ArrayLike, n: int, *, log_probs: ArrayLike | None = None) -> Array:
    """Return an estimate of KL(π_n ‖ π) in nats from m reference samples: E log((F≤^n − F^n) / (F≤ − F)) over π_n.

    Args:
        samples: rewards of i.i.d. reference responses, shape (..., m) with m >= n; take m at least 2n.
        n: number of draws, a whole number from 1 to m.
        log_probs: log-probability of each sample, shape (..., m), which makes the estimate much more accurate where
            responses repeat. Rewards that different responses share have a mass F≤ − F that is counted, as all have if
            None.

    Raises:
        ValueError: if `n` is out of range, or a reward or log-probability is not a number in its range.

    Source: Beirami et al., in the spirit of Corollary 4.2; the weights are those of Horvitz and Thompson (1952).
    """
    rewards, n = _checked_samples(samples, n)
    m = rewards.shape[-1]
    if log_probs is None:
        rows = [None] * (rewards.size // m)
    else:
        log_probs = np.asarray(log_probs, dtype=np.float64)
        if log_probs.shape != rewards.shape or not (log_probs <= 0).all() or not np.isfinite(log_probs).all():
            raise ValueError(
                f"log_probs has shape {log_probs.shape} or holds what is no log-probability; it must be finite, at "
                f"most 0, and of the shape {rewards.shape} of samples"
            )
        rows = list(log_probs.reshape(-1, m))
    found = [_kl_of_row(row, n, mass) for row, mass in zip(rewards.reshape(-1, m), rows, strict=True)]
    return np.reshape(found, rewards.shape[:-1])


def _kl_of_row(rewards: Array, n: int, log_probs: Array | None) -> float:
    """The estimate for one prompt.

    A reward of mass g is among m samples with chance s = 1 − (1−g)^m. So one that was seen stands for the mass g/s: for
    itself if it is likely, for 1/m of the distribution if it is not, and the interval of F that this takes has the
    reward's own, of length g, in its middle.
    """
    m = len(rewards)
    _, group, times = np.unique(rewards, return_inverse=True, return_counts=True)
    log_g, unseen = np.log(times / m), np.zeros(len(times))
    if log_probs is not None:
        highest, lowest = np.full(len(times), -np.inf), np.full(len(times), np.inf)
        np.maximum.at(highest, group, log_probs)
        np.minimum.at(lowest, group, log_probs)
        one_response = highest - lowest < 0.01  # else different responses share the reward, and counting is right
        log_g = np.where(one_response, highest, log_g)
        with np.errstate(divide="ignore"):
            chance = -np.expm1(m * np.log1p(-np.exp(log_g)))
        g = np.exp(log_g)
        unseen = np.maximum(np.where(m * g < 1e-9, 1 / m, g / np.maximum(chance, 1e-300)) - g, 0.0)
        unseen = np.where(one_response, unseen, 0.0)
        unseen *= max(1.0 - g.sum(), 0.0) / max(unseen.sum(), 1e-300)
    stands_for = np.exp(log_g) + unseen
    log_cdf = np.log(np.minimum(np.cumsum(stands_for) - unseen / 2, 1.0))
    share = np.minimum(np.exp(log_g - log_cdf), 1.0)
    with np.errstate(divide="ignore"):
        log_found = np.log(-np.expm1(n * np.log1p(-share)))  # 1 − (F/F≤)^n
    log_lift = n * log_cdf + np.where(n * share < 1e-12, np.log(n) + log_g - log_cdf, log_found) - log_g
    weights = stands_for * np.exp(log_lift)
    return float(weights @ log_lift / weights.sum())


def _ranks(ranked: Array, rewards: Array) -> tuple[Counts, Counts]:
    """How many samples are below each reward, and how many are not above it; the last axis is one prompt's."""
    rows, m = ranked.reshape(-1, ranked.shape[-1]), ranked.shape[-1]
    values = rewards.reshape(-1, m)
    both = [[np.searchsorted(r, v, side) for r, v in zip(rows, values, strict=True)] for side in ("left", "right")]
    lower, upper = (np.stack(counts).reshape(rewards.shape) for counts in both)
    return lower, upper


def _checked_samples(samples: ArrayLike, n: int) -> tuple[Array, int]:
    """The samples as an array, and n as an integer, or a ValueError."""
    rewards = np.asarray(samples, dtype=np.float64)
    if rewards.ndim == 0 or not np.isfinite(rewards).all():
        raise ValueError("samples must be an array of finite rewards: drop or repair the responses without one")
    m = rewards.shape[-1]
    if not 1 <= n <= m or n != int(n):
        raise ValueError(f"n is {n}; with {m} samples a prompt it must be a whole number from 1 to {m}")
    return rewards, int(n)


def _subset_weights(m: int, n: int) -> Array:
    """The probability that the i-th smallest of m is the largest of a random n-subset, i = 1 … m."""
    ranks = np.arange(m, n, -1)
    from_top = (n / m) * np.concatenate([[1.0], np.cumprod((ranks - n) / (ranks - 1))])
    return np.concatenate([np.zeros(n - 1), from_top[::-1]])
