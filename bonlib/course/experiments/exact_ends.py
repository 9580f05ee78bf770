"""Where each method ends on the enumerable model, what stands between, and what best-of-k makes of its end.

Each is there as its own optimum, as a table and a network trained by exact gradients, and from as many draws a prompt
as all others, with several seeds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq

from bonlib.course.experiments.exact_runs import (
    ITERATED,
    TINY,
    Curve,
    ExactRun,
    N,
    Options,
    contestants,
    method_of,
    rate_of,
    run_all,
    trained,
    world,
)
from bonlib.course.experiments.on_top import best_of_k
from bonlib.course.experiments.optima import FAMILIES, optimum
from bonlib.course.experiments.results import RESULTS, add_run, done_runs, provenance
from bonlib.course.runner import commit_of_workbook
from bonlib.exact import Array, Outcomes, kl_divergence
from bonlib.methods import METHODS

TABLE = RESULTS / "exact_ends.parquet"
EXACT_STEPS, STEPS = 200, 150  # by exact gradients; from draws
DRAWS = 8192  # of a prompt in a whole run, stored ones or the policy's own
SEEDS = 5
FILTERED = 4  # draws of which policy filtration keeps one, as it is trained elsewhere
# Of methods that are not in `contestants`: what `equal_beta` says of their ends, a minute's work for some of them.
BETAS: dict[str, dict[str, float | None]] = {
    "letters": {
        "wind": 0.16685,
        "infalign-ctrl": 0.22168,
        "max-at-k": 4.4275,
        "pf": 2.9988,
        "qrpo": 0.10626,
        "bon-regression": None,
    }
}
WEIGHTED = ("bon-sft", "bonbon")  # that learn from all stored draws by their weights, beside groups
PAIRS: Options = (("generations", 2048), ("pairs", 16_384))  # of DPO and IPO: 6 draws a prompt are theirs elsewhere


def run_end(run: ExactRun, curve: Curve | None = None) -> dict[str, Any]:
    """Train, and judge the end by best-of-N, by the method's own optimum, and with best-of-k on top.

    Args:
        run: says how.
        curve: as in `run_exactly`.

    Returns:
        Means over prompts: what `Judgement` has; "own_reverse_kl" and "own_forward_kl", from the policy to its method's
        optimum and back, NaN where there is none; and what `best_of_k` returns.
    """
    prompts, method, begun = world(run.reward), method_of(run), time.process_time()
    log_probs = trained(run, curve)
    assert isinstance(log_probs, torch.Tensor)  # it is a model from the trainer only
    optima = [optimum(method, outcomes, run.steps, run.group) for outcomes in prompts.outcomes]
    found = _judged(log_probs, optima, run.reward)
    return {**asdict(run), **found, "processor_seconds": time.process_time() - begun}


def _judged(log_probs: torch.Tensor, optima: Sequence[Array | None], reward: str) -> dict[str, float]:
    prompts = world(reward)
    found = prompts.judge(log_probs, N).means()
    found["mean_reward"] = found.pop("reward")  # `reward` says which
    policies = log_probs.exp().numpy()
    policies /= policies.sum(1, keepdims=True)
    rows = []
    for policy, own, outcomes in zip(policies, optima, prompts.outcomes, strict=True):
        rows.append(
            {
                "own_reverse_kl": np.nan if own is None else kl_divergence(policy, own),
                "own_forward_kl": np.nan if own is None else kl_divergence(own, policy),
                **best_of_k(outcomes, policy, N),
            }
        )
    return found | {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def equal_beta(family: Callable[[Outcomes, float], Array], reward: str = "letters") -> float:
    """Return the β whose policy is, on average over prompts, as far from the reference as best-of-N."""
    outcomes = world(reward).outcomes
    goal = sum(kl_divergence(o.best_of(N), o.probs) for o in outcomes)

    def excess(log_beta: float) -> float:
        return sum(kl_divergence(family(o, math.exp(log_beta)), o.probs) for o in outcomes) - goal

    high = math.log(50)
    while excess(high - 0.5) < 0:
        high -= 0.5
    return float(f"{math.exp(brentq(excess, high - 0.5, high, xtol=1e-6)):.5g}")  # the same on every machine


def run_family(name: str, reward: str = "letters") -> dict[str, Any]:
    """Return the row of one of `FAMILIES`: its member that is on average as far from the reference as best-of-N."""
    begun, family = time.process_time(), FAMILIES[name]
    beta = equal_beta(family, reward)
    optima = [family(o, beta) for o in world(reward).outcomes]
    log_probs = torch.from_numpy(np.stack(optima)).clamp(min=TINY).log()
    about = {"method": name, "reward": reward, "policy": "table", "training": "optimum", "beta": beta}
    return about | _judged(log_probs, optima, reward) | {"processor_seconds": time.process_time() - begun}


def grid(reward: str = "letters") -> Iterator[ExactRun]:
    """Yield the runs: optima, tables, networks by exact gradients, and networks from draws, seed by seed."""
    entered = [*contestants(reward), *((method, beta, ()) for method, beta in BETAS[reward].items())]
    for kind, policy, training, steps in (
        ("optimum", "table", "optimum", EXACT_STEPS),
        ("table", "table", "exact", 2 * EXACT_STEPS),
        ("network", "network", "exact", EXACT_STEPS),
    ):
        for method, beta, options in entered:
            run = _run(method, reward, policy, training, beta, options, steps)
            if kind != "optimum" or optimum(method_of(run), world(reward).outcomes[0], steps, run.group) is not None:
                yield run
    for seed in range(SEEDS):
        for method, beta, options in (*entered, *((method, None, (("picks", "weights"),)) for method in WEIGHTED)):
            if method != "jbond":  # which has no end
                yield _from_draws(method, reward, beta, options, seed)


def _from_draws(method: str, reward: str, beta: float | None, options: Options, seed: int) -> ExactRun:
    stored = method == "ipo" or METHODS[method].algorithm == "offline"
    if method in ("ipo", "dpo"):
        options = PAIRS
    training, count = ("stored", DRAWS) if stored else ("samples", DRAWS // STEPS)
    if method == "pf":
        count -= count % FILTERED
    return _run(method, reward, "network", training, beta, options, STEPS, count, seed)


def _run(
    method: str,
    reward: str,
    policy: str,
    training: str,
    beta: float | None,
    options: Options,
    steps: int,
    count: int = ExactRun.count,
    seed: int = 0,
) -> ExactRun:
    if dict(options).get("anchor_every"):  # as many rounds, whatever the steps
        options = tuple({**dict(ITERATED), "anchor_every": -(-steps // 3)}.items())
    moves = method == "jbond" or "anchor_every" in dict(options)
    return ExactRun(
        method,
        reward,
        policy,
        training,
        beta=beta,
        learning_rate=rate_of(method, policy),
        steps=steps,
        count=count,
        seed=seed,
        options=options,
        decay=not moves,  # it would stop what has no end, or another in each round
        group=FILTERED if method == "pf" else 0,
    )


def run_ends(reward: str = "letters") -> None:
    """Do the runs that have no row yet, and the families of optima."""
    for name in FAMILIES:
        identity = f"{name}, {reward}"
        if identity not in done_runs(TABLE):
            about = provenance(torch.device("cpu"), commit_of_workbook())
            add_run(TABLE, identity, run_family(name, reward) | about)
    run_all(grid(reward), table=TABLE, figures=run_end)
