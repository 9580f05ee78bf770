"""What scored responses say of best-of-N, prompt by prompt, from all subsets of a prompt's draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bonlib.answers import majority_at_k
from bonlib.cdf import EmpiricalCdf
from bonlib.checks import LOG_PROB_SLACK, whole
from bonlib.estimates import best_of_n_kl, best_of_n_mean, best_of_n_win_rate
from bonlib.exact import Array
from bonlib.records.records import Records
from bonlib.tables import Curve, mean_and_error

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 0.9  # share of the prompts that have the draws of the whole curve: nearly all, and no straggler shortens it
EVERY = 1024  # every N up to here; a curve is smooth beyond, and each N costs a pass over all draws
WORK = 2**25  # draws a prompt × numbers of draws: with 100,000 draws to one prompt, fewer N are every N
KL_EVERY = 64  # the same for the KL, of which a number of draws costs ten times as much
FURTHEST = 4096  # N that nobody goes beyond without asking
LEFT_OUT = 64  # parts of a single prompt's draws that are left out in turn
MANY = 4096  # draws of a single prompt from which on that takes too long, and they are cut into parts instead
PARTS = 16  # the more there are, the better an error is known, and the fewer N have one
GROUPS = 10  # of equally many ranks, in which the rank by something else is averaged
VOTING = 1000  # prompts for majority votes, which are counted one by one

Rows = NDArray[np.intp]


class Measured(NamedTuple):
    """The curve of best-of-N, and what it was made of.

    Attributes:
        curve: reward, control, gain (a draw), win_rate, kl and length; gold and gold_best (best-of-N by gold itself) if
            there are two scores; right and solved (one of N at least) if it is known which responses are right.
        prompts: (P,) which prompts are in it, in the order of its `by_prompt`.
        kl_from: whether the KL is by log-probabilities or counted, and why.
    """

    curve: Curve
    prompts: NDArray[np.intp]
    kl_from: str


def numbered(records: Records) -> Rows:
    """Return a number for the text of each response, the same for the same text, shape (R,)."""
    import pandas as pd

    return pd.factorize(records.responses)[0].astype(np.intp)


def draws_of_most(records: Records) -> int:
    """Return M, up to which the curve goes: the draws that nine of ten prompts have at least, but from 2 to 4,096."""
    ordered = np.sort(records.counts)[::-1]
    most = int(ordered[int(np.ceil(ENOUGH * len(ordered))) - 1])
    return min(max(most, 2), int(ordered[0]), FURTHEST)


def measure(records: Records, most: int, texts: Rows) -> Measured:
    """Return what best-of-N makes of the draws, for N up to `most`, over the prompts that have so many.

    Args:
        records: with a score at least.
        most: M, from 1 to the largest number of draws of a prompt.
        texts: of `numbered`.

    Raises:
        ValueError: if `most` is out of range.
    """
    most = whole("most", most, 1, int(records.counts.max()), what="the number of draws up to which the curve goes")
    blocks = [(which, rows) for which, rows in records.blocks() if rows.shape[1] >= most]
    ns = some_numbers(most, min(EVERY, max(KL_EVERY, WORK // max(rows.shape[1] for _, rows in blocks))))
    prompts = np.concatenate([which for which, _ in blocks])
    known, kl_from = _log_probs(records, np.isin(records.prompt, prompts), texts)

    def made(log_probs: Array | None) -> Curve:
        def by_n(rows: Rows) -> dict[str, Array]:
            return _by_n(records, rows, ns, texts, log_probs)

        parts = [by_n(rows) for _, rows in blocks]
        curve = Curve(ns, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        if len(prompts) == 1 and blocks[0][1].shape[1] > 1:
            for name, error in errors_over_draws(by_n, blocks[0][1]).items():
                curve.table[f"{name}_se"] = error
        return curve

    try:
        return Measured(made(known), prompts, kl_from)
    except ValueError as error:
        if known is None:
            raise
        return Measured(made(None), prompts, f"counted: {error}")


def some_numbers(most: int, every: int = EVERY, a_doubling: int = 16) -> list[int]:
    """Return numbers of draws up to `most`: each up to `every`, so many in each doubling beyond, and `most` itself."""
    doublings = max(np.log2(most / every), 0.0)
    beyond = every * 2 ** (np.arange(1, int(doublings * a_doubling) + 1) / a_doubling)
    return sorted({*range(1, min(most, every) + 1), *beyond.round().astype(int).tolist(), most})


def _log_probs(records: Records, chosen: NDArray[np.bool_], texts: Rows) -> tuple[Array | None, str]:
    """The log-probabilities if all that are needed can be used, and what the KL is made from."""
    if records.log_probs is None:
        return None, "counted: the file has no log-probabilities"
    asked = records.log_probs[chosen]
    if unknown := np.count_nonzero(~np.isfinite(asked)):
        return None, f"counted: {unknown:,} of {len(asked):,} log-probabilities are unknown or not finite"
    if above := np.count_nonzero(asked > LOG_PROB_SLACK):
        return None, f"counted: {above:,} of {len(asked):,} log-probabilities are above 0"
    seen = probability_seen(records, texts)[np.unique(records.prompt[chosen])]
    if beyond := np.count_nonzero(seen > 1 + LOG_PROB_SLACK):
        return None, f"counted: the probabilities of responses are more than 1 together, for {beyond:,} of the prompts"
    return np.minimum(records.log_probs, 0.0), "from the log-probabilities of the file"


def probability_seen(records: Records, texts: Rows) -> Array:
    """Return the probability that the different responses of each prompt have together, shape (P,), by the file."""
    assert records.log_probs is not None
    _, first = np.unique(records.prompt * (texts.max() + 1) + texts, return_index=True)
    probs = np.exp(np.minimum(np.nan_to_num(records.log_probs[first], nan=-np.inf), 700.0))
    return np.bincount(records.prompt[first], probs, len(records.prompts)).astype(np.float64)


def _by_n(records: Records, rows: Rows, ns: list[int], texts: Rows, log_probs: Array | None) -> dict[str, Array]:
    """All that has a value for each of some prompts and each n, (Q, K), from their rows, (Q, m); NaN where n > m."""
    reward, m = records.reward[rows], rows.shape[1]
    fits, held = [n for n in ns if n <= m], [n for n in ns if n < m]  # one draw must be left to play against
    mean = best_of_n_mean(reward, fits, rounding=0.0)
    values = {
        "reward": mean,
        "control": np.repeat(reward.mean(axis=1, keepdims=True), len(fits), axis=1),
        "gain": np.hstack([np.full((len(rows), 1), np.nan), np.diff(mean) / np.diff(fits)]),
        "win_rate": best_of_n_win_rate(reward, held) if held else np.empty((len(rows), 0)),
        "kl": np.full(mean.shape, np.nan),
        "length": best_of_n_mean(reward, fits, records.lengths[rows]),
    }
    few = some_numbers(max(ns[-1] // 2, 1), KL_EVERY, 8)  # the draws say too little of it beyond
    places = [place for place, n in enumerate(fits) if n in few]
    values["kl"][:, places] = best_of_n_kl(
        reward,
        [fits[place] for place in places],
        log_probs=None if log_probs is None else log_probs[rows],
        responses=None if log_probs is None else texts[rows].tolist(),
    )
    if len(records.scores) > 1:
        gold = list(records.scores.values())[1][rows]
        values |= {"gold": best_of_n_mean(reward, fits, gold), "gold_best": best_of_n_mean(gold, fits, rounding=0.0)}
    if records.correct is not None:
        right = records.correct[rows]
        values |= {"right": best_of_n_mean(reward, fits, right), "solved": best_of_n_mean(right, fits)}
    return {
        name: np.pad(value, ((0, 0), (0, len(ns) - value.shape[1])), constant_values=np.nan)
        for name, value in values.items()
    }


def errors_over_draws(estimate: Callable[[Rows], dict[str, Array]], rows: Rows) -> dict[str, Array]:
    """Return the standard errors of what is estimated from the draws of one prompt, by leaving out parts of them.

    Args:
        estimate: from rows, (Q, m), to values by name, (Q, K).
        rows: (1, m) with m > 1; 64 parts of them are left out in turn, or each draw if there are fewer. From 4,096
            draws on, they are cut into 16 parts, of which each is estimated from alone.

    Returns:
        By name, (K,); NaN for an n that needs more draws than that leaves.

    Source: Efron and Tibshirani 1993, chapter 11.
    """
    m = rows.shape[1]
    if m >= MANY:
        apart = estimate(rows[0, : m - m % PARTS].reshape(-1, PARTS).T)
        return {name: values.std(axis=0, ddof=1) / np.sqrt(PARTS) for name, values in apart.items()}
    parts = min(m, LEFT_OUT)
    found = [estimate(rows[:, np.arange(m) % parts != part]) for part in range(parts)]
    together = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return {name: np.sqrt((parts - 1) * values.var(axis=0)) for name, values in together.items()}


def votes(records: Records, prompts: NDArray[np.intp], most: int) -> pd.DataFrame | None:
    """Return how often the majority of k draws is right, k = 1, 2, 4 …, with its error; None if that is not known.

    Args:
        records: with answers and whether they are right.
        prompts: which to ask; of more than 1,000, so many at equal distances.
        most: largest k.
    """
    import pandas as pd

    if records.answers is None or records.correct is None:
        return None
    asked = prompts[np.unique(np.linspace(0, len(prompts) - 1, min(len(prompts), VOTING)).astype(int))]
    ks = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    parts = [
        np.stack([majority_at_k(records.answers[rows], records.correct[rows], k) for k in ks], axis=-1)
        for rows in (rows[np.isin(which, asked)] for which, rows in records.blocks())
        if len(rows)
    ]
    values = np.concatenate(parts)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(len(ks), np.nan)
    return pd.DataFrame({"majority": values.mean(axis=0), "majority_se": error}, index=pd.Index(ks, name="n"))


def responses_table(records: Records, texts: Rows) -> pd.DataFrame:
    """Return a row a response: where it stands among the draws of its prompt.

    Args:
        records: with a score at least.
        texts: of `numbered`.

    Returns:
        Columns prompt (its number), row (in the file), response, the scores, strict_cdf and cdf (F and F≤, counted),
        log_cdf (the posterior mean of log F≤, as training uses it), mid_rank (1 is the worst; equal rewards share
        theirs), copies and tied (how many draws of the prompt have this text, this reward). A score of one of these
        names is called "score NAME".
    """
    import pandas as pd

    cdf, strict, log_cdf, copies = (np.empty(len(records)) for _ in range(4))
    for _, rows in records.blocks():
        rewards = records.reward[rows]
        counted, smooth = EmpiricalCdf(rewards, "none"), EmpiricalCdf(rewards)
        strict[rows], cdf[rows], log_cdf[rows] = (
            counted.strict(rewards),
            counted.weak(rewards),
            smooth.log_weak(rewards),
        )
        named = np.arange(len(rows))[:, None] * len(records) + texts[rows]
        _, same, times = np.unique(named, return_inverse=True, return_counts=True)
        copies[rows] = times[same].reshape(rows.shape)
    counts = records.counts[records.prompt]
    origin = {"prompt": records.prompt, "row": records.rows, "response": records.responses}
    standing = {
        "strict_cdf": strict,
        "cdf": cdf,
        "log_cdf": log_cdf,
        "mid_rank": (strict + cdf) * counts / 2 + 0.5,
        "copies": copies.astype(int),
        "tied": ((cdf - strict) * counts).round().astype(int),
    }
    taken = origin.keys() | standing.keys()
    scores = {f"score {name}" if name in taken else name: values for name, values in records.scores.items()}
    return pd.DataFrame(origin | scores | standing)


def rank_shares(records: Records, values: NDArray[Any]) -> Array:
    """Return the rank of each response among the draws of its prompt, from 0 to 1, one half on average, shape (R,)."""
    shares = np.empty(len(records))
    for _, rows in records.blocks():
        shares[rows] = (rankdata(values[rows], axis=1) - 0.5) / rows.shape[1]
    return shares


def rank_correlation(records: Records, first: Array, second: Array) -> Array:
    """Return Spearman's correlation among the draws of each prompt, shape (P,); NaN where one never changes.

    Args:
        records: whose prompts.
        first: of `rank_shares`, shape (R,).
        second: likewise.
    """
    a, b = first - 0.5, second - 0.5
    both, left, right = (np.bincount(records.prompt, product) for product in (a * b, a * a, b * b))
    size = np.sqrt(left * right)
    return np.divide(both, size, out=np.full(len(size), np.nan), where=size > 1e-12)


def by_rank(records: Records, first: Array, second: Array) -> pd.DataFrame:
    """Return the mean of the second in ten groups of the first, with its error over prompts.

    Args:
        records: whose prompts.
        first: of `rank_shares`, shape (R,).
        second: what to average, shape (R,).
    """
    import pandas as pd

    groups = records.prompt * GROUPS + np.minimum((first * GROUPS).astype(int), GROUPS - 1)
    size = len(records.prompts) * GROUPS
    times = np.bincount(groups, minlength=size)
    sums = np.bincount(groups, second, size)
    means = np.divide(sums, times, out=np.full(size, np.nan), where=times > 0).reshape(-1, GROUPS)
    rows = [mean_and_error("mean", column[np.isfinite(column)]) for column in means.T if np.isfinite(column).any()]
    filled = np.flatnonzero(np.isfinite(means).any(axis=0))
    return pd.DataFrame(rows, index=pd.Index((filled + 0.5) / GROUPS, name="rank"))
