"""Sequential Monte Carlo: at each checkpoint the responses so far are drawn anew, by how promising they have become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import number, settle, whole
from bonlib.exact import Array
from bonlib.inference.steering import checked_checkpoints


@dataclass(frozen=True)
class SequentialMonteCarlo:
    """Resample `n` responses at each checkpoint by their weights, and keep one of those that result.

    The twist, a guess at how good a beginning will turn out, is ψ = exp(score / temperature), and a response has the
    weight by which its ψ has grown since the checkpoint before; at the end the reward takes the score's place. Without
    checkpoints it is soft best-of-n; with one survivor it is its blockwise form. It cannot choose among responses that
    were drawn before: what goes on depends on what has been resampled.

    Args:
        n: responses, at least 1.
        temperature: λ > 0 in units of reward.
        checkpoints: numbers of tokens, ascending, after which they are judged.
        survivors: how many are drawn at a checkpoint, each to go on in n / survivors copies; n of them if None.

    Raises:
        ValueError: if an argument is out of range.

    Source: Lew et al. 2023 (2306.03081); Zhao et al. 2024 (2404.17546), multinomial resampling.
    """

    n: int
    temperature: float
    checkpoints: tuple[int, ...]
    survivors: int | None = None

    def __post_init__(self) -> None:
        n = whole("n", self.n, 1)
        survivors = n if self.survivors is None else whole("survivors", self.survivors, 1, n)
        if n % survivors:
            raise ValueError(f"survivors is {survivors}; it must divide n, {n}, so that all get as many copies")
        settle(
            self,
            n=n,
            temperature=number("temperature", self.temperature, above=0),
            checkpoints=checked_checkpoints(self.checkpoints),
            survivors=survivors,
        )

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return n places, drawn with replacement by how much each response's ψ has grown, shape (P, n)."""
        assert self.survivors is not None
        drawn = np.stack([self._drawn(scores, before, generator) for _ in range(self.survivors)], axis=1)
        return np.repeat(np.sort(drawn, axis=1), self.n // self.survivors, axis=1)

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return one finished response, drawn by how much its ψ has grown, shape (P,)."""
        return self._drawn(rewards, before, generator)

    def _drawn(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """One place a row: the largest of log-weights with Gumbel noise is a draw from their softmax."""
        growth = scores - before
        with np.errstate(over="ignore"):
            log_weights = (growth - growth.max(axis=1, keepdims=True)) / self.temperature
        return (log_weights + generator.gumbel(size=scores.shape)).argmax(axis=1)
