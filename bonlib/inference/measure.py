"""What a rule does with stored draws: reward, win rate, a second reward, what it spends, and its KL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from bonlib.cdf import snapped
from bonlib.checks import whole
from bonlib.estimates import best_of_random_n_mean, best_of_random_n_win_rate
from bonlib.exact import Array, Outcomes, kl_divergence
from bonlib.inference.best_of_n import BestOfN, RandomOfN
from bonlib.inference.random_n import BestOfRandomN
from bonlib.inference.rules import (
    RULES,
    Rule,
    TooManyOutcomesError,
    checked_like,
    checked_rewards,
    checked_table,
    choose_in_groups,
    cut_into_groups,
    known_of_draws,
    make_rule,
    needs_of,
    of_draws,
)
from bonlib.tables import RuleTable

Known = Mapping[str, Any]


def measure(
    rule: Rule, rewards: ArrayLike, *, gold: ArrayLike | None = None, lengths: ArrayLike | None = None,
    known: Known | None = None, rounds: int = 4, seed: int = 0,
) -> RuleTable:  # fmt: skip
    """Return what a rule makes of stored draws, on average over prompts and prompt by prompt.

    Args:
        rule: which takes n draws.
        rewards: of M >= n draws to each of P prompts, shape (P, M), by which the rule chooses.
        gold: a second reward of the same draws, to judge by, shape (P, M).
        lengths: tokens of the draws, shape (P, M).
        known: what the rule needs to know beside the rewards, as of `bonlib.inference.rules.choose_in_groups`; and
            responses, (P, M), which of the draws are one response, for the KL.
        rounds: random orders of the draws that are cut into groups of n. The best of n, or of a random number, and a
            random one are counted over all subsets instead.
        seed: of the orders, and of the rule.

    Returns:
        A table of one row, with `by_prompt` of `spend` and, as kl, of `law_kl`.

    Raises:
        ValueError: if n is above M, an array has another shape or a number that is not finite, or `known` lacks
            something.
    """
    found = spend(rule, rewards, gold=gold, lengths=lengths, known=known, rounds=rounds, seed=seed)
    return RuleTable({repr(rule): found | {"kl": law_kl(rule, rewards, known=known)}})


def compare_rules(rules: Iterable[tuple[str, Rule]], rewards: ArrayLike, **given: Any) -> RuleTable:
    """Return what several rules make of the same draws, a row each.

    Args:
        rules: by what the rows are called.
        rewards: as of `measure`.
        **given: as of `measure`.

    Raises:
        ValueError: if two have one name, or as `measure` has it.
    """
    found: dict[str, Mapping[str, Array]] = {}
    for name, rule in rules:
        if name in found:
            raise ValueError(f"rules has {name!r} twice: call one of them otherwise")
        (found[name],) = measure(rule, rewards, **given).by_prompt.values()
    return RuleTable(found)


def rules_at(n: int, rewards: ArrayLike, known: Iterable[str] = ()) -> list[tuple[str, Rule]]:
    """Return the rules that draws allow at a budget, each at the values of its knob that the table of rules has.

    There is best-of-k, too, for k = 2, 4, 8 … below n: the n that is best is the first thing to try. Rules that have to
    be told more than n and a knob that has values there are left out.

    Args:
        n: draws that each may make.
        rewards: of the draws, shape (P, M): a knob in units of reward is measured in their standard deviation among the
            draws of a prompt, the root of the mean square over prompts.
        known: what is known of the draws beside their rewards; rules that need more are left out.

    Returns:
        Rules by names such as "best, n = 8" and "soft, temperature = 0.414 (0.3 sd)".
    """
    n = whole("n", n, 1)
    spread = float(np.sqrt(checked_rewards(rewards).var(axis=-1).mean())) or 1.0
    found = []
    for entry in RULES.values():
        fields = signature(entry.make).parameters.values()
        turned = {"n", entry.knob} if entry.grid else {"n"}
        if {field.name for field in fields if field.default is field.empty} - turned:
            continue
        for value in entry.grid or (None,):
            unit = spread if entry.scale else 1.0
            rule = make_rule(entry.name, n=n, **({} if value is None else {entry.knob: value * unit}))
            knob = "" if value is None else f", {entry.knob} = {value * unit:.3g}"
            in_units = f" ({value:g} sd)" if entry.scale else ""
            found += [(f"{entry.name}{knob}{in_units}", rule)] if set(rule.needs) <= set(known) else []
        if entry.make is BestOfN:
            found += [(f"best, n = {k}", BestOfN(k)) for k in (2**power for power in range(1, n.bit_length())) if k < n]
    return found


def spend(
    rule: Rule, rewards: ArrayLike, *, gold: ArrayLike | None = None, lengths: ArrayLike | None = None,
    known: Known | None = None, rounds: int = 4, seed: int = 0,
) -> dict[str, Array]:  # fmt: skip
    """Return what a rule makes of the draws of each prompt, without bias, shape (P,) each.

    Draws in random order are cut into groups of n, each of which the rule chooses from; the mean over groups and orders
    is a U-statistic over some of the subsets. The best of n, or of a random number, and a random one are counted over
    all subsets. Arguments as in `measure`.

    Returns:
        reward of what is kept; control, that of a random one; win_rate against draws of the prompt *outside* the group
        that was chosen from, ties counting one half, NaN if n = M leaves none; spent, the draws made; and, where they
        are given, gold and gold_control, length of what is kept, and tokens of all draws made.

    Raises:
        ValueError: as `measure` has it.

    Source: Hoeffding 1948; Blom 1976 (incomplete U-statistics).
    """
    table = checked_table(rewards)
    if not len(table):
        raise ValueError(f"rewards has shape {table.shape}; it must be (prompts, draws) with a prompt at least")
    whole("n", rule.n, 1, table.shape[1], what=f"with {table.shape[1]} draws a prompt it")
    values = {"reward": table}
    if gold is not None:
        values["gold"] = checked_like("gold", gold, table)
    if lengths is not None:
        values["length"] = checked_like("lengths", lengths, table)
    if (chances := chances_to_look(rule)) is not None:
        found = _over_all_subsets(rule, chances, values)
    else:
        parts = list(_in_orders(rule, values, known or {}, whole("rounds", rounds, 1), whole("seed", seed)))
        found = {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
    found["control"] = table.mean(axis=1)
    if gold is not None:
        found["gold_control"] = values["gold"].mean(axis=1)
    return found


def chances_to_look(rule: Rule) -> Array | None:
    """Return how likely a rule looks at 1, 2, … n draws and keeps the best, (n,); None if it does something else."""
    if isinstance(rule, BestOfN | RandomOfN):  # a random one is the best of one
        return np.eye(rule.n)[-1 if isinstance(rule, BestOfN) else 0]
    return rule.count.chances(rule.n) if isinstance(rule, BestOfRandomN) else None


def _over_all_subsets(rule: Rule, chances: Array, values: Mapping[str, Array]) -> dict[str, Array]:
    rewards = values["reward"]
    prompts, m = rewards.shape
    spent = chances @ np.arange(1, rule.n + 1) if isinstance(rule, BestOfRandomN) else float(rule.n)
    # A choice goes by every digit, a win does not.
    found = {name: best_of_random_n_mean(rewards, chances, each, rounding=0.0) for name, each in values.items()}
    found["win_rate"] = best_of_random_n_win_rate(rewards, chances) if rule.n < m else np.full(prompts, np.nan)
    found["spent"] = np.full(prompts, spent)
    if "length" in values:
        found["tokens"] = spent * values["length"].mean(axis=1)
    return found


def _in_orders(
    rule: Rule, values: Mapping[str, Array], known: Known, rounds: int, seed: int
) -> Iterator[dict[str, Array]]:
    """What the rule makes of the draws in random orders, an order at a time."""
    ranks = snapped(values["reward"])
    values = dict(values) | {"key": ranks, "rank": rankdata(ranks, axis=1)}
    told = known_of_draws(rule, known, ranks.shape)
    for number in range(rounds):
        rng = np.random.default_rng([seed, number])
        order = rng.permuted(np.tile(np.arange(ranks.shape[1]), (len(ranks), 1)), axis=1)
        shuffled = {name: np.take_along_axis(each, order, axis=1) for name, each in values.items()}
        needed = {name: _in_order(name, each, order) for name, each in told.items()}
        kept, spent = choose_in_groups(rule, shuffled["reward"], seed=int(rng.integers(2**31)), known=needed)
        of_kept = {name: np.take_along_axis(each, kept, axis=1) for name, each in shuffled.items()}
        found = {name: of_kept[name].mean(axis=1) for name in values if name not in ("key", "rank")}
        yield found | {
            "win_rate": _wins(shuffled["key"], of_kept["key"], of_kept["rank"], rule.n),
            "spent": spent.mean(axis=1),
            **_tokens(shuffled, spent, rule.n),
        }


def _in_order(name: str, table: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    """What is known of the draws, (P, M, …), in another order; distances, (P, M, M), on both axes."""
    ordered = table[np.arange(len(order))[:, None], order]
    return np.take_along_axis(ordered, order[:, None, :], axis=2) if name == "distances" else ordered


def _wins(keys: Array, kept: Array, ranks: Array, n: int) -> Array:
    """How often what is kept beats a draw outside its group: those that it beats, less those of them inside."""
    groups = cut_into_groups(keys, n)
    m, mine = keys.shape[1], kept[..., None]
    if m == n:
        return np.full(len(keys), np.nan)
    inside = np.count_nonzero(groups < mine, axis=-1) + np.count_nonzero(groups == mine, axis=-1) / 2
    return ((ranks - 0.5 - inside) / (m - n)).mean(axis=1)


def _tokens(values: Mapping[str, Array], spent: NDArray[np.intp], n: int) -> dict[str, Array]:
    """Tokens of the draws that were made, the first of each group."""
    if "length" not in values:
        return {}
    upto = np.cumsum(cut_into_groups(values["length"], n), axis=-1)
    return {"tokens": np.take_along_axis(upto, spent[..., None] - 1, axis=-1)[..., 0].mean(axis=1)}


def law_kl(rule: Rule, rewards: ArrayLike, *, known: Known | None = None) -> Array:
    """Return KL(law of the rule ‖ reference) of each prompt, in nats, in the world that its draws are, shape (P,).

    That world has the M draws as outcomes, equally likely, and draws of one response and reward as one. The law is
    exact there, but the world is coarser than the reference. So the KL is too small: that of best-of-n, without ties
    log n − (n − 1)/n in truth, by (n/M)²/24 or 0.00016, 0.00065 and 0.0026 nats at n/M = 1/16, 1/8 and 1/4. Where the
    law depends on values that few draws have, it is by more: of normal rewards soft best-of-8 at λ = 0.3 has 0.961, and
    0.952, 0.943 and 0.916 were found on average. For best-of-n with known log-probabilities, or responses that repeat,
    `bonlib.estimates.best_of_n_kl` is the better estimate.

    Args:
        rule: any.
        rewards: of M draws to each of P prompts, shape (P, M).
        known: as of `measure`; the law is given, by name, what the rule needs that it takes.

    Returns:
        NaN where the law is not known, takes too long, or does not take what the choice needs.
    """
    table = checked_table(rewards)
    unknown = np.full(len(table), np.nan)
    if not hasattr(rule, "law"):
        return unknown
    taken = [name for name in needs_of(rule) if name in signature(rule.law).parameters]
    if set(needs_of(rule)) - {*taken, "responses"}:
        return unknown
    named, told = (known or {}).get("responses"), known_of_draws(rule, known, table.shape)
    responses = np.indices(table.shape)[1] if named is None else of_draws("responses", named, table.shape)
    try:
        each = enumerate(zip(table, responses, strict=True))
        return np.array([_kl(rule, *row, {name: told[name][place] for name in taken}) for place, row in each])
    except TooManyOutcomesError:
        return unknown


def _kl(rule: Any, rewards: Array, responses: NDArray[Any], told: Known) -> float:
    numbers: dict[Any, int] = {}
    places = [numbers.setdefault(pair, len(numbers)) for pair in zip(responses, rewards.tolist(), strict=True)]
    _, first, times = np.unique(places, return_index=True, return_counts=True)
    world = Outcomes(times / len(rewards), rewards[first])
    needed = {name: each[first] for name, each in told.items()}
    if "distances" in needed:
        needed["distances"] = needed["distances"][:, first]
    return kl_divergence(rule.law(world, **needed), world.probs)
