"""Rules that spend draws, on records: which rows are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.checks import shown
from bonlib.inference.best_of_n import RandomOfN
from bonlib.inference.distances import word_distances
from bonlib.inference.rules import Rule, choose_in_groups, needs_of, of_draws
from bonlib.inference.votes import MajorityVote
from bonlib.records.records import Records, with_enough

REMEDIES = {  # where records lack what a rule needs
    "answers": "name their column, as in `--answer answer`, which is not taken by itself: it may be the right one",
    "log_probs": "name their column, as in `--log-prob log_prob`, with a finite number of at most 0 in each row",
    "partial": "it chooses while a model writes, see METHODS.md; give partial=… in Python",
}
Rows = NDArray[np.intp]


def kept_rows(
    records: Records, rule: Rule, *, seed: int = 0, told: Mapping[str, Any] | None = None
) -> tuple[Rows, Rows]:
    """Return which rows a rule keeps of each n draws of a prompt, in their order, and how many draws each took.

    Args:
        records: with a score, unless the rule needs none.
        rule: which takes n draws.
        seed: of the choice.
        told: what the rule needs to know, by name, where the records do not have it: a row each, (R, …); distances,
            (R, R), those of the words of a prompt's responses if not given.

    Raises:
        ValueError: if no prompt has n draws, or the records lack what the rule needs.
    """
    unscored = not records.scores and isinstance(rule, MajorityVote | RandomOfN)
    rewards = np.zeros(len(records)) if unscored else records.reward
    size = len(records)
    given = {
        name: of_draws(name, values, (size, size) if name == "distances" else (size,))
        for name, values in (told or {}).items()
    }
    found = []
    for number, rows in enumerate(with_enough(records, rule.n)):
        known = known_of(records, rows)
        for name, table in given.items():
            known[name] = table[rows[:, :, None], rows[:, None, :]] if name == "distances" else table[rows]
        needs = needs_of(rule)
        if "distances" in needs and "distances" not in known:
            known["distances"] = word_distances(records.responses[rows])
        if missing := [name for name in needs if name not in known]:
            remedy = REMEDIES.get(missing[0], "give it by name")
            raise ValueError(
                f"{shown(records.source)} has no {missing[0]} for {type(rule).__name__}: {remedy}, or take another rule"
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
