"""TreeBoN: at each checkpoint the best beginnings go on, in several copies, and the best response is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import number, settle, whole
from bonlib.exact import Array
from bonlib.inference.rules import register
from bonlib.inference.steering import Spending, best_places, checked_checkpoints
from bonlib.inference.trees import Tree, one_checkpoint, survivors_law


@dataclass(frozen=True)
class TreeBestOfN:
    """Of `n` beginnings the best `survivors` go on in `children` copies each, and so on; the best response is kept.

    With one survivor it is blockwise best-of-n, with one child speculative rejection. It cannot choose among responses
    that were drawn before: what goes on depends on what has been rejected.

    Args:
        n: responses that begin, at least 1.
        survivors: m, how many go on at a checkpoint, from 1 to n; ties are broken at random.
        children: k, copies of each that go on, each of which continues in a way of its own, at least 1; with k = n/m
            it costs as many tokens as best-of-n.
        checkpoints: numbers of tokens, ascending, after which they are judged.

    Raises:
        ValueError: if an argument is out of range.

    Source: Qiu et al. 2025 (2410.16033), with the rewards of unfinished responses as scores.
    """

    n: int
    survivors: int
    children: int
    checkpoints: tuple[int, ...]

    def __post_init__(self) -> None:
        n = whole("n", self.n, 1)
        settle(
            self,
            n=n,
            survivors=whole("survivors", self.survivors, 1, n),
            children=whole("children", self.children, 1),
            checkpoints=checked_checkpoints(self.checkpoints),
        )

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the places of the best of B responses, each `children` times, shape (P, survivors · children)."""
        return np.repeat(best_places(scores, self.survivors, generator), self.children, axis=1)

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the first of the best responses, shape (P,)."""
        return rewards.argmax(axis=1)

    def spending(self, length: float) -> Spending:
        """Return what it takes if all responses are of `length` tokens, beyond the last checkpoint."""
        length = number("length", length, above=max(self.checkpoints, default=0))
        steps = np.diff([0, *self.checkpoints, length])
        written = np.array([self.n] + [self.survivors * self.children] * len(self.checkpoints))
        return Spending(np.asarray(written @ steps), np.asarray(float(written.sum())))

    def tree_law(self, tree: Tree) -> Array:
        """Return how likely each whole response of a tree is kept, shape (A · C,), with one checkpoint at its fork.

        Siblings compete with each other first: it is speculative rejection where a beginning goes on with its best end.
        """
        one_checkpoint(self.checkpoints)
        return survivors_law(tree.best_children(self.children), self.n, self.survivors)


register(
    name="tree",
    make=TreeBestOfN,
    label="TreeBoN",
    knob="survivors",
    keeps="the best end of the best beginnings",
    costs="n beginnings, and at each checkpoint m · k that go on; a reward call for each of them",
    source="Qiu et al. 2025",
    place=61,
)
