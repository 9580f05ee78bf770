"""Votes: the draw that is kept has the answer that most draws give, or that weighs most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from bonlib.answers import majority_law
from bonlib.cdf import begins
from bonlib.checks import number, settle, whole
from bonlib.exact import Array, Outcomes
from bonlib.inference.cases import all_cases
from bonlib.inference.rules import Choice, OfN, all_spent, checked_rewards, register
from bonlib.inference.soft_best_of_n import log_weights

Codes = NDArray[np.intp]


@dataclass(frozen=True)
class MajorityVote(OfN):
    """Of `n` draws keep the first that has the answer of most; ties between answers are broken at random.

    A draw whose answer is None does not vote. If none votes, the first is kept.

    Args:
        n: draws to choose among, a whole number, at least 1.

    Raises:
        ValueError: if `n` is out of range.

    Source: Wang et al. 2023 (self-consistency).
    """

    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def choose(self, rewards: ArrayLike, *, answers: Any, seed: int = 0) -> Choice:
        """Return what is kept of draws with rewards, which do not matter, and answers (..., n)."""
        table = checked_rewards(rewards, self.n)
        return _elected(table, _codes(answers, table.shape), np.ones_like(table), seed)

    def law(self, outcomes: Outcomes, answers: Any) -> Array:
        """Return how likely each outcome is kept, given its answer, (K,), in closed form, shape (K,)."""
        codes = _codes(answers, outcomes.probs.shape)
        votes = codes >= 0
        masses = np.bincount(codes[votes], outcomes.probs[votes], codes.max(initial=-1) + 1).astype(np.float64)
        silent = float(outcomes.probs[~votes].sum())
        wins = np.append(majority_law(masses, self.n, silent=silent), silent**self.n)
        # The first drawn of an answer is any of its outcomes, by the reference. Code −1 stands for silence, at the end.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(outcomes.probs > 0, outcomes.probs * (wins / np.append(masses, silent))[codes], 0.0)


@dataclass(frozen=True)
class WeightedVote(OfN):
    """Of `n` draws keep the first that has the answer with the largest sum of weights.

    Ties and draws without an answer are as in `MajorityVote`.

    Args:
        n: draws to choose among, a whole number, at least 1.
        temperature: λ > 0 of the weights e^{reward/λ}: towards infinity it is the majority vote, towards 0 the answer
            of the best draw. None for the rewards themselves, which must then not be negative.

    Raises:
        ValueError: if `n` or `temperature` is out of range.

    Source: Wang et al. 2023, Table 1 (weighted sum); the weights are those of soft best-of-n.
    """

    temperature: float | None = None
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None:
            what = "leave it out to add up the rewards themselves, else it"
            settle(self, temperature=number("temperature", self.temperature, above=0, what=what))

    def choose(self, rewards: ArrayLike, *, answers: Any, seed: int = 0) -> Choice:
        """Return what is kept of draws with rewards and answers (..., n)."""
        table = checked_rewards(rewards, self.n)
        codes = _codes(answers, table.shape)
        return _elected(table, codes, self._weights(_of_voters(table, codes)), seed)

    def law(self, outcomes: Outcomes, answers: Any) -> Array:
        """Return how likely each outcome is kept, given its answer, (K,), by going through all cases, shape (K,).

        Raises:
            TooManyOutcomesError: if there are more than 300,000 of them: C(n + k − 1, n) for k different pairs of
                answer and reward.
        """
        voters = _of_voters(outcomes.rewards, _codes(answers, outcomes.probs.shape))
        return _law_by_cases(
            Outcomes(outcomes.probs, voters),
            answers,
            self.n,
            lambda rewards, counts: self._weights(np.where(counts > 0, rewards, rewards.min())),
        )

    def _weights(self, rewards: Array) -> Array:
        if self.temperature is not None:
            return np.exp(log_weights(rewards, self.temperature))
        if (rewards < 0).any():
            raise ValueError(f"rewards holds {rewards.min():.4g}; a sum needs 0 or more: give a temperature")
        return rewards


@dataclass(frozen=True)
class BordaVote(OfN):
    """Of `n` draws keep the first that has the answer with the most points, (n − k + 1)^power for the k-th best draw.

    Draws of equal reward share the mean of their places. Ties between answers and draws without an answer are as in
    `MajorityVote`.

    Args:
        n: draws to choose among, a whole number, at least 1.
        power: q, at least 0: at 0 it is the majority vote, towards infinity the answer of the best draw.

    Raises:
        ValueError: if `n` or `power` is out of range.

    Source: Kang et al. 2025, with self-certainty as the reward.
    """

    power: float
    needs: ClassVar[tuple[str, ...]] = ("answers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, power=number("power", self.power, least=0))

    def choose(self, rewards: ArrayLike, *, answers: Any, seed: int = 0) -> Choice:
        """Return what is kept of draws with rewards and answers (..., n)."""
        table = checked_rewards(rewards, self.n)
        return _elected(table, _codes(answers, table.shape), (rankdata(table, axis=-1) / self.n) ** self.power, seed)

    def law(self, outcomes: Outcomes, answers: Any) -> Array:
        """Return how likely each outcome is kept, given its answer, (K,), as `WeightedVote.law` does."""

        def points(rewards: Array, counts: Codes) -> Array:
            upto, below = (
                counts @ made.astype(int) for made in (rewards[:, None] <= rewards, rewards[:, None] < rewards)
            )
            return np.asarray(((upto + below + 1) / (2 * self.n)) ** self.power)

        return _law_by_cases(outcomes, answers, self.n, points)


def _of_voters(rewards: Array, codes: Codes) -> Array:
    """Rewards (..., n), the lowest for who does not vote: theirs would leave the others no weight to differ in."""
    return np.where(codes >= 0, rewards, rewards.min(axis=-1, keepdims=True))


def _codes(answers: Any, shape: tuple[int, ...]) -> Codes:
    """A number from 0 for each answer, −1 for None, in the shape of the rewards."""
    import pandas as pd

    table = np.asarray(answers)
    if table.shape != shape:
        raise ValueError(f"answers has shape {table.shape}; it must be {shape}, None for no answer")
    return np.asarray(pd.factorize(table.ravel())[0].reshape(shape), dtype=np.intp)


def _elected(rewards: Array, codes: Codes, weights: Array, seed: int) -> Choice:
    """The first draw of the answer with the largest sum of weights, all of shape (..., n)."""
    n = rewards.shape[-1]
    codes, weights = codes.reshape(-1, n), weights.reshape(-1, n)
    # Small numbers are sorted ten times faster.
    narrow = codes.astype(np.min_scalar_type(-2 - int(codes.max(initial=0))))
    order = np.argsort(narrow, axis=-1, kind="stable")
    ranked = np.take_along_axis(codes, order, axis=-1)
    answer = np.flatnonzero(begins(ranked))  # where each one's draws begin
    sums = np.add.reduceat(np.take_along_axis(weights, order, axis=-1).ravel(), answer)
    sums[ranked.ravel()[answer] < 0] = -1.0  # who says nothing wins only where nobody says anything
    row = np.flatnonzero(answer % n == 0)
    most = np.repeat(np.maximum.reduceat(sums, row), np.diff(np.append(row, len(sums))))
    lot = np.where(_leads(sums, most), np.random.default_rng(whole("seed", seed)).random(len(sums)), -1.0)
    luckiest = np.repeat(np.maximum.reduceat(lot, row), np.diff(np.append(row, len(sums))))
    kept = order.ravel()[answer[lot == luckiest]]
    return Choice(kept.reshape(rewards.shape[:-1]), all_spent(rewards))


def _leads(sums: Array, most: Array) -> NDArray[np.bool_]:
    """Which sums are the largest; by rounding, equal ones differ."""
    return np.asarray(sums >= most - 1e-12 * np.abs(most))


def _law_by_cases(outcomes: Outcomes, answers: Any, n: int, weigh: Callable[[Array, Codes], Array]) -> Array:
    """The law of a vote from all ways in which n draws fall on K outcomes.

    Args:
        outcomes: K of them.
        answers: (K,).
        n: number of draws.
        weigh: from rewards (k,) and counts (S, k), the weights of a draw of each, (k,) or (S, k).
    """
    codes = _codes(answers, outcomes.probs.shape)
    pairs, place = np.unique(np.stack([codes, outcomes.rewards]), axis=1, return_inverse=True)
    place = place.reshape(-1)
    probs = np.asarray(np.bincount(place, outcomes.probs), dtype=np.float64)
    answer = pairs[0].astype(np.intp)
    counts, chance = all_cases(probs, n)
    of_answer = np.equal.outer(answer, np.unique(answer)).astype(np.float64)
    came = counts @ of_answer
    sums = np.where(came > 0, (counts * weigh(pairs[1], counts)) @ of_answer, -np.inf)
    if answer.min() < 0:
        sums[:, 0] = np.where(came[:, 0] > 0, -1.0, -np.inf)
    leads = _leads(sums, sums.max(axis=1, keepdims=True))
    share = np.divide(leads, came * leads.sum(axis=1, keepdims=True), out=np.zeros_like(sums), where=leads)
    kept = (chance[:, None] * counts * (share @ of_answer.T)).sum(axis=0)
    return np.divide(outcomes.probs * kept[place], probs[place], out=np.zeros(len(outcomes)), where=probs[place] > 0)


register(
    name="majority",
    make=MajorityVote,
    label="majority vote",
    keeps="the first with the answer of most",
    costs="n draws, no reward",
    source="Wang et al. 2023",
    place=80,
)
register(
    name="weighted-vote",
    make=WeightedVote,
    label="weighted vote",
    knob="temperature",
    grid=(0.1, 0.3, 1.0),
    scale="reward",
    keeps="the first with the answer of the largest Σ exp(reward / λ)",
    costs="n draws and rewards",
    source="Wang et al. 2023",
    place=81,
)
register(
    name="borda",
    make=BordaVote,
    label="Borda vote",
    knob="power",
    grid=(0.5, 1.0, 2.0),
    keeps="the first with the answer of the most points by rank",
    costs="n draws and rewards",
    source="Kang et al. 2025",
    place=82,
)
