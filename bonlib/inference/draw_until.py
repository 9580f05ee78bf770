"""Early stopping on a model: draws come in rounds, and no more of them once a prompt has enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import shown, whole
from bonlib.exact import Array
from bonlib.inference.rules import Choice, Rule, needs_of

if TYPE_CHECKING:
    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.samplers import Sampler, SamplingSettings
    from bonlib.draws.store import SampleStore
    from bonlib.models.responses import Responses


class DrawnUntil(NamedTuple):
    """One response to each of P prompts.

    Attributes:
        responses: P of them.
        rewards: (P,) of them.
        choice: (P,) the draw that each is, and the draws that the rule looked at.
        made: (P,) draws that were made and scored, whole rounds of them.
    """

    responses: Responses
    rewards: Array
    choice: Choice
    made: NDArray[np.intp]


def draw_until(
    store: SampleStore,
    sampler: Sampler,
    reward_model: RewardModel,
    prompts: Sequence[str],
    rule: Rule,
    settings: SamplingSettings,
    *,
    seed: int,
    at_once: int = 4,
) -> DrawnUntil:
    """Draw for each prompt until a rule has enough: what comes is what it keeps of all n draws made beforehand.

    Args:
        store: keeps draws and rewards; what it has already is not drawn again, but counted.
        sampler: draws.
        reward_model: judges.
        prompts: P of them, different from each other.
        rule: of the table of rules, such as `StopAt`; it may stop early only by what it has seen until then, and need
            nothing but rewards.
        settings: the law to draw from.
        seed: of the draws, and of the rule.
        at_once: draws a prompt in a round, at least 1.

    Raises:
        ValueError: if an argument is out of range, or a reward is not finite.
    """
    from bonlib.draws.samplers import SamplingSettings
    from bonlib.draws.store import SampleStore
    from bonlib.models.responses import concatenate

    if not isinstance(store, SampleStore):
        raise ValueError(f"store is {shown(store)}; it must be a SampleStore: give SampleStore(FOLDER)")
    if not isinstance(settings, SamplingSettings):
        raise ValueError(f"settings is {shown(settings)}; it must be SamplingSettings, such as SamplingSettings(24)")
    if isinstance(rule, type) or not hasattr(rule, "choose"):
        other = "give it to steer" if hasattr(rule, "go_on") else "make one, such as StopAt(16, 0.5)"
        raise ValueError(f"rule is {shown(rule)}; it must be a rule that chooses among draws: {other}")
    if needs := needs_of(rule):
        raise ValueError(f"rule is {rule!r}, which needs {needs[0]} of all draws: take one that needs none")
    at_once, n = whole("at_once", at_once, 1), rule.n
    table, made = np.full((len(prompts), n), np.nan), np.zeros(len(prompts), dtype=np.intp)
    responses: dict[int, Responses] = {}
    going_on = np.arange(len(prompts))
    for begin in range(0, n, at_once):
        end = min(begin + at_once, n)
        places = going_on.tolist()
        draws = store.draw(sampler, [prompts[place] for place in places], end, settings, seed=seed)
        table[going_on, :end] = store.score(reward_model, draws)
        made[going_on] = end
        responses |= dict(zip(places, draws.responses, strict=True))
        # A rule that never looks ahead decides the same whatever is to come, so that anything may stand there.
        choice = rule.choose(np.where(np.isnan(table), np.nanmin(table, axis=1, keepdims=True), table), seed=seed)
        going_on = np.flatnonzero(choice.spent > made)
        if not len(going_on):
            break
    kept = [responses[place][[draw]] for place, draw in enumerate(choice.kept)]
    return DrawnUntil(concatenate(kept), table[np.arange(len(table)), choice.kept], choice, made)
