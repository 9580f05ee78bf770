"""What records give to trainers: best-of-n for SFT, pairs, log F as a reward, each as columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.cdf import EmpiricalCdf
from bonlib.checks import flag, whole
from bonlib.estimates import best_of_n_weights
from bonlib.inference.best_of_n import best_of_n
from bonlib.methods.bonbon import Bonbon, bonbon_target
from bonlib.methods.dpo import Dpo
from bonlib.records.records import Records, with_enough
from bonlib.training.off_policy import Examples, resampled

Columns = dict[str, Sequence[Any] | NDArray[Any]]
Places = NDArray[np.intp]
ITSELF = 1e-12  # in place of the 1 in the prior of a CDF, takes out one sample below: a draw is no sample of its own


def best_for_sft(
    records: Records, *, n: int, weights: bool = False, resample: int | None = None, seed: int = 0
) -> Columns:
    """Return prompt and completion: the best of each n draws, or all draws with the chance that best-of-n keeps them.

    Args:
        records: scored.
        n: number of draws.
        weights: whether to give each draw that may be the best of some n a row, with that chance as its weight.
        resample: rows a prompt to draw by these weights.
        seed: of that.

    Raises:
        ValueError: if an argument is out of range, or no prompt has n draws.

    Source: Amini et al., app. H (BoN-SFT); Nakano et al. 2021, section 3.2 (the weights).
    """
    n, weights = whole("n", n, 1, what="the number of draws"), flag("weights", weights)
    if weights and resample is not None:
        raise ValueError("weights and resample are both given; rows drawn by the weights need none: leave one out")
    rng = np.random.default_rng(whole("seed", seed))
    chosen, chances = [], []
    for rows in with_enough(records, n):
        rewards = records.reward[rows]
        if not weights and resample is None:
            chosen.append(np.take_along_axis(rows, best_of_n(rewards, n), axis=1).ravel())
            continue
        chance = best_of_n_weights(rewards, n)
        if resample is None:
            chosen.append(rows[chance > 0])
            chances.append(chance[chance > 0])
        else:
            count = whole("resample", resample, 1, what="rows a prompt, it")
            kept = np.stack([resampled(row, count, rng) for row in chance])
            chosen.append(np.take_along_axis(rows, kept, axis=1).ravel())
    places = np.concatenate(chosen)
    order = np.argsort(places, kind="stable")
    columns = _said(records, completion=places[order])
    return columns | {"weight": np.concatenate(chances)[order]} if weights else columns


def pairs_for_dpo(records: Records, *, n: int | None = None, pairs: int | None = None, seed: int = 0) -> Columns:
    """Return prompt, chosen and rejected of random pairs, ties left out, with their scores.

    Args:
        records: scored.
        n: draws a prompt that pairs are made of; 6, or as many as there are if fewer, if None.
        pairs: how many of these a prompt are kept, at random; 12, or all if there are fewer, if None.
        seed: of the choice.

    Raises:
        ValueError: if an argument is out of range, or no prompt has n draws.

    Source: Rafailov et al. 2023 (DPO).
    """
    n = whole("n", min(6, max(2, int(records.counts.max()))) if n is None else n, 2, what="the number of draws")
    method = Dpo(1.0, n, min(12, n * (n - 1) // 2) if pairs is None else pairs)
    return _pairs(records, n, lambda rewards: method.examples(rewards, seed=seed))


def best_and_worst(records: Records, *, n: int) -> Columns:
    """Return prompt, chosen and rejected, the best and the worst of each n draws, with BoNBoN's target t_n for them.

    beta is 1/(2 t_n), with which IPO's loss on log-probabilities summed over tokens is BoNBoN's square. TRL's `ipo`
    divides each by its number of tokens: where both responses have L tokens, the end token included, its square is that
    one divided by L² if it gets β = L/(2 t_n); where lengths differ, no β makes it that.

    Args:
        records: scored.
        n: number of draws, at least 2.

    Raises:
        ValueError: if `n` is out of range, or no prompt has n draws.

    Source: Gui et al. 2024 (BoNBoN), Theorem 3.
    """
    n = whole("n", n, 2, what="the number of draws")
    columns = _pairs(records, n, lambda rewards: Bonbon(n, picks="groups").examples(rewards, seed=0))
    target, count = bonbon_target(n), len(columns["prompt"])
    return columns | {"target": np.full(count, target), "beta": np.full(count, 1 / (2 * target))}


def _pairs(records: Records, n: int, examples: Callable[[NDArray[np.float64]], Examples]) -> Columns:
    found = [np.zeros((0, 2), dtype=np.intp)]
    for rows in with_enough(records, n):
        prompts, draws, weights, targets = examples(records.reward[rows])
        if weights is not None or targets is not None:
            raise ValueError("pairs have weights or targets, for which there are no columns: take a method without")
        found.append(rows[prompts[:, None], draws])
    both = np.concatenate(found)
    if not len(both):
        raise ValueError(f"{records.source} has no pair with different scores: each prompt's rewards are all equal")
    chosen, rejected = both[np.argsort(records.prompt[both[:, 0]], kind="stable")].T
    scores = {"score_chosen": records.reward[chosen], "score_rejected": records.reward[rejected]}
    return _said(records, chosen=chosen, rejected=rejected) | scores


def log_cdf(records: Records) -> Columns:
    """Return prompt, completion and reward, log F≤ of each response as the other draws of its prompt have it.

    With k of m draws no better, itself among them, it is ψ(k) − ψ(m+1): the mean of log U, U the k-th lowest of m
    uniform numbers. (For a new response, which is not among the m, training takes ψ(k+1) − ψ(m+2).)

    Args:
        records: scored.

    Source: Amini et al., Eq. 6; `bonlib.cdf.EmpiricalCdf`.
    """
    reward = np.empty(len(records))
    for _, rows in records.blocks():
        rewards = records.reward[rows]
        reward[rows] = EmpiricalCdf(rewards, prior=(ITSELF, 1.0)).log_weak(rewards)
    return _said(records, completion=np.arange(len(records))) | {"reward": reward}


def scored(records: Records) -> Columns:
    """Return prompt, completion and the scores, a row a response."""
    return _said(records, completion=np.arange(len(records))) | dict(records.scores)


def scored_lists(records: Records) -> Columns:
    """Return prompt, completions and lists of the scores, a row a prompt."""
    ends = np.cumsum(records.counts)[:-1]
    prompts: Sequence[Any] = records.messages or records.prompts.tolist()
    columns: Columns = {"prompt": prompts, "completions": _cut(_responses(records, np.arange(len(records))), ends)}
    return columns | {name: _cut(score.tolist(), ends) for name, score in records.scores.items()}


def _cut(values: Sequence[Any], ends: Places) -> list[Any]:
    bounds = [0, *ends.tolist(), len(values)]
    return [values[begin:end] for begin, end in pairwise(bounds)]


def _said(records: Records, **rows: Places) -> Columns:
    """Prompts and what was answered, by the names of the columns."""
    which = records.prompt[next(iter(rows.values()))]
    prompts = records.prompts[which] if records.messages is None else [records.messages[place] for place in which]
    return {"prompt": prompts, **{name: _responses(records, at) for name, at in rows.items()}}


def _responses(records: Records, rows: Places) -> list[Any]:
    texts: list[Any] = records.responses[rows].tolist()
    return texts if records.messages is None else [[{"role": "assistant", "content": text}] for text in texts]
