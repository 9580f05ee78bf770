"""Which way to spend draws would have served the scores of records best: each rule, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bonlib.exact import Array
from bonlib.inference.measure import chances_to_look, rules_at
from bonlib.inference.rules import Rule, choose_in_groups
from bonlib.records.choosing import Rows, known_of
from bonlib.records.measures import Measured
from bonlib.records.records import Records
from bonlib.tables import mean_and_error

if TYPE_CHECKING:
    import pandas as pd

BUDGET = 16  # draws that each rule may make
LOOKED_AT = 2**16  # draws in an order of them: the table is to take no longer than the curve
AT_LEAST = 4  # groups of a prompt in an order, where it has the draws; more prompts tell more than more groups
ROUNDS = 2, 8  # orders of the draws, at least and at most
FEWEST = 10  # prompts, half of which choose a rule: the error of fewer is not known well enough to be doubled


class Ways(NamedTuple):
    """What rules make of the draws at one budget.

    Attributes:
        table: a row a rule: spent, draws; reward, and judged if there is a second score or it is known what is right,
            each with its standard error over prompts.
        summary: which rule is best by what judges, as JSON takes it.
    """

    table: pd.DataFrame
    summary: dict[str, Any]


def ways_to_spend(records: Records, measured: Measured, *, seed: int = 0) -> Ways | None:
    """Return what each rule that the records allow makes of the draws, at 16 of them or what the curve goes up to.

    The best of n, or of a random number, and one draw have their numbers from the curve, over all subsets. The others
    choose from the same groups, cut from all draws of a prompt in random orders.

    Args:
        records: with a score.
        measured: their curve, whose prompts are asked; of many, some at equal distances. Where it found that the
            log-probabilities cannot be right, rules that need them are left out.
        seed: of the orders, and of the rules.

    Returns:
        None if there is one draw, nothing to choose from.
    """
    import pandas as pd

    most = int(measured.curve.table.index[-1])
    if most < 2:
        return None
    budget, by_file = min(most, BUDGET), np.argsort(measured.prompts)
    count = min(len(by_file), LOOKED_AT // (AT_LEAST * budget))
    places = by_file[np.unique(np.linspace(0, len(by_file) - 1, count).astype(int))]
    asked = measured.prompts[places]
    judge, in_curve, judged = _judge(records)
    curves = {"reward": measured.curve.by_prompt["reward"][places]}
    values = {"reward": records.reward}
    if judged is not None:
        curves["judged"], values["judged"] = measured.curve.by_prompt[in_curve][places], judged
    groups = _groups(records, asked, budget, np.random.default_rng(seed))
    known = known_of(records, groups)
    if measured.kl_from.startswith("counted"):
        known.pop("log_probs", None)
    of = np.searchsorted(asked, records.prompt[groups[:, 0]])
    times = np.bincount(of)

    def made(rule: Rule) -> dict[str, Array]:
        if (chances := chances_to_look(rule)) is not None:
            looks = np.arange(1, len(chances) + 1)
            found = {name: curve[:, : len(looks)] @ chances for name, curve in curves.items()}
            return {"spent": np.full(len(asked), chances @ looks), **found}
        kept, spent = choose_in_groups(rule, records.reward[groups], seed=seed, known=known)
        rows = np.take_along_axis(groups, kept, axis=1)[:, 0]
        found = {name: np.bincount(of, value[rows]) / times for name, value in values.items()}
        return {"spent": np.bincount(of, spent[:, 0]) / times, **found}

    by_rule = {name: made(rule) for name, rule in rules_at(budget, _centred(records, asked), known)}
    table = {
        rule: {name: value for column in each for name, value in mean_and_error(column, each[column]).items()}
        for rule, each in by_rule.items()
    }
    summary: dict[str, Any] = {"budget": budget, "prompts": len(asked), "judged_by": judge}
    if judged is not None and len(asked) >= FEWEST:
        scores = {name: each["judged"] for name, each in by_rule.items()}
        numbers = [name for name in scores if name in ("best", "random") or name.startswith("best, ")]
        summary |= {"best": chosen_on_the_other_half(scores, list(scores), "best")}
        summary |= {"best_n": chosen_on_the_other_half(scores, numbers, "best")}
    return Ways(pd.DataFrame.from_dict(table, orient="index").rename_axis("rule").drop(columns="spent_se"), summary)


def chosen_on_the_other_half(by_rule: Mapping[str, Array], rules: Sequence[str], base: str) -> dict[str, Any]:
    """Return what the best of some rules gains, if it is chosen on every other prompt and judged on the rest.

    Both halves choose for each other, so that no rule is judged on prompts on which it was lucky to be chosen.

    Args:
        by_rule: what is to be large, by rule, (Q,) each, Q >= 2.
        rules: to choose among.
        base: one of them, which the gain is over, and which is chosen where none is better.

    Returns:
        The rules that the halves chose, and the gain with its standard error over prompts.
    """
    ordered = [base, *(name for name in rules if name != base)]
    table, half = np.stack([by_rule[name] for name in ordered]), np.arange(len(by_rule[base])) % 2
    gains = table - table[0]
    gains[np.abs(gains) < 1e-12 * np.abs(table).max()] = 0.0  # the same draws, added up in another order
    chosen = [int(gains[:, half == which].mean(axis=1).argmax()) for which in (0, 1)]
    gain = np.where(half == 0, gains[chosen[1]], gains[chosen[0]])
    return {"rules": [ordered[place] for place in chosen], **mean_and_error("gain", gain)}


def verdict(summary: Mapping[str, Any], reward: str) -> str:
    """Return in plain words which rule would have served the scores best.

    Args:
        summary: of `Ways`.
        reward: name of the score by which rules choose.
    """
    judge, base = summary["judged_by"], _called("best", summary["budget"])
    if judge is None:
        return (
            f"By {reward} itself nothing beats {base}, which keeps the highest of the same draws; a second score, or "
            f"what is right, would tell which rule serves best what {reward} stands for."
        )
    if "best" not in summary:
        return (
            f"There are too few prompts ({summary['prompts']}; it takes {FEWEST}) to choose a rule by {judge} on one "
            "half and judge it on the other."
        )
    found, numbers = summary["best"], summary["best_n"]
    if set(found["rules"]) == {"best"}:
        return f"By {judge}, no rule is better than {base}: each half of the prompts chooses it."
    names = [_called(name, summary["budget"]) for name in dict.fromkeys(found["rules"])]
    others = [name for name in names if name != base]
    if clear := found["gain"] > 2 * found["gain_se"]:
        said = f"By {judge}, {' or '.join(others)} is better than {base}: "
    else:
        said = f"By {judge}, no rule is clearly better than {base}: "
    if len(names) == 1:
        which = "it" if clear else names[0]
        said += f"each half of the prompts chooses {which}, and on the other half it is {_compared(found)}."
    else:
        first, second = (
            ("the first", "the second")
            if clear and others == names
            else (f"{name}{' itself' * (name == base)}" for name in names)
        )
        said += (
            f"one half of the prompts chooses {first} and the other half {second}; each judged on the half that "
            f"did not choose it, they are {_compared(found)} on average."
        )
    if found["rules"] == numbers["rules"] or set(numbers["rules"]) == {"best"}:
        return said
    ns = " or ".join(map(str, sorted({_number(name, summary["budget"]) or 0 for name in numbers["rules"]})))
    return f"{said} Among fixed numbers of draws, n = {ns} is chosen in the same way, and is {_compared(numbers)}."


def typeset(text: str) -> str:
    """Return a rule's name, or a number, with minus signs for the hyphens of its exponents."""
    return re.sub(r"(?<=\de)-(?=\d)", "−", text)


def _compared(found: Mapping[str, Any]) -> str:
    size = typeset(f"{abs(found['gain']):.3g} ± {found['gain_se']:.2g}")
    return f"{'better' if found['gain'] > 0 else 'worse'} by {size}"


def _called(name: str, budget: int) -> str:
    """A rule in a sentence."""
    number = _number(name, budget)
    return f"“{typeset(name)}”" if number is None else "one draw (n = 1)" if number == 1 else f"the best of {number}"


def _number(name: str, budget: int) -> int | None:
    """The n of a rule that keeps the best of n draws."""
    if name in ("best", "random"):
        return budget if name == "best" else 1
    return int(name.removeprefix("best, n = ")) if name.startswith("best, n = ") else None


def _groups(records: Records, asked: Rows, n: int, rng: np.random.Generator) -> Rows:
    """Rows of groups of n draws of some prompts, (G, n), in random orders of all draws of each prompt."""
    chosen = np.isin(np.arange(len(records.prompts)), asked)
    most = max(AT_LEAST, LOOKED_AT // (len(asked) * n))
    of_asked = [rows[chosen[which]] for which, rows in records.blocks()]
    cut = [(rows, n * min(rows.shape[1] // n, most)) for rows in of_asked if len(rows)]
    rounds = int(np.clip(LOOKED_AT // sum(len(rows) * width for rows, width in cut), *ROUNDS))
    return np.concatenate(
        [rng.permuted(rows, axis=1)[:, :width].reshape(-1, n) for _ in range(rounds) for rows, width in cut]
    )


def _centred(records: Records, asked: Rows) -> Array:
    """Rewards of some prompts less their mean, (1, R): what they vary by among the draws of a prompt."""
    means = np.bincount(records.prompt, records.reward) / records.counts
    return (records.reward - means[records.prompt])[np.isin(records.prompt, asked)][None]


def _judge(records: Records) -> tuple[str | None, str, Array | None]:
    """What tells a rule that is good from one that has a high reward, a second score or what is right; its curve."""
    names = list(records.scores)
    if len(names) > 1:
        return names[1], "gold", records.scores[names[1]]
    if records.correct is None or names == ["correct"]:
        return None, "", None
    return "right answers", "right", records.correct.astype(np.float64)
