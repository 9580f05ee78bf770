"""How far texts are apart, for rules that keep what is like the other draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bonlib.checks import shown
from bonlib.exact import Array
from bonlib.inference.rules import checked_like


def word_distances(texts: Any) -> Array:
    """Return the share of words that two texts do not have in common, of those that they have.

    Args:
        texts: shape (..., n); words are what stands between spaces, each counted once, in lower case.

    Returns:
        Shape (..., n, n): 0 for the same words, 1 for none in common.

    Raises:
        ValueError: if something else is among the texts.

    Source: Jaccard's distance.
    """
    from scipy.sparse import csr_array

    table = np.asarray(texts, dtype=object)
    if table.ndim == 0 or not table.size or not all(isinstance(text, str) for text in table.flat):
        raise ValueError(f"texts is {shown(texts)}; it must hold texts, as many for each prompt")
    n = table.shape[-1]
    numbers: dict[str, int] = {}
    words = [[numbers.setdefault(word, len(numbers)) for word in set(text.lower().split())] for text in table.flat]
    lengths = np.array([len(each) for each in words], dtype=np.float64)
    ends = np.append(0, np.cumsum(lengths)).astype(np.intp)
    has = csr_array(
        (np.ones(ends[-1]), np.concatenate([*words, []]).astype(np.intp), ends), (len(words), len(numbers) or 1)
    )
    result = np.empty((len(words) // n, n, n))
    for group, found in enumerate(result):
        part = slice(group * n, group * n + n)
        common = (has[part] @ has[part].T).toarray()
        either = lengths[part, None] + lengths[part] - common
        np.subtract(1, np.divide(common, either, out=np.ones_like(common), where=either > 0), out=found)
    return result.reshape(*table.shape, n)


def checked_distances(distances: ArrayLike, rewards: Array) -> Array:
    """Return distances as float64, (..., n, n), after a check of shape and sign, for rewards (..., n)."""
    table = checked_like("distances", distances, rewards, rewards.shape[-1])
    if not ((table >= 0).all() and (np.diagonal(table, axis1=-2, axis2=-1) == 0).all()):
        raise ValueError("distances has one below 0, or one of a draw to itself that is not 0: repair them")
    return table
