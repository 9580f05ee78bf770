"""BOND and J-BOND: methods that learn from an anchor's best responses and from the policy's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bonlib import losses
from bonlib.align.reward_cdf import LogCdf, known, looked_up
from bonlib.checks import flag, number, settle, whole

if TYPE_CHECKING:
    from bonlib.align.methods import Judged


@dataclass(frozen=True, kw_only=True)
class Anchored:
    """What BOND and J-BOND have in common: a Jeffreys divergence from best-of-n of an anchor, which may move.

    Attributes:
        jeffreys_weight: weight w of the reverse divergence KL(πθ ‖ π_n), by policy gradient; 1 − w is that of the
            forward one, by likelihood of best-of-n responses.
        anchor_rate: η, the share of the policy's weights that the anchor takes up when it moves; 1 copies them, and
            with 0 the anchor stays the reference.
        anchor_every: steps from one move to the next.
        regulariser: γ, weight of KL(πθ ‖ anchor). Algorithm 2 of the paper has its gradient with the other sign, which
            is that of a negative γ and drives the policy away.
    """

    jeffreys_weight: float = 0.5
    anchor_rate: float = 0.0
    anchor_every: int = 1
    regulariser: float = 0.0

    def __post_init__(self) -> None:
        settle(
            self,
            jeffreys_weight=number("jeffreys_weight", self.jeffreys_weight, least=0, most=1),
            anchor_rate=number("anchor_rate", self.anchor_rate, least=0, most=1),
            anchor_every=whole("anchor_every", self.anchor_every, 1, what="the number of steps"),
            regulariser=number("regulariser", self.regulariser),
        )

    def moves_after(self, steps: int) -> bool:
        """Return whether the anchor moves when so many steps are done."""
        return self.anchor_rate > 0 and steps % self.anchor_every == 0


@dataclass(frozen=True)
class Bond(Anchored):
    """Best-of-N distillation: the Jeffreys divergence from best-of-n, of the reference or of a moving anchor.

    Attributes:
        n: number of draws n, whole and at least 2.
        term_b: whether the return has the term log B, small and left out by the paper; with it the optimum of both
            divergences is best-of-n itself.
        anchor_draws: responses of a moving anchor a prompt and step, for its reward CDF and its best-of-n. A reference
            that stays has the stored draws.
    """

    n: int
    term_b: bool = False
    anchor_draws: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            n=whole("n", self.n, 2, what="BOND learns from the best of n draws: n"),
            term_b=flag("term_b", self.term_b),
            anchor_draws=whole("anchor_draws", self.anchor_draws, 1),
        )
        if self.asks_anchor and self.anchor_draws < self.n:
            raise ValueError(f"anchor_draws is {self.anchor_draws}; the best of {self.n} needs as many at least")

    @property
    def asks_anchor(self) -> bool:
        """Whether the anchor has to draw while the policy learns."""
        return self.anchor_rate > 0

    @property
    def needs_cdf(self) -> bool:
        """Only if the anchor stays: the rewards of a moving one are estimated from its draws."""
        return not self.asks_anchor

    @property
    def kl_coefficient(self) -> float:
        """β = 1/(n−1)."""
        return 1 / (self.n - 1)

    def eased(self, part: float) -> Bond:
        """Refuse: likelihood of best-of-n holds the policy to good responses, and it knows whole n only."""
        return _not_eased(self, part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return log F≤ (+ log B/(n−1)) − (log πθ − log π)/(n−1)."""
        if self.term_b:
            log_strict, log_tied = looked_up(cdf, judged)
            log_cdf = torch.logaddexp(log_strict, log_tied)
        else:
            about = (judged.prompts, judged.texts, judged.rewards.cpu().numpy())
            log_strict, log_cdf = None, torch.as_tensor(known(cdf).log_weak(*about)).to(judged.log_probs)
        return losses.bond_return(judged.log_probs, judged.ref_log_probs, log_cdf, n=self.n, log_strict_cdf=log_strict)


@dataclass(frozen=True)
class JBond(Anchored):
    """J-BOND: best-of-2 of a slowly moving anchor, with log F≤ guessed from two of its responses."""

    n: ClassVar[int] = 2
    needs_cdf: ClassVar[bool] = False
    kl_coefficient: ClassVar[float] = 1.0
    asks_anchor: ClassVar[bool] = True
    anchor_draws: ClassVar[int] = 2
    anchor_rate: float = field(default=0.02, kw_only=True)

    def eased(self, part: float) -> JBond:
        """Refuse: its pull is that of two draws."""
        return _not_eased(self, part)

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return r_J − (log πθ − log π_anchor)."""
        if judged.anchor_rewards is None:
            raise ValueError("judged has no anchor_rewards; J-BOND compares with two responses of the anchor")
        return losses.jbond_return(judged.log_probs, judged.ref_log_probs, judged.rewards, judged.anchor_rewards)


def iterative_bond(every: int, *, n: int = 2, anchor_draws: int = 8, **options: Any) -> Bond:
    """Return BOND with n draws, whose anchor becomes the policy every so many steps."""
    return Bond(n, anchor_rate=1.0, anchor_every=every, anchor_draws=anchor_draws, **options)


def jbond(rate: float, **options: Any) -> JBond:
    """Return J-BOND with an anchor that takes up this share of the policy's weights at each move."""
    return JBond(anchor_rate=rate, **options)


def _not_eased(method: Any, part: float) -> Any:
    if part < 1:
        raise ValueError(f"easing is on; {method} has whole draws only: leave it at 0")
    return method
