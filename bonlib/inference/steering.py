"""Methods that choose while responses are being written: at checkpoints, which go on, and in how many copies."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import shown, whole
from bonlib.exact import Array

Ties = Literal["exact", "cut"]  # just so many go on, ties at random; or all that tie with the last of them


class Steering(Protocol):
    """A method that chooses while responses are being written.

    Attributes:
        n: responses that begin.
        checkpoints: numbers of tokens, ascending, after which the responses so far are judged; one that has ended is
            judged as it is, and costs no tokens as long as it stays.
    """

    @property
    def n(self) -> int:
        """Responses that begin."""
        ...

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Numbers of tokens after which they are judged."""
        ...

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return which of B responses of each of P prompts go on, in how many copies.

        Args:
            scores: of the responses so far, shape (P, B).
            before: the scores that each had at the checkpoint before, shape (P, B); zeros at the first.
            generator: of what is random.

        Returns:
            Places, shape (P, B'), ascending, a place twice for two copies.
        """
        ...

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return which of the finished responses is kept, shape (P,), from their rewards (P, B); `before` likewise."""
        ...


class Spending(NamedTuple):
    """What writing responses takes, of any one shape.

    Attributes:
        tokens: that are drawn.
        calls: of the reward model, for unfinished responses and for finished ones.
    """

    tokens: Array
    calls: Array


def checked_checkpoints(values: Iterable[object]) -> tuple[int, ...]:
    """Return numbers of tokens, or raise a ValueError if they are not whole, at least 1 and ascending."""
    try:
        listed = list(values)
    except TypeError:
        raise ValueError(f"checkpoints is {shown(values)}; it must hold numbers of tokens, such as (8, 16)") from None
    checkpoints = tuple(whole(f"checkpoints[{place}]", value, 1) for place, value in enumerate(listed))
    if any(later <= earlier for earlier, later in pairwise(checkpoints)):
        raise ValueError(f"checkpoints is {checkpoints}; numbers of tokens must ascend: sort them and drop repeats")
    return checkpoints


def best_places(scores: Array, count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Return the places of the best `count` of B scores, ascending, shape (P, count); ties are broken at random."""
    return np.nonzero(among_best(scores, np.full(len(scores), count), generator))[1].reshape(len(scores), count)


def among_best(
    scores: Array, count: NDArray[np.intp], generator: np.random.Generator | None = None
) -> NDArray[np.bool_]:
    """Return whether each of B scores is among the best of its row.

    Args:
        scores: shape (P, B).
        count: how many are kept of each row, from 1 to B, shape (P,).
        generator: breaks ties, so that just so many are kept; None to keep all that tie with the last.

    Returns:
        Shape (P, B).
    """
    cutoff = np.take_along_axis(np.sort(scores, axis=1), scores.shape[1] - count[:, None], axis=1)
    kept = scores >= cutoff
    crowded = np.flatnonzero(kept.sum(axis=1) > count)
    if generator is not None and len(crowded):
        above, tied = (scores > cutoff)[crowded], (scores == cutoff)[crowded]
        lots = np.where(tied, generator.random(tied.shape), 2.0)  # the lowest win
        room = count[crowded] - above.sum(axis=1)
        kept[crowded] = above | (lots <= np.take_along_axis(np.sort(lots, axis=1), room[:, None] - 1, axis=1))
    return kept
