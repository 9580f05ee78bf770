"""Speed and digits of the exact best-of-n distribution, beside np.exp and the two textbook formulas.

    python benchmarks/exact.py [--outcomes 1000000] [--cases 200] [--rounds 15]

Prints the time of PMF, KL and win rate as a ratio to one pass of np.exp over as many numbers; where vBoN's binomial
sum (Prop. 1) and the difference F≤**n − F**n lose their digits; and the worst errors against many-digit arithmetic on
the same float64 inputs.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import statistics
import time

import mpmath
import numpy as np
from scipy.special import comb

from bonlib.exact import Outcomes, kl_divergence


def seconds(action):
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def time_a_million(size, rounds):
    rng = np.random.default_rng(0)
    exponents = -rng.exponential(10, size)
    for name, rewards in (("no ties", rng.normal(size=size)), ("ties", rng.integers(0, size // 4, size))):
        model = Outcomes(rng.dirichlet(np.ones(size)), rewards)

        def one_by_one(model=model):
            policy = model.best_of(100)
            kl_divergence(policy, model.probs)
            model.win_rate(policy)

        def together(model=model):
            model.trade_off(model.best_of, [100])

        for way, action in (("together", together), ("one by one", one_by_one)):
            action()  # the first call sorts
            ratios = sorted(seconds(action) / seconds(lambda: np.exp(exponents)) for _ in range(rounds))
            print(
                f"PMF, KL and win rate of {size:,} outcomes, {name}, {way}: {statistics.median(ratios):.1f} passes of "
                f"np.exp (from {ratios[0]:.1f} to {ratios[-1]:.1f} in {rounds} rounds)"
            )


def exact_log_best_of(model, n):
    """Best-of-n with a total order, in as many digits as the context has."""
    total = mpmath.fsum(map(mpmath.mpf, model.probs.tolist()))
    order = np.lexsort((np.arange(len(model)), model.rewards))
    result, above = [mpmath.mpf(0)] * len(model), mpmath.mpf(0)
    for place, y in reversed(list(enumerate(order))):
        p = mpmath.mpf(float(model.probs[y])) / total
        found = mpmath.log(-mpmath.expm1(n * mpmath.log1p(-p / (1 - above)))) if place else mpmath.mpf(0)
        result[y] = n * mpmath.log1p(-above) + found
        above += p
    return result


def peers(model, n):
    """Log π_n by the binomial sum of vBoN's Prop. 1, by the plain difference, and ours."""
    F, p = model.strict_cdf, model.probs
    with np.errstate(all="ignore"):
        i = np.arange(1, n + 1)[:, None] if n <= 1e6 else None
        yield None if i is None else np.log(np.sum(comb(n, i) * F ** (n - i) * p**i, axis=0))
        yield np.log(model.cdf**n - F**n)
        yield model.log_best_of(n)


def compare_digits():
    print(
        "\nlog π_n of an outcome of probability ε, with half of the rest worse: relative error (digits that are left)"
    )
    print(f"{'n':>9} {'ε':>7}  " + "  ".join(f"{name:>22}" for name in ("binomial sum", "F≤**n − F**n", "bonlib")))
    for n in (2, 10, 100, 1100, 10**5, 10**12):
        for eps in (1e-3, 1e-10, 1e-18):
            model = Outcomes([0.5, eps, 0.5 - eps], [0, 1, 2])
            with mpmath.workdps(60):
                want = exact_log_best_of(model, n)[1]
            cells = []
            for log_probs in peers(model, n):
                if log_probs is None:
                    cells.append("too many terms")
                elif not np.isfinite(log_probs[1]):
                    cells.append(str(log_probs[1]))
                else:
                    error = abs(float(mpmath.mpf(float(log_probs[1])) / want - 1))
                    cells.append(f"{error:.0e} ({max(0, -np.log10(max(error, 1e-16))):.0f} digits)")
            print(f"{n:9.0e} {eps:7.0e}  " + "  ".join(f"{cell:>22}" for cell in cells))


def worst_errors(cases):
    worst_log, worst_kl = 0.0, 0.0
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(2, 40))
        weights = np.exp(rng.uniform(-rng.uniform(0, 60), 0, size))
        model = Outcomes(weights / weights.sum(), rng.integers(0, size, size).astype(float))
        n = 10 ** rng.uniform(0, 12)
        got = model.log_best_of(n, ties="order")
        with mpmath.workdps(400):  # 50 carry log π_n, not 1 − π_n where that is e^−100
            want = exact_log_best_of(model, n)
            total = mpmath.fsum(map(mpmath.mpf, model.probs.tolist()))
            kl = mpmath.fsum(
                mpmath.exp(w) * (w - mpmath.log(mpmath.mpf(p) / total))
                for w, p in zip(want, model.probs.tolist(), strict=True)
            )
            errors = [abs(float(g / w - 1)) for g, w in zip(got.tolist(), want, strict=True) if abs(w) > 1e-290]
            worst_log = max(worst_log, *errors)
            found = kl_divergence(model.best_of(n, ties="order"), model.probs)
            worst_kl = max(worst_kl, abs(float(found - kl)))
    print(f"\nworst errors in {cases} random cases, n from 1 to 1e12: log π_n {worst_log:.1e} relative", end=", ")
    print(f"KL {worst_kl:.1e} nats")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--outcomes", type=int, default=10**6)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    time_a_million(arguments.outcomes, arguments.rounds)
    compare_digits()
    worst_errors(arguments.cases)


if __name__ == "__main__":
    main()
