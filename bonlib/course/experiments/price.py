"""The price of closeness: how distances fall with responses learned from, and when training is cheaper than N draws.

Costs are in tokens that the policy reads or writes once, forwards.

`python -m bonlib.course.experiments.price` asks the second judge what it says of best-of-n's draws, and the off-policy
runs of the search for learning rates what their loss is on draws that they have not learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from bonlib.bounds import kl_bound, win_rate_bound
from bonlib.checks import number
from bonlib.course.experiments.grids import LONGEST, PRICED, READABLE_RATE, READABLE_RATES, price_grid
from bonlib.course.experiments.results import RESULTS, add_run, done_runs, read_rows, with_fields
from bonlib.course.experiments.sentiment import Harness, Run
from bonlib.course.profiles import get_profile, readable
from bonlib.draws.segments import replace_file
from bonlib.estimates import best_of_n_weights
from bonlib.exact import Array
from bonlib.methods import METHODS
from bonlib.metrics import mean_over_prompts, win_probability
from bonlib.training.off_policy import OffPolicy, loss_on_draws

LEARNED = 3.0  # forward passes that a token costs that is learned from: one, and twice as much backwards
SURE = 0.95  # of an interval
BEST_OF_N = RESULTS / "best_of_n.parquet"
HELD_OUT = RESULTS / "held_out.parquet"


def own_objective(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.Series:
    """Return what each run has made of its method's own objective, the lower the better, indexed by run.

    That is the mean over the last quarter of its steps, on prompts that it learns from: of the loss, or on policy of
    the return, less. (BOND's return is that of its reverse half.)

    Args:
        runs: with run, algorithm and steps, as `bonlib.course.experiments.results.read_rows` returns them.
        curves: of these runs, likewise.
    """
    rows = curves.sort_values("step").merge(runs[["run", "algorithm", "steps"]], on="run")
    covered = rows.groupby("run")["step"].diff().fillna(rows["step"])  # a row is the mean since the one before
    late = rows["step"] - covered / 2 > 0.75 * rows["steps"]
    objective = rows["loss"].where(rows["algorithm"] == "offline", -rows["return"])
    sums = pd.DataFrame({"total": objective * covered, "covered": covered})[late].groupby(rows["run"]).sum()
    return (sums["total"] / sums["covered"]).reindex(runs["run"])


def readable_runs() -> pd.DataFrame:
    """Return the stored runs on the readable reference, with label, gap, gold gap and what is changed.

    The gaps are those of `below_best_of_n` and `below_by_gold`; what is changed against the usual run of a method is
    "M = 8", say, or "w = 0", BOND's weight, or "rate 0.0002", and else nothing.
    """
    rows = read_rows(RESULTS / "price.parquet")
    rows = with_fields(rows[rows["profile"].eq("laptop, readable")], jeffreys_weight=0.5)
    usual = rows["method"].map(READABLE_RATES).fillna(READABLE_RATE)
    told = {
        "m": ("M = {:g}", rows["m"].fillna(64).ne(64)),
        "jeffreys_weight": ("w = {:g}", rows["jeffreys_weight"].ne(0.5)),
        "learning_rate": ("rate {:g}", rows["learning_rate"].ne(usual)),
    }
    changed = pd.Series("", rows.index)
    for column, (text, differs) in told.items():
        changed = changed.where(~differs, rows[column].map(text.format))
    labels = [METHODS[method].label for method in rows["method"]]
    gaps = {"gap": below_best_of_n(rows), "gold gap": below_by_gold(rows)}
    return rows.assign(label=labels, changed=changed, **gaps)


def below_best_of_n(rows: pd.DataFrame) -> pd.Series:
    """Return how much more the best-of-n wins that is as far from the reference, for rows with kl and win_rate."""
    ns = np.geomspace(1, 1e6, 4000)
    return np.interp(rows["kl"], kl_bound(ns), win_rate_bound(ns)) - rows["win_rate"]


def below_by_gold(rows: pd.DataFrame) -> pd.Series:
    """Return the same by the second judge: how much more best-of-n by the proxy wins there, NaN beyond best-of-128.

    Args:
        rows: with profile, kl and gold_win_rate. Of several references each has best-of-n's curve of its own.
    """
    curves = pd.read_parquet(BEST_OF_N)
    readable = rows["profile"].str.contains("readable")
    best = pd.Series(np.nan, rows.index)
    for mine, name in ((readable, "laptop, readable"), (~readable, "laptop")):
        curve = curves[curves["profile"] == name]
        best[mine] = np.interp(rows.loc[mine, "kl"], curve["kl"], curve["gold_win_rate"], right=np.nan)
    return best - rows["gold_win_rate"]


def best_of_n_by_gold(harness: Harness, ns: Sequence[int]) -> pd.DataFrame:
    """Return what best-of-n by the proxy wins against the reference, by the proxy and by gold, a row an n.

    Args:
        harness: with test prompts, their draws and their opponents.
        ns: numbers of draws, at most as many as it has.
    """
    test = harness.test
    assert test.rewards is not None
    gold = harness.gold_of_draws(slice(test.rewards.shape[1]))
    wins = {
        "win_rate": win_probability(test.rewards, test.opponents),
        "gold_win_rate": win_probability(gold, harness.gold_opponents),
    }
    rows = []
    for n in ns:
        weights = best_of_n_weights(test.rewards, n)
        row = {"n": n, "kl": float(kl_bound(n))}
        for name, table in wins.items():
            mean, error = mean_over_prompts((weights * table).sum(axis=1))
            row |= {name: float(mean), f"{name}_se": float(error)}
        rows.append(row)
    return pd.DataFrame(rows)


def held_out_loss(harness: Harness, run: Run) -> dict[str, float]:
    """Return a method's loss on draws that its policy has not learned from, of prompts that it has, and its error.

    The draws are those that win rates on training prompts are counted against. A policy that is not there is trained.

    Args:
        harness: with training prompts and their draws.
        run: of an off-policy method.

    Returns:
        held_out, the mean over prompts, and held_out_se.

    Raises:
        ValueError: if the method is another.
    """
    method = run.make()
    if not isinstance(method, OffPolicy):
        raise ValueError(f"method is {run.method!r}; a loss on stored draws is for a method that learns from them")
    draws, rewards = harness.draw(harness.seen.prompts, harness.sizes.opponents, harness.profile.seed + 1)
    policy = harness.train(run, show=False).policy
    mean, error = mean_over_prompts(loss_on_draws(method, policy, draws, rewards, seed=run.seed))
    return {"held_out": float(mean), "held_out_se": float(error)}


class PowerLaw(NamedTuple):
    """A distance that falls as distance = factor · responses^−exponent.

    Attributes:
        exponent: 0 if more responses bring nothing.
        low: lower end of its interval at 95 %.
        high: upper end.
        factor: the distance that one response would leave.
        scatter: standard deviation of the logarithms about the line, nats.
    """

    exponent: float
    low: float
    high: float
    factor: float
    scatter: float

    def at(self, responses: float) -> float:
        """Return the distance that the law has at a number of responses."""
        return float(self.factor * np.asarray(responses, np.float64) ** -self.exponent)


def power_law(responses: Array, distances: Array) -> PowerLaw:
    """Fit a power law to distances by least squares of their logarithms.

    Args:
        responses: that were learned from, a run each, (R,), at least three runs and two different numbers.
        distances: of what they led to, (R,), above 0.

    Raises:
        ValueError: if shapes differ, there are too few, or one is not above 0.
    """
    x, y = _logarithms(responses, distances)
    if len(x) < 3 or len(set(x.tolist())) < 2:
        raise ValueError(f"responses has shape {x.shape}; a law needs three runs and two numbers of responses at least")
    line = stats.linregress(x, y)
    free = len(x) - 2
    width = float(stats.t.ppf((1 + SURE) / 2, free)) * float(line.stderr)
    left = y - line.intercept - line.slope * x
    scatter = float(np.sqrt(left @ left / free))
    slope = float(line.slope)
    return PowerLaw(-slope, -slope - width, -slope + width, float(np.exp(line.intercept)), scatter)


def responses_until(distance: float, responses: Array, distances: Array) -> float:
    """Return how many responses a training needs to come within a distance, by trainings of several lengths.

    Between two lengths the distance is taken to fall along a straight line of logarithms.

    Args:
        distance: wanted, above 0.
        responses: that were learned from, rising, (R,).
        distances: of what they led to, (R,), above 0.

    Returns:
        The least number, never less than the first of `responses`; infinite if none led there.

    Raises:
        ValueError: if shapes differ, or a number is not above 0.
    """
    wanted = np.log(number("distance", distance, above=0))
    x, y = _logarithms(responses, distances)
    near = np.flatnonzero(y <= wanted)
    if not len(near):
        return float("inf")
    first = near[0]
    between = [first, max(first - 1, 0)]
    return float(np.exp(np.interp(wanted, y[between], x[between])))


def _logarithms(responses: Array, distances: Array) -> tuple[Array, Array]:
    x, y = np.asarray(responses, np.float64), np.asarray(distances, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"responses has shape {x.shape} and distances {y.shape}; list as many of both")
    for name, values in (("responses", x), ("distances", y)):
        if not bool((values > 0).all() and np.isfinite(values).all()):
            raise ValueError(f"{name} is {values.min()} at its least; all must be above 0 and finite")
    return np.log(x), np.log(y)


class Lengths(NamedTuple):
    """How long texts are, in tokens, and what a judge's token costs in units of the policy's."""

    prompt: float
    response: float
    judge: float = 0.0

    @property
    def judged(self) -> float:
        """What it costs to judge one response with its prompt."""
        return (self.prompt + self.response) * self.judge


def query_cost(n: float, lengths: Lengths) -> float:
    """Return what it costs to answer a query by the best of n draws, in tokens; n = 1 is an answer that nobody judges.

    The prompt is read once for all draws.
    """
    n = number("n", n, least=1, what="the number of draws")
    return lengths.prompt + n * lengths.response + (n * lengths.judged if n > 1 else 0.0)


def training_cost(lengths: Lengths, *, own: float = 0.0, stored: float = 0.0, prepared: float = 0.0) -> float:
    """Return what a training costs, in tokens.

    Args:
        lengths: of the texts.
        own: responses of the policy that it learned from, each drawn, judged and read by the reference, too.
        stored: draws of the reference that it learned from, each as often as it did; their log-probabilities are known.
        prepared: draws of the reference that had to be made and judged before it.
    """
    read = lengths.prompt + lengths.response
    made = (own + prepared) * (lengths.response + lengths.judged)
    return made + (own + stored) * LEARNED * read + own * read


def as_good_as(win_rate: float) -> float:
    """Return the n for which best-of-n wins as often against the reference, w = n / (n + 1); 1 at one half or less."""
    win_rate = number("win_rate", win_rate, least=0, below=1)
    return max(1.0, win_rate / (1 - win_rate))


def break_even(spent: float, win_rate: float, error: float, lengths: Lengths) -> tuple[float, float, float]:
    """Return from how many queries on a trained policy is cheaper than best-of-n draws that win as often.

    Args:
        spent: on the training, tokens, as `training_cost` returns them.
        win_rate: of the policy against the reference.
        error: standard error of that.
        lengths: of the texts.

    Returns:
        The number of queries, and what it is at a win rate two errors higher and two lower; infinite where the policy
        is no better than one draw.
    """

    def queries(wins: float) -> float:
        saved = query_cost(as_good_as(wins), lengths) - query_cost(1, lengths)
        return spent / saved if saved > 0 else float("inf")

    sides = (float(np.clip(win_rate + side * 2 * error, 0, 1 - 1e-9)) for side in (1, -1))
    least, most = (queries(wins) for wins in sides)
    return queries(win_rate), least, most


def _ask_again() -> None:
    laptop = get_profile("laptop")
    harness = Harness(laptop)
    ns = [1, 2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]
    curves = [
        best_of_n_by_gold(each, ns).assign(profile=each.profile.name) for each in (harness, Harness(readable(laptop)))
    ]
    replace_file(BEST_OF_N, pd.concat(curves).to_parquet(index=False))
    offline = [method for method in PRICED if METHODS[method].algorithm == "offline"]
    searched = [
        run
        for run in price_grid(harness.profile, offline)
        if run.seed == 0
        and not {"lora_rank", "prompts"} & set(dict(run.changes))
        and (run.target == 8 or dict(run.changes)["steps"] < LONGEST)
    ]
    for run in searched:
        if (identity := harness.identity(run)) not in done_runs(HELD_OUT):
            add_run(HELD_OUT, identity, held_out_loss(harness, run))


if __name__ == "__main__":
    _ask_again()
