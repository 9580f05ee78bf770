"""What is said of summaries: by two reward models, and by measures that need none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bonlib.course.experiments.results import RESULTS, read_rows
from bonlib.metrics import mean_over_prompts

Array = NDArray[np.float64]
MEASURES = ("gold", "win", "proxy", "proxy_win", "length", "cut", "copied", "duplicates", "rouge")


@dataclass(frozen=True)
class Condition:
    """How summaries are drawn to be judged.

    Attributes:
        distribution: of the documents, "in" or "out" of that of training.
        temperature: of the draws.
        sampling_seed: of the draws.
    """

    distribution: str
    temperature: float
    sampling_seed: int


class Judges(NamedTuple):
    """Rewards of the same summaries by two models, (P, k) each."""

    proxy: Array
    gold: Array


@dataclass(frozen=True, eq=False)
class Judgement:
    """What two reward models, and simpler measures, say of k summaries of each of P documents.

    Attributes:
        texts: the summaries, (P, k).
        gold: rewards by the model that policies are judged by, (P, k).
        proxy: rewards by the one that they are trained on.
        win: probability that the gold model puts them before a summary by the reference at the same temperature.
        proxy_win: likewise for the proxy.
        length: tokens, the end token included.
        cut: whether there is no end token.
        copied: share of their trigrams of words that the document has.
        rouge: closeness to people's summaries, NaN where there are none.
    """

    texts: NDArray[np.str_]
    gold: Array
    proxy: Array
    win: Array
    proxy_win: Array
    length: Array
    cut: Array
    copied: Array
    rouge: Array

    @property
    def duplicates(self) -> Array:
        """(P, 1) share of pairs of summaries of one document that are the same text; NaN if there is only one."""
        pairs = list(combinations(range(self.texts.shape[1]), 2))
        return np.array([[np.mean([row[a] == row[b] for a, b in pairs]) if pairs else np.nan] for row in self.texts])

    def by_prompt(self) -> pd.DataFrame:
        """Return the mean over the summaries of each document, a column a measure."""
        return pd.DataFrame({name: getattr(self, name).mean(axis=1) for name in MEASURES})

    def rows(self) -> list[dict[str, float]]:
        """Return the same as rows to be stored, without measures that are not there."""
        table = self.by_prompt().round(4).dropna(axis=1)
        return [{"prompt": place, **dict(row)} for place, (_, row) in enumerate(table.iterrows())]

    def first_texts(self, count: int) -> list[dict[str, Any]]:
        """Return a summary of each of the first documents, and its rewards, as rows to be stored."""
        columns = {"summary": self.texts, "gold": self.gold, "proxy": self.proxy}
        places = range(min(count, len(self.texts)))
        return [{"prompt": i, **{name: table[i, 0] for name, table in columns.items()}} for i in places]

    def summary(self) -> dict[str, float]:
        """Return the mean over documents of every measure that is there, and its standard error as NAME_se."""
        row: dict[str, float] = {}
        for name, values in self.by_prompt().items():
            if values.notna().all():
                mean, error = mean_over_prompts(values)
                row |= {str(name): float(mean), f"{name}_se": float(error)}
        return row


def copied(summary: str, document: str) -> float:
    """Return the share of a summary's trigrams of words that a document has too; 0 if it has fewer than three words."""
    words, source = summary.lower().split(), document.lower().split()
    there = set(zip(source, source[1:], source[2:], strict=False))
    mine = list(zip(words, words[1:], words[2:], strict=False))
    return sum(each in there for each in mine) / len(mine) if mine else 0.0


class Verdicts(NamedTuple):
    """What `bonlib.course.experiments.summarisation.SummaryHarness.judge_all` stored of one profile.

    Attributes:
        by_prompt: a row a policy, condition and document.
        texts: a row a policy, condition and document whose summary was kept.
        curves: a row a condition and n of best-of-n.
    """

    by_prompt: pd.DataFrame
    texts: pd.DataFrame
    curves: pd.DataFrame


def read_verdicts(profile: str, results: Path = RESULTS, runs: Collection[str] | None = None) -> Verdicts:
    """Return the stored verdicts of a profile.

    Args:
        profile: its name.
        results: folder of the file.
        runs: of which rows, as `SummaryHarness.judge_all` returns them; None for all.

    Raises:
        ValueError: if a policy was judged twice under one condition, as when a model or a size changed in between.
    """
    about = ["method", "seed", "distribution", "temperature", "sampling_seed"]
    file = results / "tldr_judged.parquet"
    judged = read_rows(file)
    wanted = judged["profile"] == profile
    if runs is not None:
        wanted &= judged["run"].isin(runs)
    heads = judged.loc[wanted, ["run", *about]]
    if heads.duplicated(about).any():
        twice = dict(heads[heads.duplicated(about)].iloc[0])
        raise ValueError(f"{file} has two rows of {twice}: delete those of the older models")
    return Verdicts(*(read_rows(file, part).merge(heads, on="run") for part in ("prompts", "texts", "curves")))
