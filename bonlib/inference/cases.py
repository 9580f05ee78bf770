"""All ways in which n draws fall on a few outcomes, for laws that have no other form."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy

from bonlib.exact import Array
from bonlib.inference.rules import TooManyOutcomesError

CASES = 300_000  # up to which they are gone through


def all_cases(probs: Array, n: int, most: int = CASES) -> tuple[NDArray[np.intp], Array]:
    """Return how often each outcome comes among n draws, for all ways, and how likely each way is.

    Args:
        probs: probabilities of the outcomes, shape (K,).
        n: number of draws, a whole number, at least 1.
        most: ways that are gone through at most.

    Returns:
        Counts of shape (ways, K), whose rows sum to n, and probabilities of shape (ways,).

    Raises:
        TooManyOutcomesError: if there are more ways than that, C(n + K − 1, n).
    """
    kinds = len(probs)
    ways = comb(n + kinds - 1, n)
    if ways > most:
        raise TooManyOutcomesError(
            f"outcomes has {kinds} different ones, on which {n} draws fall in more than {most:,} ways: take fewer, or "
            "simulate"
        )
    bars = np.array(list(combinations(range(n + kinds - 1), kinds - 1)), dtype=np.intp).reshape(ways, kinds - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, n + kinds - 1)))
    counts = np.diff(edges, axis=1) - 1
    return counts, np.exp(gammaln(n + 1) - gammaln(counts + 1).sum(axis=1) + xlogy(counts, probs).sum(axis=1))
