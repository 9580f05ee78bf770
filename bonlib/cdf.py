"""What a finite sample of rewards says about best-of-n."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


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
    rewards = np.asarray(samples, dtype=np.float64)
    if rewards.ndim == 0 or not np.isfinite(rewards).all():
        raise ValueError("samples must be an array of finite rewards: drop or repair the responses without one")
    m = rewards.shape[-1]
    if not 1 <= n <= m or n != int(n):
        raise ValueError(f"n is {n}; with {m} samples a prompt it must be a whole number from 1 to {m}")
    rewards = np.sort(rewards, axis=-1)
    value = rewards @ _subset_weights(m, int(n))
    if n == m:
        return Estimate(value, np.full_like(value, np.nan))
    # Leaving out sample j keeps the weights of those below it and shifts those above it down by one place.
    weights = _subset_weights(m - 1, int(n))
    below = np.cumsum(rewards[..., :-1] * weights, axis=-1)
    above = np.cumsum((rewards[..., 1:] * weights)[..., ::-1], axis=-1)[..., ::-1]
    zero = np.zeros_like(value)[..., None]
    left_out = np.concatenate([zero, below], axis=-1) + np.concatenate([above, zero], axis=-1)
    return Estimate(value, np.sqrt((m - 1) * np.var(left_out, axis=-1)))


def _subset_weights(m: int, n: int) -> Array:
    """The probability that the i-th smallest of m is the largest of a random n-subset, i = 1 … m."""
    ranks = np.arange(m, n, -1)
    from_top = (n / m) * np.concatenate([[1.0], np.cumprod((ranks - n) / (ranks - 1))])
    return np.concatenate([np.zeros(n - 1), from_top[::-1]])
