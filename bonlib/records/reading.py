"""Anybody's prompts, responses and scores as `Records`, and prompts alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.checks import one_of, shown
from bonlib.records.columns import BadRowError, column_of, listed
from bonlib.records.formats import FORMATS
from bonlib.records.gathering import LOOKED_AT, Gathered, as_text, whole_text
from bonlib.records.records import Records
from bonlib.records.sources import Source, Unread, numbered_lines, parts

if TYPE_CHECKING:
    import pandas as pd


def read(
    source: Source | pd.DataFrame | Sequence[Source],
    *,
    format: str | None = None,
    split: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    reward: str | None = None,
    gold: str | None = None,
    log_prob: str | None = None,
    length: str | None = None,
    answer: str | None = None,
    correct: str | None = None,
) -> Records:
    """Read prompts, responses and scores that anybody has written.

    A table has a row a response, or a row a prompt with lists of one length. Prompts and responses may be texts or
    conversations. Rows that are not as they should be are kept apart, in `Records.bad`; a log-probability that is none
    is taken for unknown. Several files are read as one: draws of one prompt go together wherever they stand.

    Args:
        source: JSON lines, JSON, CSV, TSV, Parquet or Arrow, the texts gzipped or not; "-" for stdin; a folder of such
            files, or as `datasets` saves one; a name on the hub; several of these; a table of pandas or
            `datasets`; or a list of rows, each a dict.
        format: one of `bonlib.records.formats.FORMATS`; told by the columns if None.
        split: of a data set that has several.
        prompt: column of the prompt; each of these by its usual names, `bonlib.records.columns.USUAL`, if None.
        response: of the response, or of a list of them.
        reward: of the score, higher is better; with a minus before it, "-toxicity", lower is. Of the harness's files,
            metric and filter: "exact_match,strict-match".
        gold: of a second score, which the first stands for; likewise.
        log_prob: of the log-probability of the response under the model that drew it, nats.
        length: of its number of tokens.
        answer: of what the response says in the end.
        correct: of whether that is right.

    Raises:
        ValueError: if nothing in it can be used, or a column is not there; the message names file, line and remedy.
        FileNotFoundError: if the source is not there.
        ModuleNotFoundError: if it needs the package `datasets`, which is not installed.
    """
    columns = {
        "prompt": prompt, "response": response, "reward": reward, "gold": gold, "log_prob": log_prob,
        "length": length, "answer": answer, "correct": correct,
    }  # fmt: skip
    given = {field: column for field, column in columns.items() if column is not None}
    if format is not None:
        one_of("format", format, FORMATS)
    lower = [field for field in ("reward", "gold") if given.get(field, "").startswith("-")]
    given |= {field: given[field].removeprefix("-") for field in lower}
    found = Gathered(lower=[given[field].partition(",")[0] for field in lower])
    for part in parts(source, split):
        found.read(part, format, given)
    return found.records()


def read_prompts(
    source: Source | Sequence[Source], column: str | None = None, *, split: str | None = None
) -> list[str]:
    """Read prompts, each once, of which a model is to draw.

    Args:
        source: as of `read`; a file that ends in .txt has a prompt a line.
        column: of the prompt, a text or a conversation; by its usual names if None.
        split: of a data set that has several.

    Raises:
        ValueError: if there is none, or a row has none; the message names file, line and remedy.
        FileNotFoundError: if the source is not there.
    """
    if isinstance(source, str | os.PathLike) and Path(source).suffix == ".txt" and Path(source).is_file():
        with Path(source).open("rb") as lines:
            found = dict.fromkeys(text.rstrip("\r\n") for _, text in numbered_lines(lines, os.fspath(source)))
    else:
        found = {}
        for part in parts(source, split):
            first = list(islice(part.rows, LOOKED_AT))
            rows = [row for _, row in first if not isinstance(row, Unread)]
            try:
                name = column_of("prompt", rows, {"prompt": column} if column else {})
            except ValueError as error:
                raise ValueError(f"{part.name} {error}") from error
            if rows and name is None:
                raise ValueError(f"{part.name} has no prompt; it has {listed(rows)}: say prompt= one of these")
            for number, row in chain(first, part.rows):
                where = f"{part.name}, {part.unit} {number}"
                if isinstance(row, Unread):
                    raise ValueError(f"{where} {row.reason}")
                asked = row.get(name or "")
                try:
                    found[whole_text("prompt", asked if isinstance(asked, str) else as_text(asked))] = None
                except BadRowError as error:
                    raise ValueError(f"{where} {error}") from error
    if not found:
        raise ValueError(f"{shown(source)} is empty: it holds no prompt")
    return list(found)
