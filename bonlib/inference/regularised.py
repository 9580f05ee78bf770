"""Regularised best-of-n: the reward counts less where a draw is unlike the others, or unlikely.

MBR-BoN, and SRBoN with the Wasserstein distance and with the KL, on the draws and on the set of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from bonlib.checks import number, settle, shown, whole
from bonlib.exact import Array, Outcomes
from bonlib.inference.cases import all_cases
from bonlib.inference.distances import checked_distances
from bonlib.inference.rules import Choice, OfN, TooManyOutcomesError, all_spent, checked_like, checked_rewards, register
from bonlib.inference.soft_best_of_n import log_weights, soft_best_of, softmax_draw

TIE = 1e-10  # of the size of the scores: what rounding tells apart is equal
_MOST_SET = 16  # outcomes up to which all sets of them are gone through


@dataclass(frozen=True)
class _Regularised(OfN):
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, beta=number("beta", self.beta, above=0, what="its limit 0 is best-of-n, and it"))


@dataclass(frozen=True)
class MbrBestOfN(_Regularised):
    """Of `n` draws keep the one with the largest reward − β · mean distance to all n.

    With n <= 2 it is best-of-n, as for β towards 0, but for ties; towards infinity it keeps the medoid.

    Args:
        n: draws to choose among, a whole number, at least 1.
        beta: β > 0 in units of reward a distance.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Jinnai et al. 2025 (MBR-BoN; the mean distance is the Wasserstein distance to the draws).
    """

    needs: ClassVar[tuple[str, ...]] = ("distances",)

    def choose(self, rewards: ArrayLike, *, distances: ArrayLike, seed: int = 0) -> Choice:
        """Return the first of the best of draws with rewards (..., n) and distances (..., n, n); nothing is random."""
        table = checked_rewards(rewards, self.n)
        apart = checked_distances(distances, table)
        return Choice(_leads(_below_best(table) - self.beta * apart.mean(axis=-1)).argmax(axis=-1), all_spent(table))

    def law(self, outcomes: Outcomes, distances: ArrayLike) -> Array:
        """Return how likely each outcome is kept, given the distances between them, (K, K), shape (K,).

        Raises:
            TooManyOutcomesError: if the draws fall on the outcomes in more ways than can be gone through.
        """
        apart = checked_distances(distances, outcomes.rewards)
        counts, chance = all_cases(outcomes.probs, self.n)
        rewards = _below_best(np.where(counts > 0, outcomes.rewards, -np.inf))
        first = counts * _leads(rewards - self.beta / self.n * (counts @ apart.T))
        return chance @ (first / first.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class WassersteinBestOfN(_Regularised):
    """Of `n` draws take a random one, and keep the one with the largest reward − β · distance to it.

    This is a draw from the distribution over the n with the largest mean reward − β · Wasserstein distance to them.
    Towards β = 0 it is best-of-n, but for ties; towards infinity random-of-n.

    Args:
        n: draws to choose among, a whole number, at least 1.
        beta: β > 0 in units of reward a distance.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Ichihara et al. 2025 (SRBoN with the Wasserstein distance); that it falls into one choice a draw, and its
        law, are derived here.
    """

    needs: ClassVar[tuple[str, ...]] = ("distances",)

    def choose(self, rewards: ArrayLike, *, distances: ArrayLike, seed: int = 0) -> Choice:
        """Return one of draws with rewards (..., n) and distances (..., n, n), at random."""
        table = checked_rewards(rewards, self.n)
        apart = checked_distances(distances, table)
        centre = np.random.default_rng(whole("seed", seed)).integers(self.n, size=table.shape[:-1])
        near = np.take_along_axis(apart, centre[..., None, None], axis=-1)[..., 0]
        return Choice(_leads(_below_best(table) - self.beta * near).argmax(axis=-1), all_spent(table))

    def law(self, outcomes: Outcomes, distances: ArrayLike) -> Array:
        """Return how likely each outcome is kept, given the distances between them, (K, K), shape (K,)."""
        possible = np.flatnonzero(outcomes.probs)
        apart = checked_distances(distances, outcomes.rewards)[np.ix_(possible, possible)]
        probs, rewards, law = outcomes.probs[possible], _below_best(outcomes.rewards[possible]), np.zeros(len(outcomes))
        for centre, chance in enumerate(probs):
            law[possible] += chance * _best_with(probs, rewards - self.beta * apart[:, centre], centre, self.n)
        return law


@dataclass(frozen=True)
class KlBestOfN(_Regularised):
    """Of `n` draws keep one with probability ∝ π e^{reward/β}.

    Responses that the reference likes count twice: as often as they come, and by π. So as n grows it nears
    π² e^{reward/β}, not the optimum of KL-regularised RL, as `KlBestOfSet` and `SoftBestOfN` do.

    Args:
        n: draws to choose among, a whole number, at least 1.
        beta: β > 0, the KL coefficient, in units of reward.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Ichihara et al. 2025 (SRBoN with the KL); the law is derived here.
    """

    needs: ClassVar[tuple[str, ...]] = ("log_probs",)

    def choose(self, rewards: ArrayLike, *, log_probs: ArrayLike, seed: int = 0) -> Choice:
        """Return one of draws with rewards and log-probabilities (..., n), at random."""
        table = checked_rewards(rewards, self.n)
        scores = log_weights(table, self.beta) + checked_like("log_probs", log_probs, table)
        return Choice(softmax_draw(scores, np.random.default_rng(whole("seed", seed))), all_spent(table))

    def law(self, outcomes: Outcomes, log_probs: ArrayLike | None = None) -> Array:
        """Return how likely each outcome is kept, shape (K,); `log_probs` if they are not those of the outcomes."""
        rewards = outcomes.rewards - outcomes.rewards[outcomes.probs > 0].max()
        scores = rewards + self.beta * _log_probs(outcomes, log_probs)
        return soft_best_of(Outcomes(outcomes.probs, scores), self.n, self.beta)


@dataclass(frozen=True)
class KlBestOfSet(_Regularised):
    """Of the different responses among `n` draws keep one with probability ∝ π e^{reward/β}.

    It is the distribution over them with the largest mean reward − β KL to π; as n grows it nears that over all.

    Args:
        n: draws to choose among, a whole number, at least 1.
        beta: β > 0, the KL coefficient, in units of reward.

    Raises:
        ValueError: if `n` or `beta` is out of range.

    Source: Ichihara et al. 2025 (SRBoN with the KL); the law is derived here.
    """

    needs: ClassVar[tuple[str, ...]] = ("log_probs", "responses")

    def choose(self, rewards: ArrayLike, *, log_probs: ArrayLike, responses: Any, seed: int = 0) -> Choice:
        """Return one of draws with rewards, log-probabilities and responses (..., n), at random."""
        table = checked_rewards(rewards, self.n)
        scores = log_weights(table, self.beta) + checked_like("log_probs", log_probs, table)
        first = np.where(_first_seen(responses, table.shape), scores, -np.inf)
        return Choice(softmax_draw(first, np.random.default_rng(whole("seed", seed))), all_spent(table))

    def law(self, outcomes: Outcomes, log_probs: ArrayLike | None = None) -> Array:
        """Return how likely each outcome is kept, shape (K,); `log_probs` if they are not those of the outcomes.

        Raises:
            TooManyOutcomesError: if there are more than 16 that can come.
        """
        possible = np.flatnonzero(outcomes.probs)
        if len(possible) > _MOST_SET:
            raise TooManyOutcomesError(
                f"outcomes has {len(possible)} that can come; this law goes through all sets of at most {_MOST_SET}: "
                "take fewer, or simulate"
            )
        members = np.arange(2 ** len(possible))[:, None] >> np.arange(len(possible)) & 1 == 1
        rewards = np.broadcast_to(outcomes.rewards[possible], members.shape)
        likely = _log_probs(outcomes, log_probs)[possible]
        # The chance that nothing else is drawn, then that nothing of it is missing, one outcome at a time.
        drawn = (members @ outcomes.probs[possible]) ** self.n
        for place in range(len(possible)):
            halves = drawn.reshape(-1, 2, 2**place)
            halves[:, 1] -= halves[:, 0]
        best = np.max(rewards, axis=1, keepdims=True, where=members, initial=-np.inf)
        with np.errstate(over="ignore"):
            scores = np.where(members, (rewards - best) / self.beta + likely, -np.inf)
        law = np.zeros(len(outcomes))
        law[possible] = drawn[1:] @ softmax(scores[1:], axis=1)
        return law


def _below_best(rewards: Array) -> Array:
    """Rewards (..., n) less the best: what all have in common is to cost no digits, nor to make more of them equal."""
    return np.asarray(rewards - rewards.max(axis=-1, keepdims=True))


def _leads(scores: Array) -> NDArray[np.bool_]:
    """Which scores are the largest; by rounding, equal ones differ."""
    size = np.max(np.abs(scores), axis=-1, keepdims=True, where=np.isfinite(scores), initial=0.0)
    return np.asarray(scores >= scores.max(axis=-1, keepdims=True) - TIE * size)


def _best_with(probs: Array, scores: Array, centre: int, n: int) -> Array:
    """The law of the first of the best by score of n draws, one of which, at a random place, is the centre."""
    order = np.argsort(scores)
    steps = np.diff(scores[order]) > TIE * np.abs(scores).max()
    rung = np.empty(len(scores), dtype=np.intp)
    rung[order] = np.append(0, np.cumsum(steps))
    mass = np.bincount(rung, probs)
    upto = np.cumsum(mass)
    own = rung[centre]
    below = upto[own] - mass[own]
    # The centre itself is kept if it is the first of its rung, of which there are k among the n − 1 others: 1/(k + 1).
    itself = (upto[own] ** n - below**n) / (n * mass[own])
    wins = upto ** (n - 1) - np.append(0, upto[:-1]) ** (n - 1)
    wins[:own], wins[own] = 0.0, upto[own] ** (n - 1) - itself
    law = probs * wins[rung] / mass[rung]
    law[centre] += itself
    return np.asarray(law)


def _log_probs(outcomes: Outcomes, log_probs: ArrayLike | None) -> Array:
    if log_probs is None:
        return np.where(outcomes.probs > 0, outcomes.log_probs, 0.0)
    return checked_like("log_probs", log_probs, outcomes.rewards)


def _first_seen(responses: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which draws are the first of their response, shape (..., n)."""
    import pandas as pd

    table = np.asarray(responses)
    if table.shape != shape:
        raise ValueError(f"responses has shape {shown(table.shape)}; it must be {shape}")
    codes = np.asarray(pd.factorize(table.ravel())[0]).reshape(shape)
    order = np.argsort(codes, axis=-1, kind="stable")
    first = np.ones(shape, dtype=bool)
    first[..., 1:] = np.diff(np.take_along_axis(codes, order, axis=-1), axis=-1) != 0
    result = np.empty_like(first)
    np.put_along_axis(result, order, first, axis=-1)
    return result


register(
    name="mbr",
    make=MbrBestOfN,
    label="MBR best-of-n",
    knob="beta",
    grid=(0.3, 1.0, 3.0),
    scale="reward",
    keeps="the best of reward − β · mean distance",
    costs="n draws and rewards, n² distances",
    source="Jinnai et al. 2025",
    place=50,
)
register(
    name="wasserstein",
    make=WassersteinBestOfN,
    label="SRBoN by distance",
    knob="beta",
    grid=(0.3, 1.0, 3.0),
    scale="reward",
    keeps="the best of reward − β · distance to a random draw",
    costs="n draws and rewards, n distances",
    source="Ichihara et al. 2025",
    place=51,
)
register(
    name="kl-set",
    make=KlBestOfSet,
    label="SRBoN by KL, on the set",
    knob="beta",
    grid=(0.03, 0.1, 0.3, 1.0),
    scale="reward",
    keeps="one with probability ∝ π exp(reward / β), repeats once",
    costs="n draws, rewards and log-probabilities",
    source="Ichihara et al. 2025",
    place=52,
)
register(
    name="kl",
    make=KlBestOfN,
    label="SRBoN by KL, on the draws",
    knob="beta",
    grid=(0.03, 0.1, 0.3, 1.0),
    scale="reward",
    keeps="one with probability ∝ π exp(reward / β)",
    costs="n draws, rewards and log-probabilities",
    source="Ichihara et al. 2025",
    place=53,
)
