"""Look-ups a second in the estimated reward CDFs of many prompts, as a ratio to a Python loop over prompts.

    python benchmarks/cdf.py [--prompts 2000] [--samples 200] [--look-ups 500] [--rounds 5]

The peer sorts each prompt's samples and asks np.searchsorted for them, prompt by prompt.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time

import numpy as np
from scipy.special import digamma

from bonlib.cdf import EmpiricalCdf


def peer(samples, rewards):
    result = np.empty_like(rewards)
    for row, (mine, asked) in enumerate(zip(samples, rewards, strict=True)):
        k = np.searchsorted(np.sort(mine), asked, "right")
        result[row] = digamma(k + 1) - digamma(len(mine) + 2)
    return result


def loop(samples, rewards):
    """The same without NumPy's search: what code reads like that asks for one reward at a time."""
    ordered = [np.sort(mine) for mine in samples]
    return np.array(
        [
            [digamma(np.searchsorted(mine, r, "right") + 1) - digamma(len(mine) + 2) for r in asked]
            for mine, asked in zip(ordered, rewards, strict=True)
        ]
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--look-ups", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = rng.integers(arguments.samples // 2, arguments.samples + 1, arguments.prompts)  # every prompt its own M
    samples = [rng.normal(size=size) for size in sizes]
    rewards = rng.normal(size=(arguments.prompts, arguments.look_ups))

    def a_second(look_up, rewards):
        begun = time.perf_counter()
        look_up(rewards)
        return rewards.size / (time.perf_counter() - begun)

    estimate = EmpiricalCdf(samples)
    np.testing.assert_allclose(estimate.log_weak(rewards[:, :5]), loop(samples, rewards[:, :5]))
    ours = [a_second(lambda r: EmpiricalCdf(samples).log_weak(r), rewards) for _ in range(arguments.rounds)]
    by_prompt = [a_second(lambda r: peer(samples, r), rewards) for _ in range(arguments.rounds)]
    one_by_one = a_second(lambda r: loop(samples, r), rewards[:, :5])
    mine = statistics.median(ours)
    print(f"{rewards.size:,} look-ups of log F≤, {arguments.prompts} prompts, sorting included")
    print(f"{mine / 1e6:.1f} million a second")
    print(f"ratio to a loop over prompts: {mine / statistics.median(by_prompt):.1f}")
    print(f"ratio to a loop over prompts and rewards: {mine / one_by_one:.0f}")


if __name__ == "__main__":
    main()
