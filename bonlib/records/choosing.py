"""Rules that spend draws, on records: which rows are kept, and which rule would have served the scores best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.exact import Array
from bonlib.inference.best_of_n import RandomOfN
from bonlib.inference.measure import rules_at, spend
from bonlib.inference.rules import Rule, choose_in_groups
from bonlib.inference.votes import MajorityVote
from bonlib.records.records import Records, with_enough
from bonlib.tables import mean_and_error

if TYPE_CHECKING:
    import pandas as pd

BUDGET = 16  # draws that each rule may make
DRAWS = 2 * BUDGET  # of a prompt that are looked at, the first, where prompts are many: more of these tell more
LOOKED_AT = 2**15  # draws in all, of prompts at equal distances: the table is to take no longer than the curve
ROUNDS = 2, 8  # orders of the draws, at least and at most
Rows = NDArray[np.intp]


def kept_rows(records: Records, rule: Rule, *, seed: int = 0) -> tuple[Rows, Rows]:
    """Return which rows a rule keeps of each n draws of a prompt, in their order, and how many draws each took.

    Args:
        records: with a score, unless the rule needs none.
        rule: which takes n draws.
        seed: of the choice.

    Raises:
        ValueError: if no prompt has n draws, or the records lack what the rule needs.
    """
    unscored = not records.scores and isinstance(rule, MajorityVote | RandomOfN)
    rewards = np.zeros(len(records)) if unscored else records.reward
    found = []
    for number, rows in enumerate(with_enough(records, rule.n)):
        known = known_of(records, rows)
        if missing := [name for name in getattr(rule, "needs", ()) if name not in known]:
            raise ValueError(
                f"{records.source} has no {missing[0]} for {type(rule).__name__}: name their column, or take another "
                "rule"
            )
        kept, spent = choose_in_groups(rule, rewards[rows], seed=seed + number, known=known)
        found.append((np.take_along_axis(rows, kept, axis=1).ravel(), spent.ravel()))
    places, spent = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    return places[order], spent[order]


def known_of(records: Records, rows: Rows) -> dict[str, Any]:
    """Return what is known of the draws in some rows, (Q, m), by the names by which rules ask for it."""
    import pandas as pd

    texts = pd.factorize(records.responses[rows].ravel())[0]  # numbers are compared faster
    known: dict[str, Any] = {"responses": texts.reshape(rows.shape)}
    if records.answers is not None:
        known["answers"] = records.answers[rows]
    if records.log_probs is not None:
        log_probs = records.log_probs[rows]
        known |= {"log_probs": log_probs} if (np.isfinite(log_probs) & (log_probs <= 0)).all() else {}
    return known


class Ways(NamedTuple):
    """What rules make of the draws at one budget.

    Attributes:
        table: a row a rule: spent, draws; reward, and judged if there is a second score or it is known what is right,
            each with its standard error over prompts.
        summary: which rule is best by what judges, as JSON takes it.
    """

    table: pd.DataFrame
    summary: dict[str, Any]


def ways_to_spend(records: Records, prompts: Rows, most: int) -> Ways | None:
    """Return what each rule that the records allow makes of the draws, at 16 of them or what there is.

    Args:
        records: with a score.
        prompts: which to ask, each with `most` draws at least; of many, some at equal distances.
        most: draws of each, of which 32 are looked at, or more if the prompts are few.

    Returns:
        None if there is one draw, nothing to choose from.
    """
    import pandas as pd

    if most < 2:
        return None
    count, budget = min(most, max(DRAWS, LOOKED_AT // len(prompts))), min(most, BUDGET)
    asked = prompts[np.unique(np.linspace(0, len(prompts) - 1, min(len(prompts), LOOKED_AT // count)).astype(int))]
    rows = (np.cumsum(records.counts) - records.counts)[np.sort(asked), None] + np.arange(count)
    rewards, known, (judge, judged) = records.reward[rows], known_of(records, rows), _judge(records)
    gold, rounds = None if judged is None else judged[rows], int(np.clip(LOOKED_AT // rows.size, *ROUNDS))
    found = {
        name: spend(rule, rewards, gold=gold, known=known, rounds=rounds)
        for name, rule in rules_at(budget, rewards, known)
    }
    columns = {"spent": "spent", "reward": "reward"} | ({} if judge is None else {"gold": "judged"})
    table = {
        rule: {
            name: value
            for source, column in columns.items()
            for name, value in mean_and_error(column, each[source]).items()
            if name != "spent_se"
        }
        for rule, each in found.items()
    }
    summary: dict[str, Any] = {"budget": budget, "prompts": len(asked), "draws": count, "judged_by": judge}
    if judge is not None and len(asked) >= 4:
        by_rule = {name: each["gold"] for name, each in found.items()}
        summary |= {"best": chosen_on_the_other_half(by_rule, list(by_rule), "best")}
        tuned = [name for name in by_rule if name == "best" or name.startswith("best, ")]
        summary |= {"best_n": chosen_on_the_other_half(by_rule, tuned, "best")}
    return Ways(pd.DataFrame.from_dict(table, orient="index").rename_axis("rule"), summary)


def chosen_on_the_other_half(by_rule: Mapping[str, Array], rules: Sequence[str], base: str) -> dict[str, Any]:
    """Return what the best of some rules gains, if it is chosen on every other prompt and judged on the rest.

    Both halves choose for each other, so that no luck of the choice is in it.

    Args:
        by_rule: what is to be large, by rule, (Q,) each, Q >= 2.
        rules: to choose among.
        base: the rule that the gain is over.

    Returns:
        The rules that the halves chose, and the gain with its standard error over prompts.
    """
    table, half = np.stack([by_rule[name] for name in rules]), np.arange(len(by_rule[base])) % 2
    chosen = [int(table[:, half == which].mean(axis=1).argmax()) for which in (0, 1)]
    gain = np.where(half == 0, table[chosen[1]], table[chosen[0]]) - by_rule[base]
    return {"rules": [rules[place] for place in chosen], **mean_and_error("gain", gain)}


def verdict(summary: Mapping[str, Any], reward: str) -> str:
    """Return in plain words which rule would have served the scores best.

    Args:
        summary: of `Ways`.
        reward: name of the score by which rules choose.
    """
    judge, most = summary["judged_by"], f"the best of {summary['budget']}"
    if judge is None:
        return (
            f"By {reward} itself nothing beats {most}, which keeps the highest of the same draws; a second score, or "
            f"what is right, would tell which rule serves best what {reward} stands for."
        )
    if "best" not in summary:
        return f"There are too few prompts to choose a rule by {judge} on one half and judge it on the other."
    halves = "chosen on one half of the prompts and judged on the other"
    found, fewer = summary["best"], summary["best_n"]
    names = " or ".join(dict.fromkeys(found["rules"]))
    if names == "best":
        return f"By {judge} nothing beats {most}: each half of the prompts chooses it."
    gain = f"{found['gain']:.3g} ± {found['gain_se']:.2g}"
    if found["gain"] > 2 * found["gain_se"]:
        said = f"By {judge}, {names} beats {most} by {gain}, {halves}."
    else:
        said = f"By {judge} nothing beats {most} by more than twice the error: {names}, {halves}, gains {gain}."
    if set(fewer["rules"]) == {"best"}:
        return said
    numbers = " or ".join(dict.fromkeys(name.partition("n = ")[2] or str(summary["budget"]) for name in fewer["rules"]))
    return f"{said} The best of {numbers}, likewise, gains {fewer['gain']:.3g} ± {fewer['gain_se']:.2g}."


def _judge(records: Records) -> tuple[str | None, Array | None]:
    """What tells a rule that is good from one that has a high reward: a second score, or what is right."""
    names = list(records.scores)
    if len(names) > 1:
        return names[1], records.scores[names[1]]
    if records.correct is None or names == ["correct"]:
        return None, None
    return "right answers", records.correct.astype(np.float64)
