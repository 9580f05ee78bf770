"""Rules that spend draws, on records: which rows are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.inference.best_of_n import RandomOfN
from bonlib.inference.rules import Rule, choose_in_groups
from bonlib.inference.votes import MajorityVote
from bonlib.records.records import Records, with_enough

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
