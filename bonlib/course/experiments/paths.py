"""Policies on their way, as the tables of results have them: read, compared at equal KL, held against a claim."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bonlib.course.experiments.results import read_rows


def read_paths(table: Path, about: Sequence[str]) -> pd.DataFrame:
    """Return what was measured during the runs of a table, a row a measurement.

    Args:
        table: of the runs; the measurements are beside it, in the file that ends in ``_curves``.
        about: columns of the runs' table that every measurement shall have; they replace its own of that name.
    """
    curves, runs = read_rows(table.with_name(f"{table.stem}_curves.csv")), read_rows(table)
    return curves.drop(columns=[*about], errors="ignore").merge(runs[["run", *about]], on="run")


def read_sweeps(
    folder: Path, sweeps: Sequence[str], profile: str, **defaults: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs of a profile and what was measured on the way, on held-out prompts, from several sweeps.

    Args:
        folder: of the tables.
        sweeps: names of the tables.
        profile: whose runs.
        defaults: fields of the methods that get a column, as in `with_fields`.

    Returns:
        A row a run, of the policy at its end on all test prompts, and a row a measurement on the way, on few responses.
        Both have the columns step, run, sweep, method, value, seed, options, m, steps, the fields and the figures.
    """
    about = ["profile", "method", "value", "seed", "options", "m", "steps"]
    tables = {sweep: folder / f"{sweep}.csv" for sweep in sweeps}
    runs = pd.concat({sweep: read_rows(table) for sweep, table in tables.items()}, names=["sweep"])
    paths = pd.concat({sweep: read_paths(table, about) for sweep, table in tables.items()}, names=["sweep"])
    tested = {column: str(column).removeprefix("test_") for column in paths if str(column).startswith("test_")}
    paths = paths.drop(columns=[*tested.values()], errors="ignore").rename(columns=tested)  # these were of training
    runs, paths = (
        with_fields(table[table["profile"] == profile].reset_index("sweep").reset_index(drop=True), **defaults)
        for table in (runs, paths)
    )
    return runs.assign(step=runs["steps"]), paths


def with_fields(rows: pd.DataFrame, **defaults: float) -> pd.DataFrame:
    """Return rows with a column for each of some fields of a method, read from their column of options.

    Args:
        rows: with a column of options such as "n=4; anchor_every=50", or nothing.
        defaults: name of a field to what it is where the options do not have it.
    """
    options = rows["options"].fillna("").astype(str)
    found = {name: options.str.extract(rf"(?:^|; ){name}=([^;]+)")[0].astype(float) for name in defaults}
    return rows.assign(**{name: column.fillna(defaults[name]) for name, column in found.items()})


def height(rows: pd.DataFrame, at: ArrayLike, x: str = "kl", y: str = "reward") -> NDArray[np.float64]:
    """Return how high a path, the mean over its runs, is at some places along x; NaN where it did not come.

    At each step the mean is over the runs that were measured there, and the means are put in the order of x: give runs
    with the same steps, on a path that goes forward along x.

    Args:
        rows: a row a measurement, with run, step, x and y.
        at: places, of any shape. Between two measurements the path is straight, so that they must lie close.
        x: the column along which the path goes.
        y: the column of its height.
    """
    path = rows.groupby("step")[[x, y]].mean().sort_values(x)
    return np.asarray(np.interp(np.asarray(at, float), path[x], path[y], left=np.nan, right=np.nan))


def lead(rows: pd.DataFrame, other: pd.DataFrame, x: str = "kl", y: str = "reward", *, up_to: float = np.inf) -> float:
    """Return how much higher one path is than another, the mean over its own places that both came to.

    The place where both begin, x = 0, is left out.

    Args:
        rows: a row a measurement, with run, step, x and y.
        other: likewise, of the other path.
        x: the column along which the paths go.
        y: the column of their height.
        up_to: places beyond are left out.

    Returns:
        The mean of the differences; NaN if the two have no place in common.
    """
    places = rows.groupby("step")[x].mean()
    places = places[(places != 0) & (places <= up_to)]
    gaps = height(rows, places, x, y) - height(other, places, x, y)
    return float(np.nanmean(gaps)) if np.isfinite(gaps).any() else np.nan


def verdict(claim: str, parts: Collection[bool], evidence: str) -> dict[str, str]:
    """Return the row of a table of claims: it holds if all its parts do, in part if some do; open if there are none."""
    here = "undecided" if not len(parts) else "holds" if all(parts) else "holds in part" if any(parts) else "fails"
    return {"claim": claim, "here it": here, "evidence": evidence}
