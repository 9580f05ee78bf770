"""Every method on the enumerable language model, where it ends and how it goes there: runs of notebooks 04, 09, 10."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import torch
from scipy.optimize import brentq

from bonlib.cdf import Smoothing
from bonlib.checks import NotFiniteError, one_of
from bonlib.course.experiments.enumerated import (
    Distillation,
    EnumeratedPrompts,
    Judgement,
    ListedPolicy,
    Objective,
    TabularPolicy,
    train_exactly,
)
from bonlib.course.experiments.optima import optimum
from bonlib.course.experiments.results import RESULTS, add_run, claim, done_runs, options_text, provenance
from bonlib.course.making.enumerable import LENGTH, PROMPTS, letter_sentiment, vowel_count
from bonlib.course.runner import BUILD, commit_of_workbook
from bonlib.draws.samplers import SamplingSettings
from bonlib.exact import TiltReward, kl_divergence
from bonlib.methods import METHODS
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.bond import Bond
from bonlib.methods.jbond import JBond
from bonlib.models.loaded import LoadedModel, load_language_model
from bonlib.training.off_policy import OffPolicy
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import TrainingData, TrainSettings
from bonlib.training.trainer import train

TABLE = RESULTS / "exact_methods.parquet"
BOND_TABLE = RESULTS / "exact_bond.parquet"
N = 8
REWARDS = {"letters": letter_sentiment, "vowels": vowel_count}  # without and with ties
RATES = (2e-3, 6e-3, 18e-3)
FEW = 256  # draws a prompt and step, where they cost time
SHORT = 200  # steps where many runs are compared with each other
MS = (8, 64, 512)
SMOOTHINGS = get_args(Smoothing)
PAIRWISE = ("bonbon", "ipo", "dpo")  # there are too many pairs to list: they have samples only
# With which a method ends closest to best-of-N after a short exact training; of two within 5 % the smaller.
LEARNING_RATES = {"vbon": 6e-3, "vbon-bound": 6e-3, "ipo": 6e-3, "dpo": 2e-3, "bon-regression": 6e-3}
LEARNING_RATE = 18e-3  # of the others; J-BOND, which has no end, has BOND's
TINY = 1e-300  # in the place of a probability of 0, whose logarithm nothing can be multiplied by
BOND_STEPS, BOND_EVERY = 300, 50  # of the runs step by step; from one copy of the policy to the anchor to the next
ITERATED = (("anchor_every", 100), ("anchor_rate", 1.0), ("n", 2))  # best-of-2 of best-of-2 of best-of-2, in 300 steps
CURVE_POINTS = 40
Options = tuple[tuple[str, Any], ...]
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class ExactRun:
    """One training run on the enumerable model.

    Attributes:
        method: a key of `METHODS` that needs no value head, or "ipo"; BOND with a moving anchor is "bond" here.
        reward: "letters" or "vowels".
        policy: "network" or "table".
        training: "optimum" (the method's own, with which nothing is trained), "exact" (all responses), "samples" (drawn
            from the list anew at each step), "stored" (learned from the same draws of the reference at each step), or
            "trainer" (drawn from the network and trained by `bonlib.training.trainer`, like any language model).
        m: reference samples behind log F; None for the truth.
        smoothing: of the CDF of these samples.
        beta: of methods that have one.
        learning_rate: at its peak.
        steps: of Adam.
        count: examples a prompt and step, where there are more than can be listed; or stored draws a prompt.
        seed: of draws.
        options: fields of the method that differ from its own, as pairs.
        decay: whether the learning rate falls.
        group: draws that are compared with each other; 0 for all of a prompt and step.
    """

    method: str
    reward: str = "letters"
    policy: str = "network"
    training: str = "exact"
    m: int | None = None
    smoothing: str = ""
    beta: float | None = None
    learning_rate: float = 6e-3
    steps: int = 400
    count: int = 16_384
    seed: int = 0
    options: Options = ()
    decay: bool = True
    group: int = 0

    def __post_init__(self) -> None:
        known = {
            "method": ("ipo", *(m.name for m in METHODS.values() if m.algorithm != "ppo" and m.setting != "every")),
            "reward": tuple(REWARDS),
            "policy": ("network", "table"),
            "training": ("optimum", "exact", "samples", "stored", "trainer"),
            "smoothing": SMOOTHINGS if self.m else ("",),
        }
        for name, values in known.items():
            one_of(name, getattr(self, name), values)
        if self.m and self.training == "trainer":
            raise ValueError(f"m is {self.m}; the trainer's runs here have the true F: leave m out")
        if self.training == "trainer" and METHODS[self.method].algorithm != "rloo":
            raise ValueError(f"training is 'trainer'; {self.method} has draws from the list only")
        if self.training == "stored" and self.method != "ipo" and METHODS[self.method].algorithm != "offline":
            raise ValueError(f"training is 'stored'; {self.method} draws from the policy: take 'samples'")

    @property
    def identity(self) -> str:
        """A hash of all of it."""
        late = {"options": (), "decay": True, "group": 0}  # fields that runs made before them do not have
        about = {name: value for name, value in asdict(self).items() if late.get(name, ...) != value}
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]

    @property
    def target(self) -> int:
        """The n of the best-of-n that it is compared with: its own, or `N`."""
        options = dict(self.options)
        return options.get("n", N) if "anchor_rate" not in options else N


@cache
def world(reward: str) -> EnumeratedPrompts:
    """Return the prompts under one of `REWARDS`."""
    return EnumeratedPrompts(reference(), PROMPTS, REWARDS[reward]())


@cache
def reference() -> LoadedModel:
    """Return the enumerable model."""
    return load_language_model("trigram-tiny", device="cpu")


@cache
def matching_beta(reward: str, kind: TiltReward) -> float:
    """Return the β whose tilt is, on average over prompts, as far from the reference as best-of-N.

    Args:
        reward: one of `REWARDS`.
        kind: what the method's optimum tilts by: "raw" for KL-RL, "calibrated" for IPO.
    """
    outcomes = world(reward).outcomes

    def excess(log_beta: float) -> float:
        beta = float(np.exp(log_beta))
        return sum(kl_divergence(o.tilt(beta, kind), o.probs) - kl_divergence(o.best_of(N), o.probs) for o in outcomes)

    beta = float(np.exp(brentq(excess, np.log(1e-2), np.log(1e2))))
    return float(f"{beta:.5g}")  # the same on every machine


def run_exactly(run: ExactRun, curve: Curve | None = None) -> dict[str, Any]:
    """Train and judge; return the figures of its row, NaN where a return was not finite (log F = −∞).

    Args:
        run: says how.
        curve: takes up rows of figures of the policy on its way, with the step as "step".
    """
    prompts = world(run.reward)
    begun = time.process_time()  # not of the clock: it is the same on a busy machine
    try:
        found = prompts.judge(trained(run, curve), run.target).means()
    except NotFiniteError:
        found = dict.fromkeys(Judgement._fields, math.nan)
    found["mean_reward"] = found.pop("reward")  # `reward` says which
    return {**asdict(run), **found, "processor_seconds": time.process_time() - begun}


def loop_settings(steps: int, count: int, learning_rate: float, seed: int) -> TrainSettings:
    """Return the settings by which a loop, ours or another, trains on the letters.

    Args:
        steps: of training.
        count: responses to each prompt a step.
        learning_rate: largest, after the first twentieth of the steps.
        seed: of the run.
    """
    return TrainSettings(
        steps=steps,
        prompts=len(PROMPTS),
        group=count,
        learning_rate=learning_rate,
        warmup=steps // 20,
        easing=0.5,
        measure_every=steps,
        checkpoint_every=steps,
        seed=seed,
    )


def trained(run: ExactRun, curve: Curve | None = None) -> torch.Tensor | LoadedModel:
    """Train; return the policy, a model or log-probabilities of all responses, shape (P, 27³).

    Args:
        run: says how.
        curve: as in `run_exactly`.

    Raises:
        NotFiniteError: if a return is not finite.
        ValueError: if the method has no known optimum that could be returned.
    """
    prompts = world(run.reward)
    if run.training == "optimum":
        found = [optimum(method_of(run), outcomes, run.steps, run.group) for outcomes in prompts.outcomes]
        optima = [probs for probs in found if probs is not None]
        if len(optima) < len(found):
            raise ValueError(f"training is 'optimum'; {run.method} has none that is known: train it")
        return torch.from_numpy(np.stack(optima)).clamp(min=TINY).log()
    if run.training == "trainer":
        settings = loop_settings(run.steps, run.count, run.learning_rate, run.seed)
        data = TrainingData(PROMPTS, REWARDS[run.reward](), SamplingSettings(max_new_tokens=LENGTH), cdf=prompts)
        with TemporaryDirectory() as folder:
            return train(reference(), method_of(run), data, settings, Path(folder) / "run", show=False).policy
    policy: torch.nn.Module = TabularPolicy(prompts.ref_log_probs)
    if run.policy == "network":
        policy = ListedPolicy(copy.deepcopy(reference().model), prompts.prompt_ids)
    objective, steps = _objective(run, prompts, policy), itertools.count()

    def watched(log_probs: torch.Tensor, progress: float) -> torch.Tensor:
        step = next(steps)
        if curve is not None and step % max(run.steps // CURVE_POINTS, 1) == 0:
            log_quantile = float((log_probs.detach().exp() * prompts.log_cdf).sum(1).mean())
            found = prompts.judge(log_probs, run.target).means()
            curve.append({"step": step, **found, "log_quantile": log_quantile})
        return objective(log_probs, progress)

    train_exactly(policy, watched, steps=run.steps, learning_rate=run.learning_rate, decay=run.decay)
    with torch.no_grad():
        return policy()


def method_of(run: ExactRun) -> Any:
    """Return the settings of the method that a run trains by."""
    if run.method == "jbond":
        return JBond(**dict(run.options))
    entry = METHODS["dpo" if run.method == "ipo" else run.method]
    if entry.setting == "n":
        method = entry.make(**{"n": N, **entry.as_stored(run.options)})
        return _balanced(method, run.reward) if isinstance(method, Bonbon) else method
    if run.beta is None:
        raise ValueError("beta is None; this method needs one, such as matching_beta returns")
    return entry.make(run.beta, **({"identity": True} if run.method == "ipo" else {}), **entry.as_stored(run.options))


def _balanced(method: Bonbon, reward: str) -> Bonbon:
    """BoNBoN with equal terms at the reference, on average over the prompts."""
    outcomes = world(reward).outcomes
    return method.balanced([o.best_of(method.n) @ np.maximum(o.log_probs, math.log(TINY)) for o in outcomes])


def _objective(run: ExactRun, prompts: EnumeratedPrompts, policy: torch.nn.Module) -> Objective:
    method, count = method_of(run), run.count if run.training == "samples" else None
    if isinstance(method, Bond | JBond):
        return Distillation(prompts, method, policy, count=count, seed=run.seed)
    if run.training == "stored":
        return prompts.learn_stored(method, count=run.count, seed=run.seed)
    if isinstance(method, OffPolicy):
        exact = isinstance(method, BonSft) and count is None
        return prompts.imitate(N) if exact else prompts.learn(method, count=run.count, seed=run.seed)
    cdf = None
    if run.m is not None:
        rng = np.random.default_rng([run.seed, run.m])
        samples = np.stack([rng.choice(o.rewards, run.m, p=o.probs / o.probs.sum()) for o in prompts.outcomes])
        cdf = SampledCdf(PROMPTS, samples, run.smoothing)  # type: ignore[arg-type]
    return prompts.ascend(method, count=count, cdf=cdf, easing=0.5, seed=run.seed, group=run.group)


def run_all(
    runs: Iterable[ExactRun], *, table: Path = TABLE, figures: Callable[..., dict[str, Any]] = run_exactly
) -> None:
    """Do every run that has no row yet; several processes may do so at once.

    Args:
        runs: to be done.
        table: takes up their rows.
        figures: makes them, as `run_exactly` does.
    """
    about = provenance(torch.device("cpu"), commit_of_workbook())
    for run in runs:
        with claim(BUILD / "exact_runs" / f"{run.identity}.lock") as ours:
            if not ours or run.identity in done_runs(table):
                continue
            curve: Curve = []
            row = figures(run, curve if run.method in ("bond", "jbond") else None)
            row |= about | {"smoothing": run.smoothing or None, "options": options_text(run.options)}
            add_run(table, run.identity, row, curves=curve)
        print(
            f"{run.method:11s} {run.reward} {run.policy} {run.training:7s} m={run.m} {run.smoothing} "
            f"{run.learning_rate:g} {row['options'] or ''}: KL to best-of-{run.target} {row['reverse_kl']:.4f}, "
            f"from it {row['forward_kl']:.4f}, to the reference {row['kl']:.3f}, win rate {row['win_rate']:.4f}, "
            f"{row['processor_seconds']:.0f} s",
            flush=True,
        )


def search(rates: Sequence[float] = RATES) -> list[ExactRun]:
    """Return the search for learning rates, the same for every method."""
    return [
        ExactRun(method, beta=beta, learning_rate=rate, steps=SHORT, count=4096)
        for method, beta, options in contestants()
        if not options and method != "jbond"  # which has no end to be judged by
        for rate in rates
    ]


def contestants(reward: str = "letters") -> list[tuple[str, float | None, Options]]:
    """Return the methods of the table with the β of those that have one, and their options."""
    return [
        ("vbon", None, ()),
        ("vbon-bound", None, ()),
        ("bond", None, ()),
        ("bond", None, (("term_b", True),)),
        ("bond", None, ITERATED),
        ("jbond", None, ()),
        ("kl-rl-rloo", matching_beta(reward, "raw"), ()),
        ("bon-sft", None, ()),
        ("bonbon", None, ()),
        ("ipo", matching_beta(reward, "calibrated"), ()),
        ("dpo", 0.5, ()),
        ("dpo", 2.0, ()),
    ]


def grid() -> list[ExactRun]:
    """Return the runs of the table: every method on both rewards, as a table, a network, from samples."""
    ends = [
        ExactRun(
            method,
            reward,
            policy,
            training,
            beta=beta,
            learning_rate=rate_of(method, policy),
            steps=300 if options == ITERATED else steps,
            options=options,
            decay=method != "jbond" and options != ITERATED,  # it would stop what has no end, or another in each round
        )
        for reward in REWARDS
        for policy, training, steps in [("network", "samples", 300), ("network", "exact", 300), ("table", "exact", 400)]
        for method, beta, options in contestants(reward)
        if policy == "table" or training == "samples" or method not in PAIRWISE
    ]
    by_trainer = [  # by the trainer, with as many draws as it makes in little time, and by draws from the list
        ExactRun(
            method, training=training, beta=beta, learning_rate=rate_of(method, "network") / 2, steps=300, count=FEW
        )
        for method, beta, _ in contestants()
        if method in METHODS and METHODS[method].algorithm == "rloo"
        for training in ("trainer", "samples")
    ]
    estimated = [
        ExactRun(
            method, m=m, smoothing=smoothing, training="samples", learning_rate=rate_of(method, "network"), steps=SHORT
        )
        for m, smoothing in [(None, ""), *itertools.product(MS, SMOOTHINGS)]
        for method in ("vbon", "vbon-bound")
    ]
    return [*ends, *by_trainer, *estimated]


def bond_grid() -> list[ExactRun]:
    """Return BOND's runs: each number of draws under each divergence, iterated, and J-BOND with one setting changed."""

    def run(
        method: str, seed: int = 0, training: str = "exact", count: int = ExactRun.count, **options: Any
    ) -> ExactRun:
        return ExactRun(
            method,
            training=training,
            learning_rate=LEARNING_RATE,
            steps=BOND_STEPS,
            count=count,
            seed=seed,
            options=tuple(sorted(options.items())),
            decay=False,  # it would stop methods whose target moves
        )

    return [
        *(run("bond", n=n, jeffreys_weight=w) for n in (4, 8, 16) for w in (0.5, 0.0, 1.0)),
        *(run("bond", n=n, anchor_rate=1.0, anchor_every=BOND_EVERY) for n in (2, 4)),
        *(run("jbond", anchor_rate=rate) for rate in (0.01, 0.02, 0.05, 0.1)),
        *(run("jbond", anchor_rate=0.05, regulariser=gamma) for gamma in (0.5, 1.0, 2.0, -1.0)),
        run("jbond", anchor_rate=1.0, anchor_every=BOND_EVERY),
        *(
            run("jbond", seed, "samples", FEW, **options)
            for seed in range(3)
            for options in ({"anchor_rate": 0.02}, {"anchor_rate": 1.0, "anchor_every": BOND_EVERY})
        ),
    ]


def rate_of(method: str, policy: str) -> float:
    """Return the learning rate of a method on a policy, a table or a network."""
    return 0.1 if policy == "table" else LEARNING_RATES.get(method, LEARNING_RATE)


def label(method: str, beta: float | None, options: str = "") -> str:
    """Return a method's name in figures and tables, from its columns there."""
    if method == "dpo":
        return f"DPO, β = {beta:g}"
    if method == "bond" and options:
        return "BOND with B" if options == "term_b=True" else METHODS["bond-iterative"].label
    if options == "picks=weights":
        return f"{METHODS[method].label}, weights"
    return {"ipo": "IPO", "kl-rl-rloo": "KL-RL"}.get(method) or METHODS[method].label  # of KL-RL there is one here
