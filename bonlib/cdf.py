"""What a finite sample of rewards says about the reward's distribution, and about best-of-n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import digamma

from bonlib.checks import number, one_of
from bonlib.exact import Array

Counts = NDArray[np.intp]
Smoothing = Literal["posterior", "add_one", "add_half", "clamp", "none"]

# A judge scores equal texts a little differently from batch to batch: in float32 by 1e-8 to 1e-7 of the rewards' size.
# Rewards of a prompt whose difference is at most this share of their size are one reward: of the larger of the two, or
# of the upper quartile of the prompt's, where that is more. Pass `rounding=0.0` where every digit of a reward is meant.
ROUNDING = 1e-6


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
        one_of("smoothing", smoothing, ("posterior", "add_one", "add_half", "clamp", "none"))
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
        if self.smoothing in ("none", "clamp"):
            return np.maximum(k, self.floor if self.smoothing == "clamp" else 0) / m
        a, b = {"posterior": self.prior, "add_one": (1.0, 0.0), "add_half": (0.5, 0.5)}[self.smoothing]
        return (k + a) / (m + a + b)

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

    def log_strict(self, r: ArrayLike) -> Array:
        """Return log F(r) = −a e^{−b r}, shapes as in `strict`."""
        rewards = np.asarray(r, dtype=np.float64)
        shape = self.a.shape + (1,) * (rewards.ndim - self.a.ndim)
        with np.errstate(over="ignore"):
            return -self.a.reshape(shape) * np.exp(-self.b.reshape(shape) * rewards)

    weak, log_weak = strict, log_strict  # a smooth curve has no ties


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
    starts = np.ones(ranked.shape, dtype=bool)
    np.greater(np.diff(ranked), tolerance[..., 1:], out=starts[..., 1:])
    above_lowest = ranked - _at_beginning(ranked, starts)
    steps = np.floor(np.divide(above_lowest, tolerance, out=np.zeros_like(ranked), where=tolerance > 0))
    starts[..., 1:] |= np.diff(steps) > 0
    result = np.empty_like(table)
    np.put_along_axis(result, order, _at_beginning(ranked, starts), axis=-1)
    return result


def _at_beginning(ranked: Array, starts: NDArray[np.bool_]) -> Array:
    """For each entry of a row the value at the last place up to it where something begins."""
    places = np.where(starts, np.arange(ranked.shape[-1]), 0)
    return np.take_along_axis(ranked, np.maximum.accumulate(places, axis=-1), axis=-1)


def begins(ranked: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where, in rewards in order, (..., m), another one than before begins."""
    new = np.ones(ranked.shape, dtype=bool)
    np.not_equal(ranked[..., 1:], ranked[..., :-1], out=new[..., 1:])
    return new


def _tolerance(rewards: Array, size: Array, rounding: float) -> Array:
    return number("rounding", rounding, least=0, below=1) * np.maximum(np.abs(rewards), size)


def _size(ranked: Array) -> Array:
    """Upper quartile of the sizes of the different rewards, (..., 1), from rewards in order, (..., m).

    Neither a response that comes again and again nor one of −1e9 moves it, even if there are but 0 and 1 besides.
    """
    new = begins(ranked)
    sizes = np.sort(np.where(new, np.abs(ranked), np.inf), axis=-1)
    last = np.count_nonzero(new, axis=-1, keepdims=True) - 1
    return np.take_along_axis(sizes, 3 * last // 4, axis=-1)
