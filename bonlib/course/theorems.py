"""The papers' statements about best-of-n as executable claims, tried on random cases.

A claim says "left ≤ right" or "left = right" for every case; what is kept is how far it is from failing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import comb

from bonlib import bounds
from bonlib.exact import Array, Outcomes, kl_divergence
from bonlib.methods.vbon import vbon_return
from bonlib.methods.vbon_bound import vbon_bound_return, vbon_loose_bound_return

ROUNDING = 1e-9  # relative to the larger of 1 and the right-hand side
TIGHT = 0.95  # share of a bound that is used up in the worst case seen


@dataclass(frozen=True)
class Case:
    """One reference with rewards, and a number of draws; `seed` for statements that need more randomness."""

    outcomes: Outcomes
    n: float
    seed: int

    @cached_property
    def policy(self) -> Array:
        """Best-of-n."""
        return self.outcomes.best_of(self.n)

    @cached_property
    def kl(self) -> float:
        """KL(π_n ‖ π), in nats."""
        return kl_divergence(self.policy, self.outcomes.probs)

    @property
    def win_rate(self) -> float:
        """Win rate of best-of-n against the reference."""
        return self.outcomes.win_rate(self.policy)

    @property
    def gap(self) -> float:
        """How far the KL stays below log n − (n−1)/n."""
        return float(bounds.kl_bound(self.n)) - self.kl

    @property
    def top(self) -> float:
        """ε∞, the probability of the best outcome."""
        return float(self.outcomes.probs[np.argmax(self.outcomes.rewards)])

    @property
    def collision(self) -> float:
        """Σ π², the chance that two draws are the same."""
        return float(self.outcomes.probs @ self.outcomes.probs)


Side = Callable[[Case], float | Array]


@dataclass(frozen=True)
class Claim:
    """A statement that can be tried on a case.

    Attributes:
        source: paper and number.
        says: the statement.
        left, right: its two sides, numbers or arrays of one shape.
        equality: whether it says "=" rather than "≤".
        small: whether a case must be small enough to enumerate.
        most_cases: how many to try at most, where each takes long.
        prepare: makes the case that the statement is about from a random one.
        note: what a reader of the table should know.
    """

    source: str
    says: str
    left: Side
    right: Side
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
        left, right = (np.asarray(side(case), dtype=np.float64) for side in (claim.left, claim.right))
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


def binomial_best_of(case: Case) -> Array:
    """Best-of-n by the sum of vBoN's Proposition 1: i of the n draws are y, the others worse."""
    i = np.arange(1, int(case.n) + 1)[:, None]
    terms = comb(case.n, i) * case.outcomes.strict_cdf ** (case.n - i) * case.outcomes.probs**i
    return np.asarray(terms.sum(axis=0))


def expected_estimate(case: Case, estimate: Callable[..., Array]) -> float:
    """Mean over winners of an estimate of the KL from the winner's probability."""
    return float(case.policy @ estimate(case.outcomes.log_probs, case.n))


def atom_gaps(case: Case) -> Array:
    """The outcomes' parts in the gap identity: F≤^n (A_n − K̂_n(π/F≤))."""
    share = np.minimum(case.outcomes.probs / case.outcomes.cdf, 1.0)
    return np.exp(case.n * case.outcomes.log_cdf) * bounds.kl_gap_lower(case.n, share)


def atom_win_gaps(case: Case) -> Array:
    """What each outcome costs in win rate beside a continuous reward: ∫ n uⁿ du − (F≤ⁿ − Fⁿ)(F≤ + F)/2 from F to F≤."""
    low, high, n = case.outcomes.strict_cdf, case.outcomes.cdf, case.n
    return n / (n + 1) * (high ** (n + 1) - low ** (n + 1)) - case.policy * (high + low) / 2


def thresholds(case: Case) -> Iterator[tuple[float, Array]]:
    """Acceptance probability and policy of rewind-and-repeat at each possible threshold."""
    model = case.outcomes
    for reward in model.rewards:
        acceptance = float(model.probs[model.rewards >= reward].sum())
        if acceptance > 1e-12:
            yield min(acceptance, 1.0), model.rewind(reward)


def expected_harmonic(acceptance: float) -> float:
    """Mean of H_{T−1} over the number of trials T; the tail beyond the sum is below 1e-12."""
    trials = np.arange(1, 2 + int(40 / acceptance))
    return float(np.sum(acceptance * np.exp((trials - 1) * np.log1p(-acceptance)) * bounds.rewind_kl(trials)))


def same_kl(case: Case, kl: float) -> Case | None:
    """The same outcomes at the n where best-of-n is `kl` nats from its reference; None if it never gets so far."""

    def beyond(log_n: float) -> float:
        return Case(case.outcomes, float(np.exp(log_n)), case.seed).kl - kl

    if kl <= 0 or beyond(25.0) <= 0:
        return None
    return Case(case.outcomes, float(np.exp(brentq(beyond, 0.0, 25.0, xtol=1e-12))), case.seed)


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


@lru_cache(maxsize=1)
def _vbon(case: Case) -> dict[str, float]:
    """The objectives of vBoN at a random policy: J and L≤ at any, L and L1 where log F is finite."""
    model, n = case.outcomes, case.n
    weights = np.random.default_rng(case.seed).dirichlet(np.ones(len(model))) + 1e-12
    avoids_worst = np.where(model.strict_cdf > 1e-200, weights, 0.0)
    if len(model) == 1 or not avoids_worst.any():  # then the worst outcome is all there is
        return {"J": 0.0, "J anywhere": 0.0, "L": -1e300, "L_weak": 0.0, "L1": -2e300}

    def mean(policy: Array, returns: Callable[..., torch.Tensor], log_cdf: Array) -> float:
        policy = policy / policy.sum()
        held = policy > 0
        inputs = (
            torch.tensor(values[held]) for values in (np.log(np.maximum(policy, 1e-300)), model.log_probs, log_cdf)
        )
        return float(policy[held] @ returns(*inputs, n=n).numpy())

    with np.errstate(divide="ignore"):
        log_strict = np.log(model.strict_cdf)
    return {
        "J": mean(avoids_worst, vbon_return, log_strict),
        "J anywhere": mean(weights, vbon_return, log_strict),
        "L": mean(avoids_worst, vbon_bound_return, log_strict),
        "L_weak": mean(weights, vbon_bound_return, model.log_cdf),
        "L1": mean(avoids_worst, vbon_loose_bound_return, log_strict),
    }


def _term_b(case: Case) -> Array:
    """BOND's term B = Σ (F/F≤)^{i−1}, i = 1 … n, as a geometric sum."""
    model, n = case.outcomes, case.n
    i = np.arange(int(n))[:, None]
    return np.asarray(((model.strict_cdf / model.cdf) ** i).sum(axis=0))


def _either(case: Case | None, value: Callable[[Case], float], otherwise: float) -> float:
    return otherwise if case is None else value(case)


THEORY = [
    Claim("Lemma 2.3", "π_n = F≤ⁿ − Fⁿ", lambda c: c.policy, enumerated_best_of, True, small=True,
          note="against all tuples of draws"),
    Claim("Theorem 3.1", "KL ≤ A_n = log n − (n−1)/n", lambda c: c.kl, lambda c: bounds.kl_bound(c.n)),
    Claim("Theorem 3.4", "A_n − KL ≤ 2n(n−1) Σπ²", lambda c: c.gap,
          lambda c: bounds.kl_gap_upper(c.n, c.outcomes.probs), prepare=whole, note="whole n"),
    Claim("not 3.4", "the same for real n between 1 and 2", lambda c: c.gap,
          lambda c: bounds.kl_gap_upper(c.n, c.outcomes.probs), prepare=one_worst_atom, most_cases=20,
          note="one worst atom, the rest fine"),
    Claim("Corollary 3.5", "A_n − KL ≤ 2n(n−1) δ,  δ = max π", lambda c: c.gap,
          lambda c: 2 * c.n * (c.n - 1) * c.outcomes.probs.max(), prepare=whole, note="whole n"),
    Claim("Theorem 3.6", "A_n − K̂_n(ε∞) ≤ A_n − KL", lambda c: bounds.kl_gap_lower(c.n, c.top), lambda c: c.gap),
    Claim("Corollary 3.7", "log(n ε∞) − (n−1)/n ≤ A_n − KL", lambda c: np.log(c.n * c.top) - (c.n - 1) / c.n,
          lambda c: c.gap, note="our reading"),
    Claim("Lemma 4.1", "KL ≤ E log((1−(1−ε)ⁿ)/ε)", lambda c: c.kl, lambda c: expected_estimate(c, bounds.kl_crude)),
    Claim("Lemma 4.1", "E log((1−(1−ε)ⁿ)/ε) − KL ≤ 1",
          lambda c: expected_estimate(c, bounds.kl_crude) - c.kl, lambda c: 1.0),
    Claim("Corollary 4.2", "KL = E log((F≤ⁿ − Fⁿ)/(F≤ − F))", lambda c: c.kl,
          lambda c: c.policy @ np.where(c.policy > 0, c.outcomes.log_best_of(c.n) - c.outcomes.log_probs, 0.0), True),
    Claim("Conjecture 4.4", "KL ≤ E K̂_n(ε)", lambda c: c.kl, lambda c: expected_estimate(c, bounds.kl_from_winner),
          note="a theorem: proof in this notebook"),
    Claim("gap identity", "A_n − KL = Σ F≤ⁿ (A_n − K̂_n(π/F≤))", lambda c: c.gap, lambda c: atom_gaps(c).sum(), True,
          note="new; gives Conjecture 4.4"),
    Claim("Lemma 4.5", "K̂_n(ε) ≤ A_n", lambda c: bounds.kl_from_winner(c.outcomes.log_probs, c.n),
          lambda c: bounds.kl_bound(c.n) + 0 * c.outcomes.probs),
    Claim("Lemma 5.1", "win rate = E c", lambda c: c.win_rate,
          lambda c: c.policy @ (np.sign(c.outcomes.rewards[:, None] - c.outcomes.rewards) / 2 + 0.5) @ c.outcomes.probs,
          True, note="against all pairs"),
    Claim("Lemma 5.2", "win rate = Σ (F≤ⁿ − Fⁿ)(F≤ + F)/2", lambda c: c.win_rate,
          lambda c: c.policy @ (c.outcomes.cdf + c.outcomes.strict_cdf) / 2, True),
    Claim("Theorem 5.3", "win rate ≤ n/(n+1)", lambda c: c.win_rate, lambda c: bounds.win_rate_bound(c.n)),
    Claim("Theorem 5.4", "n/(n+1) − win rate ≤ (n−1)/2 Σπ²", lambda c: bounds.win_rate_bound(c.n) - c.win_rate,
          lambda c: bounds.win_rate_gap_upper(c.n, c.outcomes.probs)),
    Claim("Corollary 5.5", "n/(n+1) − win rate ≤ (n−1)/2 δ", lambda c: bounds.win_rate_bound(c.n) - c.win_rate,
          lambda c: (c.n - 1) / 2 * c.outcomes.probs.max()),
    Claim("Theorem 5.6", "n/(n+1)(1 − (1−ε∞)ⁿ⁺¹) − (1 − (1−ε∞)ⁿ)(1 − ε∞/2) ≤ n/(n+1) − win rate",
          lambda c: bounds.win_rate_gap_lower(c.n, c.top), lambda c: bounds.win_rate_bound(c.n) - c.win_rate),
    Claim("Corollary 5.7", "win rate ≤ 1 − ε∞/2", lambda c: c.win_rate, lambda c: 1 - c.top / 2),
    Claim("Lemma 6.2", "KL of rewind-and-repeat = −log α",
          lambda c: np.array([kl_divergence(p, c.outcomes.probs) for _, p in thresholds(c)]),
          lambda c: np.array([-np.log(alpha) for alpha, _ in thresholds(c)]), True),
    Claim("Lemma 6.2", "its win rate = 1 − α/2",
          lambda c: np.array([c.outcomes.win_rate(p) for _, p in thresholds(c)]),
          lambda c: np.array([1 - alpha / 2 for alpha, _ in thresholds(c)]), True),
    Claim("Theorem 6.3", "E H_{T−1} = −log α", lambda c: expected_harmonic(1 / (1 + c.n % 1000)),
          lambda c: np.log(1 + c.n % 1000), True),
    Claim("Lemma A.3", "F≤ⁿ (A_n − K̂_n(π/F≤)) ≤ 2n(n−1) π²", atom_gaps,
          lambda c: 2 * c.n * (c.n - 1) * c.outcomes.probs**2, prepare=whole, note="our reading; whole n"),
    Claim("Lemma A.4", "0 ≤ ∫ n uⁿ du − (F≤ⁿ − Fⁿ)(F≤ + F)/2", lambda c: -atom_win_gaps(c),
          lambda c: 0 * c.outcomes.probs, note="our reading; ∫ from F to F≤"),
    Claim("Lemma A.5", "∫ n uⁿ du − (F≤ⁿ − Fⁿ)(F≤ + F)/2 ≤ (n−1)/2 π²", atom_win_gaps,
          lambda c: (c.n - 1) / 2 * c.outcomes.probs**2, note="our reading"),
    Claim("Theorem A.6", "at KL = A_n: win rate ≥ n/(n+1) − (n−1)/2 Σπ²",
          lambda c: bounds.win_rate_bound(c.n) - bounds.win_rate_gap_upper(c.n, c.outcomes.probs),
          lambda c: _either(same_kl(c, float(bounds.kl_bound(c.n))), lambda same: same.win_rate, np.inf)),
    Claim("Theorem A.7", "at KL = A_n − 2n(n−1) Σπ²: win rate ≤ n/(n+1)",
          lambda c: _either(same_kl(c, float(bounds.kl_bound(c.n) - bounds.kl_gap_upper(c.n, c.outcomes.probs))),
                            lambda same: same.win_rate, -np.inf),
          lambda c: bounds.win_rate_bound(c.n), prepare=whole, note="whole n; vacuous unless Σπ² is small"),
    Claim("Conjecture 7.2", "at KL = A_n: win rate ≤ n/(n+1)", lambda c: c.win_rate,
          lambda c: conjectured_win_rate(c.kl), note="our reading"),
    Claim("frontier", "win rate ≤ that of the uniform tilt at the same KL", lambda c: c.win_rate,
          lambda c: bounds.win_rate_frontier(c.kl), note="what survives of Conjecture 7.2"),
    Claim("Theorem B.1", "blockwise: KL ≤ E⌈T/m⌉ A_n", lambda c: blockwise(c).kl,
          lambda c: blockwise(c).blocks * bounds.kl_bound(c.n), note="T under the blockwise policy"),
    Claim("not B.1", "the same with T under the reference", lambda c: blockwise(c).kl,
          lambda c: blockwise(c).blocks_of_reference * bounds.kl_bound(c.n), note="an easy misreading"),
]  # fmt: skip

OBJECTIVES = [
    Claim("vBoN, Prop. 1", "π_N = Σ C(N,i) F^{N−i} πⁱ", lambda c: c.policy, binomial_best_of, True, small=True),
    Claim("vBoN, Theorem 2", "0 ≤ J − L", lambda c: 0.0, lambda c: _vbon(c)["J"] - _vbon(c)["L"]),
    Claim("sharper", "log N ≤ J − L", lambda c: np.log(c.n), lambda c: _vbon(c)["J"] - _vbon(c)["L"],
          note="strict F, where finite"),
    Claim("weak CDF", "0 ≤ J − L≤", lambda c: 0.0, lambda c: _vbon(c)["J anywhere"] - _vbon(c)["L_weak"],
          note="what we train with"),
    Claim("weak CDF", "J − L≤ ≤ log N", lambda c: _vbon(c)["J anywhere"] - _vbon(c)["L_weak"], lambda c: np.log(c.n)),
    Claim("vBoN, Theorem 3", "0 ≤ J − L1", lambda c: 0.0, lambda c: _vbon(c)["J"] - _vbon(c)["L1"], prepare=whole,
          note="whole N"),
    Claim("vBoN, Theorem 4", "0 ≤ L − L1", lambda c: 0.0, lambda c: _vbon(c)["L"] - _vbon(c)["L1"], prepare=whole,
          note="whole N"),
    Claim("BOND, Theorem 1", "π_N = π F≤^{N−1} B",
          lambda c: c.outcomes.probs * c.outcomes.cdf ** (c.n - 1) * _term_b(c), lambda c: c.policy, True, small=True),
    Claim("BOND, Theorem 1", "1 ≤ B", lambda c: 1 + 0 * c.outcomes.probs, _term_b, small=True),
    Claim("BOND, Theorem 1", "B ≤ N", _term_b, lambda c: c.n + 0 * c.outcomes.probs, small=True),
    Claim("composition", "best-of-n of best-of-m = best-of-(n·m)",
          lambda c: c.outcomes.rebase(c.outcomes.best_of(3)).best_of(c.n), lambda c: c.outcomes.best_of(3 * c.n), True),
]  # fmt: skip
