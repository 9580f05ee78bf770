"""Speed of rules that spend draws: laws of a million outcomes beside np.exp, choices beside np.argmax.

    python benchmarks/rules.py [--outcomes 1000000] [--prompts 1000] [--draws 1024] [--rounds 7]

Prints the median time of each, and its ratio to one pass of np.exp over as many numbers, or to np.argmax over the same
table of rewards, both taken in the same round.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import statistics
import time

import numpy as np

from bonlib.exact import Outcomes
from bonlib.inference import make_rule
from bonlib.inference.budgets import adaptive_budget, oracle_budget
from bonlib.inference.draw_counts import GeometricCount, LogSeries, OnePlusPoisson, TruncatedPoisson
from bonlib.inference.pessimism import pessimistic_best_of
from bonlib.inference.soft_best_of_n import soft_best_of
from bonlib.inference.speculative_rejection import SpeculativeRejection
from bonlib.inference.stopping import StopAt, reservation_value


def seconds(action):
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def compare(what, action, peer, rounds):
    action()  # the first call sorts
    pairs = [(seconds(action), seconds(peer)) for _ in range(rounds)]
    ratios = sorted(own / other for own, other in pairs)
    own = statistics.median(own for own, _ in pairs)
    print(f"{what:>40}: {own:7.4f} s, {statistics.median(ratios):6.1f} × ({ratios[0]:.1f} to {ratios[-1]:.1f})")


def laws(size, rounds):
    rng = np.random.default_rng(0)
    exponents = -rng.exponential(10, size)
    for name, rewards in (("no ties", rng.normal(size=size)), ("20 rewards", rng.integers(0, 20, size))):
        world = Outcomes(rng.dirichlet(np.ones(size)), rewards)
        print(f"laws of {size:,} outcomes, {name}, beside a pass of np.exp")
        for what, law in {
            "best-of-16": lambda world=world: world.best_of(16),
            "Poisson(4), not 0": lambda world=world: TruncatedPoisson(4).law(world),
            "1 + Poisson(4)": lambda world=world: OnePlusPoisson(4).law(world),
            "geometric, q = 0.8": lambda world=world: GeometricCount(0.8).law(world),
            "log-series, t = 4": lambda world=world: LogSeries(4).law(world),
            "stop at 1, 16 at most": lambda world=world: StopAt(16, 1.0).law(world),
            "pessimism, λ known": lambda world=world: pessimistic_best_of(world, 16, 0.5),
            "soft best-of-16, λ = 1": lambda world=world: soft_best_of(world, 16, 1.0),
        }.items():
            compare(what, law, lambda: np.exp(exponents), rounds)


def choices(prompts, draws, rounds):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(prompts, draws))
    partial = rewards[..., None] + rng.normal(size=(prompts, draws, 2))
    log_probs, answers = -rng.exponential(20, rewards.shape), rng.integers(0, 8, rewards.shape)
    print(f"choices among {draws:,} draws to each of {prompts:,} prompts, beside np.argmax")
    told = {"log_probs": log_probs, "responses": np.arange(rewards.size).reshape(rewards.shape), "answers": answers}
    settings = {
        "best": {},
        "random": {},
        "soft": {"temperature": 0.3},
        "truncated-poisson": {"t": 16},
        "stop-at": {"threshold": 3},
        "stop-by-spacing": {"cost_per_draw": 0.01},
        "pessimism": {"beta": 0.3},
        "kl": {"beta": 0.3},
        "kl-set": {"beta": 0.3},
        "majority": {},
        "weighted-vote": {"temperature": 0.3},
        "borda": {"power": 1.0},
    }
    for name, chosen in settings.items():
        rule = make_rule(name, n=draws, **chosen)
        needed = {key: told[key] for key in rule.needs}
        compare(
            name, lambda rule=rule, needed=needed: rule.choose(rewards, **needed), lambda: rewards.argmax(1), rounds
        )
    rejection = SpeculativeRejection(draws, (8, 16))
    compare("speculative", lambda: rejection.choose(rewards, partial), lambda: rewards.argmax(1), rounds)
    compare("reservation value", lambda: reservation_value(rewards, 0.1), lambda: rewards.argmax(1), rounds)
    for what, budget in {
        "budget, adaptive": lambda: adaptive_budget(rewards, 16 * prompts, 4),
        "budget, oracle": lambda: oracle_budget(rewards, 16 * prompts),
    }.items():
        compare(what, budget, lambda: rewards.argmax(1), rounds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--outcomes", type=int, default=10**6)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    laws(arguments.outcomes, arguments.rounds)
    choices(arguments.prompts, arguments.draws, arguments.rounds)


if __name__ == "__main__":
    main()
