"""Records as files that trainers take as they are."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bonlib.checks import one_of, shown
from bonlib.draws.segments import replace_file
from bonlib.records.exports import Columns, best_and_worst, best_for_sft, log_cdf, pairs_for_dpo, scored, scored_lists
from bonlib.records.records import Records

if TYPE_CHECKING:
    import pandas as pd


KINDS: dict[str, Callable[..., Columns]] = {
    "sft": best_for_sft,  # for TRL's SFTTrainer, which has no column of weights
    "dpo": pairs_for_dpo,  # for its DPOTrainer and RewardTrainer
    "bonbon": best_and_worst,  # for its DPOTrainer
    "log-cdf": log_cdf,
    "scored": scored,
    "scored-lists": scored_lists,
}


def export(
    records: Records,
    kind: str,
    path: str | os.PathLike[str],
    *,
    n: int | None = None,
    weights: bool | None = None,
    resample: int | None = None,
    pairs: int | None = None,
    seed: int | None = None,
) -> int:
    """Write records as a file that a trainer takes as it is; return its number of rows.

    Prompts that are conversations stay so, and responses to them are messages of the assistant. Prompts with too few
    draws are left out, with a warning that says how many.

    Args:
        records: with a score, but for "scored" and "scored-lists".
        kind: one of `KINDS`.
        path: a .jsonl, .json, .parquet or .csv file, replaced whole; "-" writes JSON lines to stdout.
        n: number of draws; needed by "sft" and "bonbon".
        weights: of "sft".
        resample: of "sft".
        pairs: of "dpo".
        seed: of random choices, of "sft" and "dpo"; 0 if None.

    Raises:
        ValueError: if the kind is none, it does not take an option, one is out of range, or the file cannot hold it.
    """
    one_of("kind", kind, KINDS)
    options = {"n": n, "weights": weights, "resample": resample, "pairs": pairs, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    takes = dict(list(signature(KINDS[kind]).parameters.items())[1:])
    if unknown := given.keys() - takes.keys():
        name = min(unknown)
        raise ValueError(f"{name} is {given[name]!r}; {kind!r} takes {', '.join(takes) or 'no option'}: leave it out")
    if missing := [name for name, option in takes.items() if option.default is option.empty and name not in given]:
        raise ValueError(f"{missing[0]} is missing; {kind!r} needs it: say {missing[0]}=…")
    columns = KINDS[kind](records, **given)
    write = _writer(path)
    write(columns)
    return len(columns["prompt"])


def table_writer(path: str | os.PathLike[str]) -> Callable[[pd.DataFrame], None]:
    """Return what writes a table, a row a response, so that `bonlib.records.reading.read` reads it again.

    What is missing in the table is written as missing.

    Args:
        path: as of `export`.

    Raises:
        ValueError: if its ending is none of those.
    """
    write = _writer(path)

    def write_table(table: pd.DataFrame) -> None:
        known = table.astype(object).where(table.notna(), None)
        write({str(name): known[name].tolist() for name in known})

    return write_table


def _writer(path: str | os.PathLike[str]) -> Callable[[Columns], None]:
    if os.fspath(path) == "-":
        return lambda columns: sys.stdout.writelines(_lines(columns))
    file = Path(path).expanduser()
    kinds: Mapping[str, Callable[[Columns], bytes]] = {
        ".jsonl": lambda columns: "".join(_lines(columns)).encode(),
        ".json": lambda columns: ("[" + ",".join(_lines(columns)) + "]\n").encode(),
        ".csv": _as_csv,
        ".parquet": _as_parquet,
    }
    if file.suffix not in kinds:
        raise ValueError(f"path is {os.fspath(path)!r}; it must end in {', '.join(kinds)}, or be '-' for stdout")
    return lambda columns: replace_file(file, kinds[file.suffix](columns))


def _rows(columns: Columns) -> Iterator[tuple[Any, ...]]:
    return zip(*(c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()), strict=True)


def _lines(columns: Columns) -> Iterator[str]:
    for row in _rows(columns):
        yield json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n"


def _as_csv(columns: Columns) -> bytes:
    if listed := [name for name, column in columns.items() if len(column) and isinstance(column[0], list)]:
        raise ValueError(
            f"{listed[0]} has {shown(columns[listed[0]][0])}, which CSV cannot hold: write .jsonl or .parquet"
        )
    return _table(columns).to_csv(index=False, lineterminator="\n").encode()


def _as_parquet(columns: Columns) -> bytes:
    _table(columns).to_parquet(held := io.BytesIO(), index=False)
    return held.getvalue()


def _table(columns: Columns) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(dict(columns), dtype=object)
