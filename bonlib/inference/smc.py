"""Sequential Monte Carlo: at each checkpoint the responses so far are drawn anew, by how promising they have become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax

from bonlib.checks import number, settle, whole
from bonlib.exact import Array, Outcomes
from bonlib.inference.cases import all_cases
from bonlib.inference.rules import checked_like, register
from bonlib.inference.soft_best_of_n import SoftBestOfN, log_weights, softmax_draw
from bonlib.inference.steering import checked_checkpoints
from bonlib.inference.trees import Tree, one_checkpoint

MOST_POPULATIONS = 20_000  # of beginnings, whose laws are summed


class SmcLaw(NamedTuple):
    """What sequential Monte Carlo does on a tree, exactly.

    Attributes:
        kept: how likely each whole response is kept, shape (A · C,).
        estimated: E[Ẑ 1(it is kept)], shape (A · C,), with Ẑ the product of the mean weights of both steps: whatever
            the twist, Z π_λ, with Z = E[exp(r/λ)]; its sum is E Ẑ = Z.
    """

    kept: Array
    estimated: Array


@dataclass(frozen=True)
class SequentialMonteCarlo:
    """Resample `n` responses at each checkpoint by their weights, and keep one of those that result.

    The twist, a guess at how good a beginning will turn out, is ψ = exp(twist · score / temperature), and a response
    has the weight by which its ψ has grown since the checkpoint before; at the end exp(reward / temperature) takes the
    place of ψ. Without checkpoints it is soft best-of-n; with one survivor it is its blockwise form. It cannot choose
    among responses that were drawn before: what goes on depends on what has been resampled.

    Args:
        n: responses, at least 1.
        temperature: λ > 0 in units of reward.
        checkpoints: numbers of tokens, ascending, after which they are judged.
        survivors: how many are drawn at a checkpoint, each to go on in n / survivors copies; n of them if None.
        twist: how much scores of unfinished responses count; 1 as rewards do, 0 not at all, −1 the wrong way round.

    Raises:
        ValueError: if an argument is out of range.

    Source: Lew et al. 2023 (2306.03081); Zhao et al. 2024 (2404.17546), multinomial resampling.
    """

    n: int
    temperature: float
    checkpoints: tuple[int, ...]
    survivors: int | None = None
    twist: float = 1.0

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
            twist=number("twist", self.twist),
        )

    def go_on(self, scores: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return n places, drawn with replacement by how much each response's ψ has grown, shape (P, n)."""
        assert self.survivors is not None
        gain = log_weights(self.twist * (scores - before), self.temperature)
        drawn = np.stack([softmax_draw(gain, generator) for _ in range(self.survivors)], axis=1)
        return np.repeat(np.sort(drawn, axis=1), self.n // self.survivors, axis=1)

    def pick(self, rewards: Array, before: Array, generator: np.random.Generator) -> NDArray[np.intp]:
        """Return one finished response, drawn by how much its ψ has grown, shape (P,)."""
        return softmax_draw(log_weights(rewards - self.twist * before, self.temperature), generator)

    def tree_law(self, tree: Tree, log_twist: ArrayLike | None = None) -> SmcLaw:
        """Return what it does on a tree with one checkpoint at its fork.

        Given the beginnings that were drawn, those that go on are independent draws from their weights, so what is
        kept has the law of soft best-of-n on what can follow; this is summed over all populations of beginnings.

        Args:
            tree: the world.
            log_twist: log ψ of each beginning, shape (A,); twist · partial reward / λ if None.

        Raises:
            ValueError: if `log_twist` has another shape, or survivors is not n, or there is not one checkpoint.
            TooManyOutcomesError: if there are more than 20,000 populations.
        """
        one_checkpoint(self.checkpoints)
        if self.survivors != self.n:
            raise ValueError(f"survivors is {self.survivors}; the law is that of n survivors, {self.n}: leave it out")
        told = self.twist * tree.partial / self.temperature if log_twist is None else log_twist
        log_psi = checked_like("log_twist", told, tree.probs)
        weight = tree.rewards / self.temperature - log_psi[:, None]
        soft = SoftBestOfN(self.n, 1)  # the temperature is in the weights
        kept, estimated = np.zeros(tree.children.size), np.zeros(tree.children.size)
        for counts, chance in zip(*all_cases(tree.probs, self.n, MOST_POPULATIONS), strict=True):
            if not chance > 0:
                continue
            log_psis = np.log(counts, out=np.full(len(counts), -np.inf), where=counts > 0) + log_psi
            joint = (softmax(log_psis)[:, None] * tree.children).ravel()
            kept += chance * soft.law(Outcomes(joint, weight.ravel()))
            with np.errstate(over="ignore"):  # where E Ẑ is no number any more
                lift = np.exp(
                    logsumexp(log_psis) - np.log(self.n) + weight.ravel(), where=joint > 0, out=np.zeros(joint.shape)
                )
            estimated += chance * joint * lift
        return SmcLaw(kept, estimated)


def blockwise_soft_law(tree: Tree, n: int, temperature: float, log_twist: ArrayLike) -> Array:
    """Return how likely each whole response is under soft best-of-n of beginnings, then of ends, shape (A · C,).

    Args:
        tree: the world.
        n: draws for each block, at least 1.
        temperature: λ > 0 in units of reward.
        log_twist: log ψ of each beginning, shape (A,), by which it is chosen; with `best_twist` the law tends to
            π_λ ∝ π exp(r/λ) as n grows.
    """
    first = SoftBestOfN(n, 1).law(Outcomes(tree.probs, checked_like("log_twist", log_twist, tree.probs)))
    then = SoftBestOfN(n, temperature)
    rows = zip(tree.children, tree.rewards, strict=True)
    return (first[:, None] * np.stack([then.law(Outcomes(p, r)) for p, r in rows])).ravel()


def best_twist(tree: Tree, temperature: float) -> Array:
    """Return log ψ* = log E[exp(r/λ) | beginning], shape (A,).

    Source: Zhao et al. 2024 (2404.17546).
    """
    scale = number("temperature", temperature, above=0)
    return np.asarray(logsumexp(tree.rewards / scale, b=tree.children, axis=1), dtype=np.float64)


register(
    name="smc",
    make=SequentialMonteCarlo,
    label="sequential Monte Carlo",
    knob="temperature",
    grid=(0.1, 0.3, 1.0),
    scale="reward",
    keeps="one of those that resampling left, with probability ∝ exp(gain / λ)",
    costs="tokens of n responses, and a reward call for each at each checkpoint",
    source="Lew et al. 2023",
    place=62,
)
