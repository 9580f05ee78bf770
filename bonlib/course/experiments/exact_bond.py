"""BOND and J-BOND on the enumerable language model, step by step: the runs behind notebooks 09 and 10."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bonlib.course.experiments.exact_ends import FEW, LEARNING_RATES, ExactRun
from bonlib.course.runner import ROOT

TABLE = ROOT / "data" / "results" / "exact_bond.csv"
STEPS = 300
EVERY = 50  # steps from one copy of the policy to the anchor to the next
SEEDS = (0, 1, 2)


def grid() -> list[ExactRun]:
    """Return the runs: each number of draws under each divergence, iterated, and J-BOND with one setting changed."""
    return [
        *(_run("bond", n=n, jeffreys_weight=w) for n in (4, 8, 16) for w in (0.5, 0.0, 1.0)),
        *(_run("bond", n=n, anchor_rate=1.0, anchor_every=EVERY) for n in (2, 4)),
        *(_run("jbond", anchor_rate=rate) for rate in (0.01, 0.02, 0.05, 0.1)),
        *(_run("jbond", anchor_rate=0.05, regulariser=gamma) for gamma in (0.5, 1.0, 2.0, -1.0)),
        _run("jbond", anchor_rate=1.0, anchor_every=EVERY),
        *(
            _run("jbond", seed, FEW, **options)
            for seed in SEEDS
            for options in ({"anchor_rate": 0.02}, {"anchor_rate": 1.0, "anchor_every": EVERY})
        ),
    ]


def _run(method: str, seed: int = 0, count: int | None = None, **options: Any) -> ExactRun:
    run = ExactRun(
        method,
        learning_rate=LEARNING_RATES[method],
        steps=STEPS,
        seed=seed,
        options=tuple(sorted(options.items())),
        decay=False,  # it would stop methods whose target moves
    )
    return run if count is None else replace(run, training="samples", count=count)
