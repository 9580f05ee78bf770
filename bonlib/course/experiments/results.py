"""Results on disk: a Parquet file a sweep, a row a run, from as many processes as there are; and how runs compare."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from bonlib.checks import one_of
from bonlib.course.runner import ROOT
from bonlib.draws.segments import replace_file

RESULTS = ROOT / "data" / "results"
PARTS = ("curves", "prompts", "texts")  # what a run has many rows of, as columns of lists


def read_rows(path: Path, part: str = "") -> pd.DataFrame:
    """Return the rows of a file of results; none if there is no such file yet.

    Args:
        path: a Parquet file with a column run.
        part: empty for a row a run, with its figures; else a row a measurement while training ("curves"), a test prompt
            ("prompts") or a text that was kept ("texts"), with the run that it belongs to.
    """
    if not path.exists():
        return pd.DataFrame({"run": []}, dtype=str)
    runs = pd.read_parquet(path)
    if not part:
        return runs.drop(columns=[*PARTS], errors="ignore")
    rows = runs.reindex(columns=["run", part]).explode(part).dropna().reset_index(drop=True)
    return rows[["run"]].join(pd.DataFrame(rows[part].tolist()))


def done_runs(path: Path) -> set[str]:
    """Return what identifies the runs in a file of results."""
    return set(pd.read_parquet(path, columns=["run"])["run"]) if path.exists() else set()


def add_run(path: Path, run: str, row: Mapping[str, Any], **parts: Sequence[Mapping[str, Any]]) -> None:
    """Add a run to a file of results, in place of what the file had of it; all of it or nothing.

    Args:
        path: a Parquet file, made if it is missing. A lock beside it keeps writers apart.
        run: identifies the run; becomes the first column.
        row: its figures, name to value; names that are new to the file become columns of it.
        parts: what there is of `PARTS`, each a list of rows.

    Raises:
        ValueError: if a part has another name.
    """
    from filelock import FileLock

    for part in parts:
        one_of("part", part, PARTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = pd.DataFrame([{"run": run, **row, **parts}])
        if path.exists():
            stored = pd.read_parquet(path)
            table = pd.concat([stored[stored["run"] != run], table], ignore_index=True)
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False, compression="zstd")
        replace_file(path, buffer.getvalue())


def provenance(device: torch.device, commit: str) -> dict[str, str]:
    """Return the columns that say what a run was made on, by which version, and when."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    if device.type != "cuda":
        name += f", {threads} thread{'s' if threads > 1 else ''}"
    return {"device": name, "commit": commit, "date": time.strftime("%Y-%m-%d")}


def options_text(options: Iterable[tuple[str, Any]]) -> str | None:
    """Return fields of a method as one text for a column, which `with_fields` reads; None if there is none."""
    return "; ".join(f"{name}={value}" for name, value in options) or None


@contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """Claim a piece of work, so that several processes may share out many: true unless another has it at the moment.

    Args:
        lock: a file that stands for the piece, made with its folder if missing. A process that dies lets go of it.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield True
    except Timeout:
        yield False


def read_paths(path: Path, about: Sequence[str]) -> pd.DataFrame:
    """Return what was measured during the runs of a file, a row a measurement.

    Args:
        path: the file.
        about: columns of the runs that every measurement shall have; they replace its own of that name.
    """
    measured = read_rows(path, "curves").drop(columns=[*about], errors="ignore")
    return measured.merge(read_rows(path)[["run", *about]], on="run")


def read_sweeps(
    folder: Path, sweeps: Sequence[str], profile: str, **defaults: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs of a profile and what was measured on the way, on held-out prompts, from several sweeps.

    Args:
        folder: of the files.
        sweeps: names of the files.
        profile: whose runs.
        defaults: fields of the methods that get a column, as in `with_fields`.

    Returns:
        A row a run, of the policy at its end on all test prompts, and a row a measurement on the way, on few responses.
        Both have the columns step, run, sweep, method, value, seed, options, m, steps, the fields and the figures.
    """
    about = ["profile", "method", "value", "seed", "options", "m", "steps"]
    files = {sweep: folder / f"{sweep}.parquet" for sweep in sweeps}
    runs = pd.concat({sweep: read_rows(file) for sweep, file in files.items()}, names=["sweep"])
    paths = pd.concat({sweep: read_paths(file, about) for sweep, file in files.items()}, names=["sweep"])
    tested = {column: str(column).removeprefix("test_") for column in paths if str(column).startswith("test_")}
    paths = paths.drop(columns=[*tested.values()], errors="ignore").rename(columns=tested)  # these were of training
    runs, paths = (
        with_fields(rows[rows["profile"] == profile].reset_index("sweep").reset_index(drop=True), **defaults)
        for rows in (runs, paths)
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
