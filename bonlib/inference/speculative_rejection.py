"""Speculative rejection: only responses whose beginnings look good are finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import number, one_of, settle, whole
from bonlib.exact import Array
from bonlib.inference.rules import Choice, all_spent, checked_like, checked_rewards, register
from bonlib.inference.steering import Spending, Ties, among_best, checked_checkpoints
from bonlib.inference.trees import Tree, one_checkpoint, survivors_law


@dataclass(frozen=True)
class SpeculativeRejection:
    """Begin `n` responses, give up the worst fraction `reject` of them at each checkpoint, and keep the best that end.

    Args:
        n: responses that begin, at least 1.
        checkpoints: numbers of tokens, ascending, after which those that are left are judged.
        reject: α, the fraction that is given up at each, at least 0 and below 1: of b responses ⌊αb⌋.
        ties: "exact", just so many are given up, ties at random; or "cut", as in the paper, all go on that score as
            much as the last that must, so that where scores tie less is given up, down to nothing.

    Raises:
        ValueError: if an argument is out of range.

    Source: Sun et al. 2024 (2410.20290), where rejection falls due when memory is full: see `memory_model`.
    """

    n: int
    checkpoints: tuple[int, ...]
    reject: float = 0.5
    ties: Ties = "exact"
    needs: ClassVar[tuple[str, ...]] = ("partial",)

    def __post_init__(self) -> None:
        one_of("ties", self.ties, ("exact", "cut"))
        settle(
            self,
            n=whole("n", self.n, 1),
            checkpoints=checked_checkpoints(self.checkpoints),
            reject=number("reject", self.reject, least=0, below=1),
        )

    def kept_of(self, count: ArrayLike) -> NDArray[np.intp]:
        """Return how many of `count` responses go on where none tie, of any shape."""
        many = np.asarray(count, dtype=np.intp)
        given_up = np.floor(self.reject * many + 1e-9).astype(np.intp)  # 0.29 · 100 comes out below 29
        return np.maximum(many - given_up, 1)

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the places of those of B responses that go on, shape (P, B').

        Raises:
            ValueError: if `ties` is "cut", and not as many go on of each prompt.
        """
        going = self._go_on(scores, np.full(len(scores), scores.shape[1]), generator)
        many = going.sum(axis=1)
        if (many != many[0]).any():
            raise ValueError(
                f"ties is 'cut', by which {many.min()} to {many.max()} responses of a prompt go on: take 'exact', or "
                "one prompt at a time"
            )
        return np.nonzero(going)[1].reshape(len(scores), many[0])

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return the first of the best responses, shape (P,)."""
        return rewards.argmax(axis=1)

    def alive(self, partial: ArrayLike, *, seed: int = 0) -> NDArray[np.bool_]:
        """Return which draws go on after each checkpoint, shape (..., n, checkpoints).

        Args:
            partial: their rewards so far at each checkpoint, shape (..., n, checkpoints); of a draw that has ended, its
                reward.
            seed: of what is random, the ties.

        Raises:
            ValueError: if `partial` has another shape, or a number in it is not finite.
        """
        table = np.asarray(partial, dtype=np.float64)
        if table.ndim < 2 or table.shape[-2:] != (self.n, len(self.checkpoints)) or not np.isfinite(table).all():
            wanted = f"(..., {self.n}, {len(self.checkpoints)}), a finite number a draw and checkpoint"
            raise ValueError(f"partial has shape {table.shape} or a number that is not finite; it must be {wanted}")
        scores = table.reshape(math.prod(table.shape[:-2]), *table.shape[-2:])
        generator = np.random.default_rng(whole("seed", seed))
        going = np.ones(scores.shape, dtype=np.bool_)
        left = np.ones(scores.shape[:2], dtype=np.bool_)
        for place in range(len(self.checkpoints)):
            left = self._go_on(np.where(left, scores[..., place], -np.inf), left.sum(axis=1), generator)
            going[..., place] = left
        return going.reshape(table.shape)

    def _go_on(self, scores: Array, count: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.bool_]:
        """Which go on of each row's `count` responses; the others of the row have a score of −inf."""
        return among_best(scores, self.kept_of(count), generator if self.ties == "exact" else None)

    def choose(self, rewards: ArrayLike, partial: ArrayLike, *, seed: int = 0) -> Choice:
        """Return the best of those draws that were not given up, the first of them where several are.

        Args:
            rewards: of the finished draws, shape (..., n); those of draws that were given up play no part.
            partial: their rewards at the checkpoints, shape (..., n, checkpoints).
            seed: of what is random, the ties at a checkpoint.

        Raises:
            ValueError: if a shape is wrong or a number is not finite.
        """
        table = checked_rewards(rewards, self.n)
        going = self.alive(checked_like("partial", partial, table, len(self.checkpoints)), seed=seed)
        ended = going[..., -1] if self.checkpoints else np.ones(table.shape, dtype=np.bool_)
        return Choice(np.where(ended, table, -np.inf).argmax(axis=-1), all_spent(table))

    def spending(self, lengths: ArrayLike, partial: ArrayLike, *, seed: int = 0) -> Spending:
        """Return what `choose` would have taken, had the draws been written under it.

        Args:
            lengths: of the finished draws in tokens, shape (..., n).
            partial: their rewards at the checkpoints, shape (..., n, checkpoints).
            seed: as in `choose`.

        Returns:
            Tokens up to where each draw was given up, and reward calls: one for each draw and checkpoint that it
            reaches unfinished, and one for each that ends.

        Raises:
            ValueError: if a shape is wrong or a number is not finite.
        """
        going = self.alive(partial, seed=seed)
        all_begin = np.ones(going.shape[:-1])
        total = checked_like("lengths", lengths, all_begin)
        begun = np.concatenate([all_begin[..., None] > 0, going], axis=-1)
        written = np.minimum(total[..., None], np.array([*self.checkpoints, np.inf]))
        steps = np.diff(written, prepend=0.0, axis=-1)
        unfinished = begun[..., :-1] & (total[..., None] > np.array(self.checkpoints))
        ended = (begun & (written == total[..., None])).any(axis=-1)
        calls = unfinished.sum(axis=(-2, -1)) + ended.sum(axis=-1)
        return Spending((steps * begun).sum(axis=(-2, -1)), calls.astype(np.float64))

    def tree_law(self, tree: Tree) -> Array:
        """Return how likely each whole response of a tree is kept, shape (A · C,), with one checkpoint at its fork."""
        one_checkpoint(self.checkpoints)
        return survivors_law(tree, self.n, int(self.kept_of(self.n)), self.ties)


class MemoryModel(NamedTuple):
    """What speculative rejection takes where responses are given up whenever the memory is full.

    Attributes:
        fills: lengths at which the memory is full, in tokens a response.
        tokens: that are drawn.
        steps: of decoding.
        best_of_n_tokens: of best-of-n from as many beginnings.
        best_of_n_steps: of it, if it decodes as many at once as fit when they are finished.
    """

    fills: Array
    tokens: float
    steps: float
    best_of_n_tokens: float
    best_of_n_steps: float

    @property
    def rejections(self) -> int:
        """How many times some are given up."""
        return len(self.fills)


def memory_model(memory: float, begun: float, reject: float, length: float) -> MemoryModel:
    """Return the cost where `begun` responses of equal length are written, and memory decides when some are given up.

    Numbers of responses are taken as real. Reward calls for unfinished responses come on top.

    Args:
        memory: tokens that fit.
        begun: responses that begin, at most `memory`.
        reject: α, the fraction given up whenever the memory is full, above 0 and below 1.
        length: of a response in tokens, at most `memory`.

    Raises:
        ValueError: if an argument is out of range.

    Source: derived for the scheme of Sun et al. 2024 (2410.20290).
    """
    memory = number("memory", memory, above=0)
    begun = number("begun", begun, above=0, most=memory)
    reject = number("reject", reject, above=0, below=1)
    length = number("length", length, above=0, most=memory)
    many = max(0, math.ceil(math.log(length * begun / memory) / -math.log1p(-reject)))
    fills = memory / begun * (1 - reject) ** -np.arange(many, dtype=np.float64)
    left = begun * (1 - reject) ** many
    tokens = memory * (1 + reject * (many - 1)) + left * (length - fills[-1]) if many else begun * length
    return MemoryModel(fills, tokens, length, begun * length, max(length, begun * length**2 / memory))


register(
    name="speculative",
    make=SpeculativeRejection,
    label="speculative rejection",
    knob="reject",
    grid=(0.25, 0.5, 0.75),
    keeps="the best of those whose beginnings were never among the worst α",
    costs="tokens of those left at each checkpoint, and a reward call for each of them",
    source="Sun et al. 2024",
    place=60,
)
