"""Tables of results on disk: one row as each run finishes, from as many processes as there are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from bonlib.draws.store import replace_file


def read_rows(path: Path) -> pd.DataFrame:
    """Return a table of results; one without rows or columns if there is none yet."""
    return (
        pd.read_csv(path, dtype={"run": str, "commit": str}) if path.exists() else pd.DataFrame({"run": []}, dtype=str)
    )


def add_rows(path: Path, run: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows of one run to a table, in place of any that the run has there.

    Args:
        path: a CSV file, made if it is missing. A lock beside it keeps writers apart.
        run: identifies the run; becomes the first column.
        rows: name to value; columns that are new to the table are added to it.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        table = read_rows(path)
        fresh = pd.DataFrame([{"run": run, **row} for row in rows])
        table = pd.concat([table[table["run"] != run], fresh], ignore_index=True) if len(table) else fresh
        buffer = io.StringIO()
        table.to_csv(buffer, index=False, float_format="%.6g")
        replace_file(path, buffer.getvalue().encode())


@contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """Claim a piece of work, so that several processes may share out many: true unless another has it at the moment.

    Args:
        lock: a file that stands for the piece, made with its folder if missing. A process that dies lets go of it.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
