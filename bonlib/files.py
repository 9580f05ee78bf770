"""The front door for anybody's files: `bon.read`, then score, choose, report, export, or train on them as draws."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bonlib.front import ModelDraws, ScoredDraws
from bonlib.ingredients import Folder, load, reward

if TYPE_CHECKING:
    import pandas as pd

    from bonlib.draws.rewards import RewardModel
    from bonlib.draws.store import SampleStore
    from bonlib.inference.rules import Rule
    from bonlib.models.loaded import LoadedModel
    from bonlib.records.records import Records
    from bonlib.records.report import Report


def score(
    records: Records, by: RewardModel | Callable[[str, str], Any] | Folder, *, name: str = "reward",
    store: SampleStore | Folder | None = None,
) -> Records:  # fmt: skip
    """Return records with one more score, those rewards that the store does not have computed now.

    Args:
        records: as `bonlib.read` returns them.
        by: a reward model, or what `reward` makes one of.
        name: of the score. The first of records is the reward, the second what that stands for.
        store: as of `draw`.
    """
    from bonlib.draws.store import SampleStore
    from bonlib.records.scoring import scored

    return scored(records, reward(by), store if isinstance(store, SampleStore) else SampleStore(store), name=name)


def as_draws(
    records: Records, model: LoadedModel | Folder, *, by: Any = None, count: int | None = None, **options: Any
) -> ScoredDraws:
    """Return records as scored draws of a model, which `train` learns from.

    They are taken for draws of this model; where another drew them, it learns the best-of-n of that one.

    Args:
        records: scored.
        model: that reads them, and is to be trained.
        by: the reward of what is drawn in training; None for methods that draw nothing.
        count: draws a prompt, the first of each; as many as all have if None.
        **options: of `bonlib.records.draws.draws_of`.

    Raises:
        ValueError: if prompts have different numbers of draws, or the model cannot write a response in its tokens.
    """
    from bonlib.draws.samplers import SamplingSettings, TransformersSampler
    from bonlib.draws.store import SampleStore
    from bonlib.records.draws import RecordedReward, draws_of

    loaded: Any = load(model) if isinstance(model, str | os.PathLike) else model
    found, rewards = draws_of(records, loaded, count=count, **options)
    found = replace(found, settings=SamplingSettings(int(found.lengths.max())))
    judged = RecordedReward(found, rewards) if by is None else reward(by)
    return ScoredDraws(found, TransformersSampler(loaded), 0, SampleStore(), judged, rewards)


def report(what: Records | ScoredDraws | Any, *, most: int | None = None) -> Report:
    """Return what best-of-N makes of responses with scores, and what is wrong with them.

    Args:
        what: records, scored draws, or what `bonlib.read` reads: a file, or a table of pandas.
        most: largest N of the curve; what nine of ten prompts have draws for if None.

    Raises:
        ValueError: if there is nothing to report on; the message says what is missing.
    """
    from bonlib.records.report import report as report_on

    return report_on(_records(what), most=most)


def choose(what: Records | ScoredDraws | Any, rule: str | Rule, *, seed: int = 0, **settings: Any) -> pd.DataFrame:
    """Return the responses that a way to spend draws keeps of each n draws of a prompt, with what is known of them.

    Args:
        what: as of `report`; prompts with fewer than n draws are left out, with a warning that says how many.
        rule: a name in `bonlib.RULES`, such as "soft"; or one that is made.
        seed: of the choice.
        **settings: of a rule by its name: n, and others; and what the rule needs to know, if the records do not have
            it, in the order of their table: answers, log_probs or partial, a row each, or distances, (R, R); those of
            the words of a prompt's responses if not given.

    Returns:
        A row each, and how many draws were made for it, as spent.

    Raises:
        ValueError: if there is no such rule, a setting is out of range, or what it needs is not there.
    """
    from bonlib.inference import made_rule
    from bonlib.records.choosing import kept_rows

    records, (made, told) = _records(what), made_rule(rule, **settings)
    rows, spent = kept_rows(records, made, seed=seed, told=told)
    return records.table().iloc[rows].assign(spent=spent).reset_index(drop=True)


def export(what: Records | ScoredDraws | Any, kind: str, path: Folder, **options: Any) -> int:
    """Write responses with scores as a trainer takes them, and return how many rows that are.

    Args:
        what: as of `report`.
        kind: sft, dpo, bonbon, log-cdf or scored: see `bonlib.records.writing.KINDS`.
        path: JSON lines, JSON, CSV or Parquet by its ending; "-" is standard output.
        **options: n, seed and others of `bonlib.records.writing.export`.
    """
    from bonlib.records.writing import export as write

    return write(_records(what), kind, path, **options)


def _records(what: Any) -> Records:
    """What is given as records."""
    from bonlib.records.reading import read
    from bonlib.records.records import Records

    if isinstance(what, ModelDraws):
        records = read(what.table())
        return replace(records, source=repr(what))
    return what if isinstance(what, Records) else read(what)
