"""How many draws are made, at random: distributions of N on 1, 2, … by their generating functions G(x) = E x^N.

The best of N draws has the law G(F≤) − G(F), shared among ties; for a reward without ties, its density relative to the
reference is G'(u) at u = F. So best-of-n, the tilt of highest win rate and WIND's fixed point are one family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, gammaln, xlog1py, xlogy

from bonlib.checks import number, settle, whole
from bonlib.exact import Array, Ladder, Outcomes, blocks


class DrawCount(ABC):
    """How many draws are made: a distribution of N on the whole numbers from 1 on.

    A member says G(F≤) − G(F) and G' in terms of what is small at the top, so that neither cancels.
    """

    @abstractmethod
    def _log_chance(self, k: Array) -> Array:
        """Log P(N = k) for whole numbers k."""

    @abstractmethod
    def _log_gain(self, rungs: Ladder) -> Array:
        """log(G(F≤) − G(F)) for outcomes."""

    @abstractmethod
    def _log_density(self, u: Array, above: Array) -> Array:
        """Log G'(u) from u and 1 − u."""

    @abstractmethod
    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        """Numbers of draws."""

    def log_law(self, outcomes: Outcomes) -> Array:
        """Return the log-probabilities of the best of N draws, shape (K,); those near 0 to 1e-15, others relatively.

        Source: derived here, from Beirami et al., Lemma 2.3, for each n.
        """
        ladder, law = outcomes.ladder, np.empty(len(outcomes))
        for part, _ in blocks(len(outcomes)):
            rungs = ladder.part(part)
            with np.errstate(divide="ignore"):
                law[part] = self._log_gain(rungs)
            if rungs.log_share is not None:
                law[part] += rungs.log_share
        return law

    def law(self, outcomes: Outcomes) -> Array:
        """Return the probabilities of the best of N draws, shape (K,)."""
        law = self.log_law(outcomes)
        return np.exp(law, out=law)

    def sample(self, shape: int | tuple[int, ...], *, seed: int) -> NDArray[np.intp]:
        """Return numbers of draws, of a shape."""
        return self._sample(np.empty(shape).shape, np.random.default_rng(whole("seed", seed)))

    def chances(self, n: int, *, most_beyond: float = 1.0) -> Array:
        """Return the law of min(N, n), shape (n,): P(N = 1), P(N = 2), …, and at last P(N >= n).

        Args:
            n: draws that there are, at least 1.
            most_beyond: most of P(N > n) that is put up with.

        Raises:
            ValueError: if P(N > n) is more than `most_beyond`. A mean that is estimated with these chances is off by
                P(N > n) times the range of the values at most.
        """
        n = whole("n", n, 1)
        chances = np.exp(self._log_chance(np.arange(1.0, n + 1)))
        beyond = 1 - chances.sum()
        if beyond > most_beyond:
            raise ValueError(f"n is {n}; N is larger with chance {beyond:.2g}, above {most_beyond:g}: give more draws")
        chances[-1] = max(1 - chances[:-1].sum(), 0.0)
        return chances

    def density(self, u: ArrayLike) -> Array:
        """Return G'(u), the density relative to the reference at quantiles u from 0 to 1, any shape."""
        quantile = np.asarray(u, dtype=np.float64)
        outside = ~((quantile >= 0) & (quantile <= 1))
        if outside.any():
            raise ValueError(f"u is {quantile[outside].flat[0]}; a quantile is from 0 to 1")
        with np.errstate(divide="ignore"):
            return np.exp(self._log_density(quantile, 1 - quantile))

    @property
    def mean(self) -> float:
        """E N = G'(1), draws; for a reward without ties also the largest ratio of the law to the reference."""
        return float(self.density(1.0))

    @property
    def kl(self) -> float:
        """KL to the reference in nats for a reward without ties, ∫ G' log G' du, within 1e-12 for means up to 1e12."""
        _, weights, log_density = self._continuous
        # G' − 1 has no integral: without it there is nothing to cancel where G' is near 1.
        return float(weights @ (np.exp(log_density) * log_density - np.expm1(log_density)))

    @property
    def win_rate(self) -> float:
        """Win rate against the reference for a reward without ties, ∫ u G' du = E N/(N+1), within 1e-13."""
        above, weights, log_density = self._continuous
        return float(1 - weights @ (above * np.exp(log_density)))

    @cached_property
    def _continuous(self) -> tuple[Array, Array, Array]:
        """Nodes 1 − u, their weights and log G' there, for the trapezoid rule in the logit of u.

        There each member is analytic in a strip of half-width π/2 and falls like e^{−|logit|} at both ends, so that the
        rule converges faster than any power of its step.
        """
        step = 1 / 8
        logit = np.arange(-45, 45 + np.log(self.mean), step)
        u, above = expit(logit), expit(-logit)
        log_density = self._log_density(u, above)
        return above, step * u * above, log_density


@dataclass(frozen=True)
class FixedCount(DrawCount):
    """N = n: best-of-n, G = x^n.

    Args:
        n: real, at least 1; whole where draws are made.
    """

    n: float

    def __post_init__(self) -> None:
        settle(self, n=number("n", self.n, least=1))

    def _log_chance(self, k: Array) -> Array:
        return np.where(k == whole("n", self.n, 1), 0.0, -np.inf)

    def _log_gain(self, rungs: Ladder) -> Array:
        return self.n * rungs.log_cdf + np.log(-np.expm1(self.n * rungs.log_ratio))

    def _log_density(self, u: Array, above: Array) -> Array:
        return np.log(self.n) + np.where(u < 0.5, xlogy(self.n - 1, u), xlog1py(self.n - 1, -above))

    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        return np.full(shape, whole("n", self.n, 1))


@dataclass(frozen=True)
class TruncatedPoisson(DrawCount):
    """N ~ Poisson(t) given that it is not 0: G = (e^{tx} − 1)/(e^t − 1).

    For a reward without ties the law is exactly the tilt e^{tu} of the calibrated reward u, which has the highest win
    rate at its KL (`bonlib.bounds.win_rate_frontier`); its KL coefficient is β = 1/t. So it is on outcomes of equal
    probability; on others, see `lifted_reward`.

    Args:
        t: above 0.
    """

    t: float

    def __post_init__(self) -> None:
        settle(self, t=number("t", self.t, above=0))

    def _log_chance(self, k: Array) -> Array:
        return k * np.log(self.t) - gammaln(k + 1) - self.t - np.log(-np.expm1(-self.t))

    def _log_gain(self, rungs: Ladder) -> Array:
        return np.log(np.expm1(-self.t * rungs.mass) / np.expm1(-self.t)) - self.t * rungs.above

    def _log_density(self, u: Array, above: Array) -> Array:
        return np.log(self.t / -np.expm1(-self.t)) - self.t * above

    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        # When the first of them comes, given that one does by the time t, and how many come after it.
        first = -np.log1p(generator.random(shape) * np.expm1(-self.t))
        return 1 + generator.poisson(np.maximum(self.t - first, 0.0))


@dataclass(frozen=True)
class OnePlusPoisson(DrawCount):
    """N ~ 1 + Poisson(mu), best-of-Poisson: G = x e^{mu (x−1)}; near the tilt, and `TruncatedPoisson` is the tilt.

    Args:
        mu: not negative.

    Source: in the form of Khalaf et al. 2025 (best-of-Poisson).
    """

    mu: float

    def __post_init__(self) -> None:
        settle(self, mu=number("mu", self.mu, least=0))

    def _log_chance(self, k: Array) -> Array:
        return xlogy(k - 1, self.mu) - gammaln(k) - self.mu

    def _log_gain(self, rungs: Ladder) -> Array:
        return np.log(rungs.mass - rungs.strict_cdf * np.expm1(-self.mu * rungs.mass)) - self.mu * rungs.above

    def _log_density(self, u: Array, above: Array) -> Array:
        return np.log1p(self.mu * u) - self.mu * above

    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        return 1 + generator.poisson(self.mu, shape)


@dataclass(frozen=True)
class GeometricCount(DrawCount):
    """Go on with chance q after each draw: G = (1−q)x/(1−qx).

    Args:
        q: from 0 to less than 1.
    """

    q: float

    def __post_init__(self) -> None:
        settle(self, q=number("q", self.q, least=0, below=1))

    def _log_chance(self, k: Array) -> Array:
        return np.log1p(-self.q) + xlogy(k - 1, self.q)

    def _log_gain(self, rungs: Ladder) -> Array:
        above = 1 - self.q + self.q * rungs.above
        return np.log((1 - self.q) * rungs.mass / above) - np.log(above + self.q * rungs.mass)

    def _log_density(self, u: Array, above: Array) -> Array:
        return np.log1p(-self.q) - 2 * np.log(1 - self.q + self.q * above)

    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        return generator.geometric(1 - self.q, shape)


@dataclass(frozen=True)
class LogSeries(DrawCount):
    """P(N = k) = a^k/(k t) with a = 1 − e^{−t}: G = −log(1 − ax)/t.

    For a reward without ties its law is the fixed point of WIND with KL coefficient β = 1/t.

    Args:
        t: above 0, at most 700, where the mean is e^700/700.

    Source: the fixed point is derived here; WIND is Yang et al. 2024.
    """

    t: float

    def __post_init__(self) -> None:
        settle(self, t=number("t", self.t, above=0, most=700))

    def _log_chance(self, k: Array) -> Array:
        return k * np.log(-np.expm1(-self.t)) - np.log(k * self.t)

    def _log_gain(self, rungs: Ladder) -> Array:
        a = -np.expm1(-self.t)
        return np.log(np.log1p(a * rungs.mass / (np.exp(-self.t) + a * rungs.above))) - np.log(self.t)

    def _log_density(self, u: Array, above: Array) -> Array:
        a = -np.expm1(-self.t)
        return np.log(a / self.t) - np.log(np.exp(-self.t) + a * above)

    def _sample(self, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.intp]:
        return generator.geometric(np.exp(-self.t * generator.random(shape)))  # Kemp 1981: q = 1 − e^{−tU}


def lifted_reward(outcomes: Outcomes, t: float) -> Array:
    """Return log[(e^{tF≤} − e^{tF})/(t g)], g the mass of all that ties, shape (K,): t F≤ where nothing weighs much.

    With it the tilt π e^lift is normalised by (e^t − 1)/t whatever the ties, and is the law of `TruncatedPoisson(t)`.

    Args:
        outcomes: a reference and its rewards.
        t: 1/β, above 0.

    Source: derived here.
    """
    rungs, t = outcomes.ladder, float(number("t", t, above=0))
    mass = t * np.maximum(rungs.mass, np.finfo(np.float64).tiny)
    return t - t * rungs.above + np.log(-np.expm1(-mass) / mass)
