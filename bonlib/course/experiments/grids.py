"""Which runs on sentiment control a profile makes, for each of the notebooks that draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bonlib.course.experiments.sentiment import FEW, Run
from bonlib.course.profiles import Profile
from bonlib.methods import METHODS

RATES = (3e-5, 1e-4, 3e-4)
BUDGETS = {50: RATES, 200: RATES[:2], 800: RATES[:2]}  # steps, and the learning rates that were tried
LONGEST = 3200  # steps, of which the rate of 800 and the next lower one were tried
LOWER = {1e-4: 3e-5, 3e-5: 1e-5}
PRICED = ("kl-rl-rloo", "vbon-bound", "bond", "bon-sft", "bon-regression")
# Of KL-RL for an n: its optimum is on average as far from the reference as best-of-n, by the draws of training prompts.
EQUAL_BETAS = {8: 0.121, 32: 0.0442}
# Of the adapter of the readable reference: rates of summaries; of some a smaller one was tried.
READABLE_RATES = {"kl-rl-ppo": 3e-4}
READABLE_RATE = 5e-4
READABLE_LOWER = 2e-4
READABLE_LOWERED = (
    *((method, steps) for steps in BUDGETS for method in ("kl-rl-rloo", "bon-sft")),
    *(("bon-regression", steps) for steps in (50, 200)),
    *(("vbon-bound", steps) for steps in (50, 800)),
)
READABLE_BETA = 0.1  # of DPO
READABLE_PACE = 0.05  # of J-BOND's anchor: 50 steps are two and a half rounds of best-of-2


def _by_steps(table: dict[tuple[str, int], Sequence[float]]) -> dict[tuple[str, int, int], float]:
    """Rates by method, n and steps."""
    steps = (*BUDGETS, LONGEST)
    return {(*kind, each): rate for kind, rates in table.items() for each, rate in zip(steps, rates, strict=True)}


# The rate of a method for an n, for 50, 200, 800 and 3,200 steps: by its own objective, of off-policy methods on draws
# held out. With n = 32 the last are those of n = 8.
CHOSEN = _by_steps(
    {
        ("kl-rl-rloo", 8): (1e-4, 3e-5, 3e-5, 3e-5),
        ("vbon-bound", 8): (1e-4, 1e-4, 3e-5, 3e-5),
        ("bond", 8): (1e-4, 1e-4, 1e-4, 3e-5),
        ("bon-sft", 8): (1e-4, 3e-5, 3e-5, 1e-5),
        ("bon-regression", 8): (3e-5, 3e-5, 3e-5, 1e-5),
        ("kl-rl-rloo", 32): (1e-4, 1e-4, 1e-4, 3e-5),
        ("vbon-bound", 32): (1e-4, 1e-4, 1e-4, 3e-5),
        ("bond", 32): (3e-4, 1e-4, 1e-4, 3e-5),
        ("bon-sft", 32): (1e-4, 1e-4, 3e-5, 1e-5),
        ("bon-regression", 32): (1e-4, 1e-4, 3e-5, 1e-5),
    }
)
# The loss on the draws that are learned from would choose these instead, which overfit; so the smallest rate of all was
# tried as well.
OVERFIT = _by_steps(
    {
        ("bon-sft", 8): (1e-4, 1e-4, 1e-4, 1e-4),
        ("bon-regression", 8): (3e-5, 3e-5, 3e-5, 3e-5),
        ("bon-sft", 32): (3e-4, 1e-4, 1e-4, 1e-4),
        ("bon-regression", 32): (1e-4, 1e-4, 3e-5, 3e-5),
    }
)
BESIDE = (("bond", 8, 1, LONGEST, 1e-4), ("bond", 32, 0, LONGEST, 1e-4))  # once more with the rate of 800 steps
# What may hold a policy away. A larger batch and an adapter have rates of their own, each with those that were tried.
RANKS, RANK_RATES = (4, 16, 64), (3e-4, 1e-3)
LARGE_BATCH = {"bon-regression": RATES[:2], "vbon-bound": RATES[1:]}
# Methods and steps of the variants with other numbers of prompts, and of draws.
OF_PROMPTS = (("bon-regression", 200), ("vbon-bound", 200), ("bon-sft", 800))
OF_DRAWS = (("bon-regression", 800), ("bon-sft", 800))
CHEAP_M = 12  # 200 steps of vBoN with so many samples a prompt draw as much as 200 steps of J-BOND


def grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs of notebook 07, seed by seed: each method at its first value, then at its second."""
    chosen = methods or profile.training.methods or METHODS
    values = {method: setting_values(profile, method) for method in chosen}
    return [
        Run(method, value, seed)
        for seed in profile.training.seeds
        for place in range(max(map(len, values.values())))
        for method, mine in values.items()
        for value in mine[place : place + 1]
    ]


def setting_values(profile: Profile, method: str) -> Sequence[float]:
    """Return the values of a method's setting that a profile tries: its own, or as many of those the method has.

    A β means something else in each method that has one, so that KL-RL's serve those alone that have KL-RL's grid.
    """
    sizes, entry = profile.training, METHODS[method]
    own = {
        "dpo": sizes.dpo_betas,
        "bond": sizes.bond_ns,
        "n": sizes.ns,
        "beta": sizes.betas,
        "rate": sizes.anchor_rates,
        "every": [math.ceil(sizes.steps / moves) for moves in sizes.anchor_moves if moves <= sizes.steps],
    }
    if values := own.get(method):
        return values
    values = own.get(entry.setting) or entry.grid[: len(sizes.ns)]
    other = entry.setting == "beta" and entry.grid != METHODS["kl-rl-rloo"].grid
    return entry.grid[: len(values)] if other else values


def rate_grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs of the search for learning rates: half as long, at the middle value."""
    return [
        Run(method, values[len(values) // 2], 0, "learning_rates", changes=changes)
        for method in methods or METHODS
        for values in [setting_values(profile, method)]
        for rate in RATES
        for changes in [(("learning_rate", rate), ("steps", max(profile.training.steps // 2, 1)))]
    ]


def cdf_grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs of notebook 08, half as long: vBoN at N = 10 with M reference samples, or with learned quantiles.

    A quantile model takes minutes to learn, so that a profile with a single seed leaves it out.
    """
    seeds, ms = (0, 1, 2) if len(profile.training.seeds) > 1 else (0,), profile.training.ms
    changes = (("steps", max(profile.training.steps // 2, 1)),)
    return [
        Run(method, 10, seed, "cdf", cdf=cdf, m=m, changes=changes)
        for seed in seeds
        for method in _imitators(methods, "vbon-bound")
        for cdf, m in [*(("samples", m) for m in ms), *((("learned", FEW),) if len(seeds) > 1 else ())]
    ]


def budget_grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs that tell what holds vBoN back: at N = 8, one setting changed at a time."""
    sizes = profile.training
    tried: list[tuple[int | None, dict[str, Any]]] = [
        (sizes.draws, {}),
        (None, {"learning_rate": 3e-5}),
        (None, {"learning_rate": 3e-4}),
        (None, {"easing": 0.5}),
        (None, {"steps": 3 * sizes.steps}),
        (None, {"group": 16}),
    ]
    return [
        Run(method, 8, 0, "budget", m=m, changes=tuple(changes.items()))
        for m, changes in tried
        for method in _imitators(methods, "vbon")
    ]


def bond_grid(profile: Profile, methods: Sequence[str] = ()) -> list[Run]:
    """Return the runs of notebooks 09 and 10 beyond those of 07: one setting changed at a time, for every seed.

    As in `cdf_grid`, learned quantiles are for profiles with more than one.
    """
    steps = profile.training.steps
    pairs = (("group", 2), ("prompts", 32))  # as many prompts a step as J-BOND, and two responses to each
    changed: list[tuple[str, float, dict[str, Any]]] = [
        *(
            ("bond", n, {"options": (("jeffreys_weight", w),), "changes": (("decay", False),)})
            for n in (8, 4, 16)
            for w in (0.0, 0.5, 1.0)
        ),
        ("bond-iterative", max(steps // 5, 1), {"options": (("n", 4),)}),
        ("jbond", 1.0, {"options": (("anchor_every", max(steps // 4, 1)),)}),
        *(("jbond", 0.05, {"options": (("regulariser", gamma),)}) for gamma in (0.5, 1.0, 2.0, -1.0)),
        *(("kl-rl-rloo", beta, {"changes": pairs}) for beta in (0.001, 0.01, 0.1, 1.0)),
        *((("bond", 8, {"cdf": "learned", "m": FEW}),) if len(profile.training.seeds) > 1 else ()),
        ("bond", 8, {"m": FEW}),
        *(("vbon", n, {"m": CHEAP_M}) for n in (2, 8, 32)),
        ("jbond", 0.02, {"changes": (("decay", True),)}),
        ("jbond", 0.02, {"changes": (("steps", 6 * steps),)}),
    ]
    return [
        Run(method, value, seed, "bond", **others)
        for seed in profile.training.seeds
        for method, value, others in changed
        if not methods or method in methods
    ]


def price_grid(profile: Profile, methods: Sequence[str] = (), variant: str | None = None) -> list[Run]:
    """Return the runs that tell what closeness costs: the search for learning rates, what may hold away, all budgets.

    What a rate is chosen by is `bonlib.course.experiments.price.own_objective`.

    Args:
        profile: that of the variant.
        methods: those wanted; all that there are runs of if none.
        variant: a key of `bonlib.course.profiles.VARIANTS`, or None.
    """
    chosen, seeds = methods or PRICED, profile.training.seeds
    if variant == "readable":
        return [run for run in readable_grid() if not methods or run.method in methods]
    if variant is not None:
        return [
            priced_run(method, 8, seed, steps, (CHOSEN | OVERFIT)[method, 8, steps])
            for seed in seeds
            for method, steps in (OF_DRAWS if variant == "few-draws" else OF_PROMPTS)
            if method in chosen
        ]
    searched = [
        priced_run(method, n, 0, steps, rate)
        for n in EQUAL_BETAS
        for steps, rates in BUDGETS.items()
        for method in chosen
        for rate in rates
    ]
    searched += [
        priced_run(method, 8, 0, LONGEST, rate)
        for method in chosen
        for rate in (CHOSEN[method, 8, 800], LOWER[CHOSEN[method, 8, 800]])
    ]
    searched += [
        priced_run(method, n, 0, steps, min(LOWER.values()))
        for method, n, steps in OVERFIT
        if method in chosen and steps in (200, 800)
    ]
    searched += [priced_run(*settings) for settings in BESIDE if settings[0] in chosen]
    found = [
        priced_run(method, n, seed, steps, rate)
        for seed in seeds
        for (method, n, steps), rate in [*CHOSEN.items(), *OVERFIT.items()]
        if method in chosen
    ]
    apart = [method for method in LARGE_BATCH if method in chosen]
    batches = [priced_run(method, 8, 0, 50, rate, prompts=64) for method in apart for rate in LARGE_BATCH[method]]
    adapters = [
        priced_run(method, 8, 0, 200, rate, lora_rank=rank) for rank in RANKS for method in apart for rate in RANK_RATES
    ]
    return list(dict.fromkeys([*searched, *batches, *adapters, *found]))


def readable_grid() -> list[Run]:
    """Return the runs of the readable reference: the priced methods first, then what notebooks 07 to 10 compare."""
    eight = [priced_run(method, 8, seed, 50, READABLE_RATE) for seed in (0, 1) for method in PRICED]
    longer = [priced_run(method, 8, 0, 200, READABLE_RATE) for method in PRICED if method != "bond"]
    lower = [priced_run(method, 8, 0, steps, READABLE_LOWER) for method, steps in READABLE_LOWERED]
    settings = {"kl-rl-ppo": EQUAL_BETAS[8], "dpo": READABLE_BETA, "bonbon": 8, "vbon": 8, "jbond": READABLE_PACE}
    others = [
        replace(priced_run(method, 8, 0, 50, READABLE_RATES.get(method, READABLE_RATE)), value=value)
        for method, value in settings.items()
    ]
    bond, bound = (priced_run(method, 8, 0, 50, READABLE_RATE) for method in ("bond", "vbon-bound"))
    halves = [replace(bond, options=(*bond.options, ("jeffreys_weight", weight))) for weight in (0.0, 1.0)]
    return [*eight, *longer, *lower, *others, *halves, *(replace(bound, m=m) for m in (2, 8))]


def priced_run(method: str, n: int, seed: int, steps: int, rate: float, **others: Any) -> Run:
    """Return a run of one budget, with the stored draws' weights where a method has them, and other settings."""
    every = max(steps // 4, 1)
    changes = (("learning_rate", rate), ("steps", steps), ("measure_every", every), *others.items())
    options = (("picks", "weights"),) if "picks" in METHODS[method].options else ()
    value = EQUAL_BETAS[n] if METHODS[method].setting == "beta" else n
    return Run(method, value, seed, "price", changes=changes, options=options, target=n)


def _imitators(methods: Sequence[str], usual: str) -> Sequence[str]:
    """Return the methods of a sweep at one N."""
    for method in methods:
        if (setting := METHODS[method].setting) != "n":
            raise ValueError(f"method is {method!r}, whose setting is {setting}; this sweep is at one N")
    return methods or (usual,)
