"""Statements about best-of-n as executable claims, tried on random cases: notebooks 03 and 04 list the papers'.

A claim says "left ≤ right" or "left = right" for every case; what is kept is how far it is from failing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from bonlib import bounds
from bonlib.course.claims import Claims
from bonlib.exact import Array, Outcomes, kl_divergence
from bonlib.inference.rewind import rewind

ROUNDING = 1e-9  # relative to the larger of 1 and the right-hand side
TIGHT = 0.95  # share of a bound that is used up in the worst case seen


@dataclass(frozen=True)
class Case:
    """One reference with rewards, and a number of draws; `seed` for statements that need more randomness."""

    outcomes: Outcomes
    n: float
    seed: int

    @property
    def probs(self) -> Array:
        """The reference."""
        return self.outcomes.probs

    @cached_property
    def policy(self) -> Array:
        """Best-of-n."""
        return self.outcomes.best_of(self.n)

    @cached_property
    def kl(self) -> float:
        """KL(π_n ‖ π), in nats."""
        return kl_divergence(self.policy, self.probs)

    @property
    def formula(self) -> float:
        """A_n = log n − (n−1)/n, in nats."""
        return float(bounds.kl_bound(self.n))

    @property
    def win_rate(self) -> float:
        """Win rate of best-of-n against the reference."""
        return self.outcomes.win_rate(self.policy)

    @property
    def gap(self) -> float:
        """How far the KL stays below A_n."""
        return self.formula - self.kl

    @property
    def win_gap(self) -> float:
        """How far the win rate stays below n/(n+1)."""
        return float(bounds.win_rate_bound(self.n)) - self.win_rate

    @property
    def top(self) -> float:
        """ε∞, the probability of the best outcome."""
        return float(self.probs[np.argmax(self.outcomes.rewards)])


@dataclass(frozen=True)
class Claim:
    """A statement that can be tried on a case.

    Attributes:
        source: paper and number.
        says: the statement.
        sides: its left and right, numbers or arrays of one shape.
        equality: whether it says "=" rather than "≤".
        small: whether a case must be small enough to enumerate.
        most_cases: how many to try at most, where each takes long.
        prepare: makes the case that the statement is about from a random one.
        note: what a reader of the table should know.
    """

    source: str
    says: str
    sides: Callable[[Case], tuple[float | Array, float | Array]]
    equality: bool = False
    small: bool = False
    most_cases: int = 1_000_000
    prepare: Callable[[Case], Case] = lambda case: case
    note: str = ""


class Verdict(NamedTuple):
    """What became of a claim.

    Attributes:
        source, statement: as in the claim.
        cases: how many were tried.
        worst_slack: smallest right − left seen; of an equality, the largest |right − left|, negative.
        verdict: "fails"; "equality"; "tight" (a case uses up more than 95 % of the bound) or "loose", with the share;
            "holds" where a side is never positive, so that there is no share.
        note: as in the claim.
    """

    source: str
    statement: str
    cases: int
    worst_slack: float
    verdict: str
    note: str

    def told(self) -> dict[str, str]:
        """Return it as a row of `bonlib.course.claims.Claims`."""
        note = f"; {self.note}" if self.note else ""
        evidence = f"{self.cases:,} random cases, worst slack {self.worst_slack:.1e}{note}"
        return {"claim": f"{self.source}: {self.statement}", "here it": self.verdict, "evidence": evidence}


def as_table(source: str, verdicts: Sequence[Verdict], *, own: bool = False) -> Claims:
    """Return a table of what became of claims, with what fails in red.

    Args:
        source: the paper, or papers, or what the workbook's own are about.
        verdicts: a row each.
        own: as in `Claims`.
    """
    table = pd.DataFrame(verdicts).rename(columns=lambda name: name.replace("_", " "))
    table["worst slack"] = table["worst slack"].map("{:.1e}".format)
    red = "color: #b00020; font-weight: bold"
    shown = table.style.hide().map(lambda verdict: red * (verdict == "fails"), subset=["verdict"])
    return Claims(source, [row.told() for row in verdicts], shown, own=own)


def try_claim(claim: Claim, cases: int, seed: int = 0) -> Verdict:
    """Try a claim on random cases.

    Args:
        claim: what to try.
        cases: how many cases, at least 1 (fewer where the claim says so).
        seed: of the cases.
    """
    if cases < 1:
        raise ValueError(f"cases is {cases}; a claim must be tried at least once")
    worst, broken, used = np.inf, False, -np.inf
    cases = min(cases, claim.most_cases)
    for case in map(claim.prepare, itertools.islice(random_cases(seed, small=claim.small), cases)):
        left, right = (np.asarray(side, dtype=np.float64) for side in claim.sides(case))
        slack = -np.abs(right - left) if claim.equality else right - left
        if np.isnan(slack).any():
            raise ValueError(f"{claim.source}, {claim.says}: a side is not a number for {case}")
        worst = min(worst, float(np.min(slack)))
        broken |= bool(np.any(slack < -ROUNDING * np.maximum(1.0, np.abs(right))))
        meaningful = (right > 1e-6) & (left > 0) & np.isfinite(right)  # else the share is one of rounding errors
        used = max(used, float(np.max(left / np.where(meaningful, right, 1.0), where=meaningful, initial=-np.inf)))
    share = "holds" if used == -np.inf else f"{'tight' if used > TIGHT else 'loose'}, {int(100 * used)}% used"
    verdict = "fails" if broken else "equality" if claim.equality else share
    return Verdict(claim.source, claim.says, cases, worst, verdict, claim.note)


def random_cases(seed: int, *, small: bool = False, largest: int = 60) -> Iterator[Case]:
    """Yield outcomes without ties, from nearly uniform to nearly certain, and real n from 1 to a million.

    Args:
        seed: of the stream.
        small: at most four outcomes and whole n up to four, so that all tuples of draws can be listed.
        largest: number of outcomes, at most, of the others; sizes are even in their logarithm.
    """
    rng = np.random.default_rng(seed)
    while True:
        size = int(rng.integers(1, 5) if small else largest ** rng.uniform())
        weights = [
            rng.dirichlet(np.full(size, 10 ** rng.uniform(-1, 2))) + 1e-300,
            np.exp(-rng.uniform(0, 30) * rng.random(size)),
            np.append(np.ones(size - 1), 10 ** rng.uniform(-6, 3)),
        ][rng.integers(3)]
        n = float(rng.integers(1, 5)) if small else 10 ** rng.uniform(0, rng.choice([1, 3, 6]))
        outcomes = Outcomes(weights / weights.sum(), rng.permutation(size))
        yield Case(outcomes, n, int(rng.integers(2**31)))


def whole(case: Case) -> Case:
    """The same with a whole number of draws, at least two."""
    return Case(case.outcomes, max(2.0, np.round(case.n)), case.seed)


def one_worst_atom(case: Case) -> Case:
    """One worst outcome of about a hundredth, the rest all but continuous, and n between 1.1 and 1.3."""
    rng = np.random.default_rng(case.seed)
    atom, fine = rng.uniform(0.006, 0.01), 200_000
    probs = np.append(atom, np.full(fine, (1 - atom) / fine))
    return Case(Outcomes(probs, np.arange(fine + 1.0)), rng.uniform(1.1, 1.3), case.seed)


def conjecture_excess(outcomes: Outcomes, n: float) -> float:
    """Return how far best-of-n lies above the curve (A_m, m/(m+1)), m real, at its own KL; negative below it.

    Conjecture 7.2 of Beirami et al., as we read it, says that this is never positive.
    """
    policy = outcomes.best_of(n)
    return outcomes.win_rate(policy) - conjectured_win_rate(kl_divergence(policy, outcomes.probs))


def conjectured_win_rate(kl: float) -> float:
    """Return m/(m+1) for the real m at which log m − (m−1)/m equals `kl`, in nats."""
    log_m = brentq(lambda x: x - 1 + np.exp(-x) - kl, 0.0, kl + 2.0, xtol=1e-14)
    return float(bounds.win_rate_bound(np.exp(log_m)))


def enumerated_best_of(case: Case) -> Array:
    """Best-of-n by listing every tuple of draws."""
    model, result = case.outcomes, np.zeros(len(case.outcomes))
    for drawn in itertools.product(range(len(model)), repeat=int(case.n)):
        result[max(drawn, key=lambda y: model.rewards[y])] += np.prod(model.probs[list(drawn)])
    return result


def thresholds(case: Case) -> Iterator[tuple[float, Array]]:
    """Acceptance probability and policy of rewind-and-repeat at each possible threshold."""
    model = case.outcomes
    for reward in model.rewards:
        acceptance = float(model.probs[model.rewards >= reward].sum())
        if acceptance > 1e-12:
            yield min(acceptance, 1.0), rewind(model, reward)


def expected_harmonic(acceptance: float) -> float:
    """Mean of H_{T−1} over the number of trials T; the tail beyond the sum is below 1e-12."""
    trials = np.arange(1, 2 + int(40 / acceptance))
    return float(np.sum(acceptance * np.exp((trials - 1) * np.log1p(-acceptance)) * bounds.rewind_kl(trials)))


def win_rate_at(case: Case, kl: float, otherwise: float) -> float:
    """Return the win rate of best-of-n where it is `kl` nats from its reference; `otherwise` if it never is."""

    def beyond(log_n: float) -> float:
        return Case(case.outcomes, float(np.exp(log_n)), case.seed).kl - kl

    if kl <= 0 or beyond(25.0) <= 0:
        return otherwise
    return Case(case.outcomes, float(np.exp(brentq(beyond, 0.0, 25.0, xtol=1e-12))), case.seed).win_rate


class Blockwise(NamedTuple):
    """Blockwise best-of-n on a small random language, exactly: KL in nats, and the expected number of blocks."""

    kl: float
    blocks: float
    blocks_of_reference: float


@lru_cache(maxsize=1)  # both sides of a claim ask for the same case
def blockwise(case: Case) -> Blockwise:
    """Return what blockwise best-of-n does on a random language of two letters and an end, of at most four tokens.

    Every prefix has its own random next-token probabilities and reward; blocks have one or two tokens.
    """
    rng = np.random.default_rng(case.seed)
    block, longest = int(rng.integers(1, 3)), 4
    end_reward = rng.choice([-3.0, 0.0, 3.0])  # whether the reward likes short responses

    def continuations(length: int) -> Iterator[tuple[float, int, bool]]:
        """Probability, length and end of each way to go on by one block."""
        if length == longest:
            yield 1.0, length + 1, True
            return
        states = [(1.0, length, False)]
        for _ in range(block):
            following = []
            for chance, at, ended in states:
                if ended or at == longest:
                    following.append((chance, at + (not ended), True))
                    continue
                for token, share in enumerate(rng.dirichlet(np.ones(3))):
                    following.append((chance * share, at + 1, token == 2))
            states = following
        yield from states

    def follow(length: int) -> Blockwise:
        states = list(continuations(length))
        probs = np.array([chance for chance, _, _ in states])
        rewards = rng.normal(size=len(states)) + end_reward * np.array([ended for _, _, ended in states])
        model = Outcomes(probs / probs.sum(), rewards)
        policy = model.best_of(case.n)
        kl, blocks, blocks_of_reference = kl_divergence(policy, model.probs), 1.0, 1.0
        for place, (_, at, ended) in enumerate(states):
            if not ended:
                rest = follow(at)
                kl += policy[place] * rest.kl
                blocks += policy[place] * rest.blocks
                blocks_of_reference += model.probs[place] * rest.blocks_of_reference
        return Blockwise(float(kl), float(blocks), float(blocks_of_reference))

    return follow(0)
