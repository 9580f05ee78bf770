"""Exercises: their stubs are cut out of the solutions, and their checks say what is wrong without raising.

A notebook in `notebooks/solutions` is what we write. A cell with the tag *exercise* holds a solution, marked as
nbgrader marks it, and the cell after it, with the tag *check*, tries it::

    beta = 1 / np.log(15)  # SOLUTION

    def win_rate(policy):
        # BEGIN SOLUTION
        return policy @ calibrated
        # END SOLUTION

`cut` makes the notebook that readers open: `beta = ...`, and `...` for the body.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bonlib.course.runner import NOTEBOOKS, find_notebooks

SOLUTIONS = NOTEBOOKS / "solutions"
BEGIN, END, ANSWER = "# BEGIN SOLUTION", "# END SOLUTION", "# SOLUTION"
PASSED, FAILED = "[OK]", "[not yet]"  # what the line of a check begins with
TODO = "# your turn"
BLOCK = re.compile(rf"^( *){BEGIN}\n.*?^ *{END}$", re.DOTALL | re.MULTILINE)
LINE = re.compile(rf"^( *\w+ = ).*{ANSWER}$", re.MULTILINE)
REPOSITORY = "https://github.com/bonlib/bonlib"
INSTALL = f"""\
# Where bonlib is not installed, as on Colab: fetch the workbook and what it needs, once for a machine.
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("bonlib") is None:
    !git clone --quiet --depth 1 {REPOSITORY} workbook
    !PYTHON={{sys.executable}} bash workbook/.binder/postBuild
    sys.path.append(str(Path("workbook").resolve()))"""


class Wrong(Exception):  # noqa: N818  # the reader's affair, never an error of the notebook
    """Why an answer does not pass."""


class Open(Wrong):
    """There is no answer yet."""


def check_value(exercise: str, answer: Any, right: Any, *, within: float = 1e-6, hint: str = "") -> None:
    """Print whether an answer is right, and if not, what is wrong with it; raise nothing.

    Args:
        exercise: its number.
        answer: the reader's number, array or word; `...` while there is none.
        right: number, array of any shape, or word.
        within: largest difference of numbers that passes, in their own units.
        hint: said where the answer is wrong.
    """
    with _reported(exercise, hint):
        if not isinstance(right, str):
            _compare(answer, right, within)
            return
        _refuse_todo(answer)
        if not isinstance(answer, str) or answer.strip().lower() != right.lower():
            raise Wrong(f"{answer!r} is not it")


def check_function(
    exercise: str,
    function: Any,
    oracle: Callable[..., Any],
    cases: Iterable[Sequence[Any]],
    *,
    within: float = 1e-6,
    hint: str = "",
) -> None:
    """Print whether a function does as an oracle does, and if not, where it differs; raise nothing.

    Args:
        exercise: its number.
        function: the reader's.
        oracle: what it should agree with.
        cases: positional arguments of each call.
        within: largest difference that passes, in the units of what is returned.
        hint: said where the function is wrong.
    """
    with _reported(exercise, hint):
        _refuse_todo(function)
        if not callable(function):
            raise Wrong(f"a function is wanted, and this is {function!r}")
        for case in cases:
            call = f"at ({', '.join(_short(value) for value in case)}) it "
            right = oracle(*copy.deepcopy(case))
            try:
                given = function(*copy.deepcopy(case))
            except Exception as error:  # the reader's: they shall see it, and the notebook goes on
                raise Wrong(f"{call}raises {type(error).__name__}: {error}") from error
            _refuse_todo(given)
            try:
                _compare(given, right, within)
            except Wrong as reason:
                raise Wrong(f"{call}returns {reason}") from None


def stub(source: str) -> str:
    """Return the code of a solution with what is marked cut out of it.

    Raises:
        ValueError: if nothing is marked, or a mark has no other half.
    """
    text, blocks = BLOCK.subn(rf"\1{TODO}\n\1...", source)
    text, lines = LINE.subn(rf"\1...  {TODO}", text)
    odd = [mark for mark in (BEGIN, END, ANSWER) if mark in text] or [BEGIN] * (source.count(BEGIN) - blocks)
    if odd or not blocks + lines:
        what = f"has {odd[0]!r} without its other half" if odd else "has nothing to cut"
        ways = f"write {BEGIN!r}, the solution and {END!r}, or name = value  {ANSWER}"
        raise ValueError(f"source {source[:60]!r} {what}: {ways}")
    # The way to an answer is the reader's affair: a block right before one leaves nothing.
    return re.sub(rf"^{TODO}\n\.\.\.\n(?=\w+ = \.\.\.)", "", text, flags=re.MULTILINE)


def cut(notebook: Any) -> Any:
    """Return a copy of a notebook with solutions in which every exercise is a stub, after a cell that installs."""
    import nbformat

    readers = copy.deepcopy(notebook)
    install = nbformat.v4.new_code_cell(INSTALL, id="install", metadata={"jupyter": {"source_hidden": True}})
    readers.cells.insert(1, install)
    for cell in readers.cells:
        if is_tagged(cell, "exercise"):
            cell.source = stub(cell.source)
    return readers


def write_stubs(solutions: Path = SOLUTIONS, folder: Path = NOTEBOOKS) -> list[Path]:
    """Write the readers' notebook of each solution; return those that changed."""
    changed = []
    for path in find_notebooks(folder=solutions):
        target, text = folder / path.name, readers_text(path)
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            changed.append(target)
    return changed


def readers_text(path: Path) -> str:
    """Return the file that readers open, from the file of its solution."""
    import nbformat

    return str(nbformat.writes(cut(nbformat.read(path, as_version=4)))) + "\n"


def is_tagged(cell: Any, tag: str) -> bool:
    """Return whether a cell has this tag."""
    return tag in cell.metadata.get("tags", [])


@contextmanager
def _reported(exercise: str, hint: str) -> Iterator[None]:
    """Print what becomes of a check; nothing that an answer does stops a notebook."""
    try:
        yield
    except Open as reason:
        print(f"{FAILED} exercise {exercise}: {reason}")
    except Wrong as reason:
        print(f"{FAILED} exercise {exercise}: {reason}" + (f". Hint: {hint}" if hint else ""))
    except Exception as trouble:  # of an answer that nobody thought of
        print(f"{FAILED} exercise {exercise}: it cannot be checked, {type(trouble).__name__}: {trouble}")
    else:
        print(f"{PASSED} exercise {exercise}")


def _refuse_todo(answer: Any) -> None:
    if answer is None or answer is ...:
        raise Open("put your answer in the place of the three dots")


def _compare(answer: Any, right: Any, within: float) -> None:
    """Raise Wrong if numbers are not those that are right."""
    _refuse_todo(answer)
    wanted = np.asarray(right, dtype=np.float64)
    if hasattr(answer, "detach"):  # a tensor
        answer = answer.detach().cpu()
    try:
        given = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"{_short(answer)} is no number, nor numbers") from None
    if given.shape != wanted.shape:
        raise Wrong(f"shape {given.shape}, wanted is {wanted.shape}")
    wrong = ~np.isclose(given, wanted, rtol=0, atol=within)
    if not wrong.any():
        return
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    where = f"number {', '.join(str(i) for i in place)} (counted from 0), " if place else ""
    value = float(given[place])
    if np.isnan(value):
        raise Wrong(f"{where}nan, is not a number")
    raise Wrong(f"{where}{value:.6g}, is too {'large' if value > wanted[place] else 'small'}")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
