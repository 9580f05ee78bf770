"""Rewind-and-repeat: draw until a response is good enough, however long that takes."""

from __future__ import annotations

import numpy as np

from bonlib.checks import number
from bonlib.exact import Array, Outcomes


def rewind(outcomes: Outcomes, threshold: float) -> Array:
    """Return the rewind-and-repeat policy, draw until r(y) >= `threshold`, shape (K,).

    Its KL to the reference is −log α, with α the probability of acceptance.

    Args:
        outcomes: a reference and its rewards.
        threshold: smallest reward that is accepted; some outcome that can occur must reach it.

    Raises:
        ValueError: if no possible outcome reaches `threshold` (the loop would never end) or it is NaN.

    Source: Beirami et al., Lemma 6.1.
    """
    accepted = np.where(outcomes.rewards >= threshold, outcomes.probs, 0.0)
    total = accepted.sum()
    if not total > 0:
        best = outcomes.rewards[outcomes.probs > 0].max()
        raise ValueError(f"threshold is {threshold}; no possible outcome reaches it, the best reward is {best}")
    return accepted / total


def rewind_at(outcomes: Outcomes, acceptance: float) -> Array:
    """Return rewind-and-repeat with acceptance probability α = `acceptance`, shape (K,).

    Where no threshold gives just that α, the outcomes at the threshold are accepted with the chance that does; so the
    policy moves continuously from the reference (α = 1) to the best outcomes (α at most their probability).

    Args:
        outcomes: a reference and its rewards.
        acceptance: α, above 0 and at most 1; 1/α draws are made on average.

    Raises:
        ValueError: if `acceptance` is out of range.

    Source: Beirami et al., Eq. 39 and Lemma 6.1.
    """
    alpha, ladder = float(number("acceptance", acceptance, above=0, most=1)), outcomes.ladder
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.clip((alpha - ladder.above) / ladder.mass, 0, 1)
    accepted = np.where(outcomes.probs > 0, outcomes.probs * chance, 0.0)
    return accepted / accepted.sum()
