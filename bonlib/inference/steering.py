"""Methods that choose while responses are being written: at checkpoints, which go on, and in how many copies."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bonlib.exact import Array


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
