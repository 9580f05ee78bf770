"""Exercises: stubs cut out of solutions, and checks that say what is wrong and never raise."""

import nbformat
import numpy as np
import pytest
import torch

from bonlib.course.exercises import (
    INSTALL,
    SOLUTIONS,
    check_function,
    check_value,
    cut,
    is_tagged,
    readers_text,
    stub,
    write_stubs,
)
from bonlib.course.runner import NOTEBOOKS, find_notebooks

SOLUTION = """\
def win_rate(policy):
    # BEGIN SOLUTION
    calibrated = (F + F_le) / 2
    return policy @ calibrated
    # END SOLUTION


low = 0.25  # SOLUTION
print(low)"""


@pytest.mark.parametrize("path", find_notebooks(folder=SOLUTIONS), ids=lambda path: path.stem)
def test_the_readers_notebook_is_the_solution_with_its_exercises_cut_out(path):
    assert (NOTEBOOKS / path.name).read_text() == readers_text(path), "run `make stubs`"


@pytest.mark.parametrize("path", find_notebooks(folder=SOLUTIONS), ids=lambda path: path.stem)
def test_every_notebook_has_exercises_with_a_check_each_and_answers_last(path):
    cells = nbformat.read(path, as_version=4).cells
    places = [place for place, cell in enumerate(cells) if is_tagged(cell, "exercise")]
    assert 2 <= len(places) <= 4
    for place in places:
        assert is_tagged(cells[place + 1], "check")
        assert f'"{path.stem[:2]}.' in cells[place + 1].source
    (answer,) = [place for place, cell in enumerate(cells) if cell.source.startswith("**The answer")]
    assert answer > places[-1]
    assert not any(cell.cell_type == "markdown" for cell in cells[answer + 1 :])


def test_what_is_marked_is_cut_out():
    assert stub(SOLUTION) == ("def win_rate(policy):\n    # your turn\n    ...\n\n\nlow = ...  # your turn\nprint(low)")


def test_the_way_to_an_answer_is_not_shown_by_dots_of_its_own():
    assert stub("# BEGIN SOLUTION\ny = 1\n# END SOLUTION\nx = y  # SOLUTION") == "x = ...  # your turn"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "has nothing to cut: write"),
        ("# BEGIN SOLUTION\nx = 1", "'# BEGIN SOLUTION' without its other half"),
        ("# END SOLUTION", "'# END SOLUTION' without its other half"),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION", "without its other half"),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION", "'# BEGIN SOLUTION' without its other half"),
        ("print(x)  # SOLUTION", "'# SOLUTION' without its other half"),
        ("low, high = 1, 2  # SOLUTION", "'# SOLUTION' without its other half"),
    ],
)
def test_a_mark_without_its_other_half_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        stub(source)


def notebook_with(*cells):
    made = [nbformat.v4.new_markdown_cell("# Title")]
    for source, *tags in cells:
        made.append(nbformat.v4.new_code_cell(source, metadata={"tags": tags} if tags else {}))
    return nbformat.v4.new_notebook(cells=made)


def test_readers_get_stubs_after_a_cell_that_installs():
    notebook = notebook_with(("x = 1  # SOLUTION", "exercise"), ("check(x)", "check"), ("y = 2",))
    readers = cut(notebook)
    assert [cell.source for cell in readers.cells[1:]] == [INSTALL, "x = ...  # your turn", "check(x)", "y = 2"]


def test_stubs_are_written_where_they_changed(tmp_path):
    solutions, folder = tmp_path / "solutions", tmp_path
    solutions.mkdir()
    nbformat.write(notebook_with(("x = 1  # SOLUTION", "exercise"), ("check(x)", "check")), solutions / "01_a.ipynb")
    assert write_stubs(solutions, folder) == [folder / "01_a.ipynb"]
    assert write_stubs(solutions, folder) == []


@pytest.mark.parametrize("answer", [2.0, 2, np.float32(2), np.array(2.0), torch.tensor(2.0, requires_grad=True), 1.95])
def test_a_right_number_passes_whatever_it_is_made_of(answer, capsys):
    check_value("1", answer, 2.0, within=0.1)
    assert capsys.readouterr().out == "[OK] exercise 1\n"


class Vicious:
    """Nothing that an answer might do stops a notebook."""

    def __array__(self, *_, **__):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    def __repr__(self):
        return "vicious"


@pytest.mark.parametrize(
    ("answer", "right", "message"),
    [
        (..., 2.0, "put your answer in the place of the three dots"),
        (None, "forward", "put your answer in the place of the three dots"),
        (3.0, 2.0, "3, is too large. Hint: think"),
        (float("nan"), 2.0, "nan, is not a number. Hint: think"),
        ([1.0, 5.0], [1.0, 2.0], "number 1 (counted from 0), 5, is too large. Hint: think"),
        ([1.0], [1.0, 2.0], "shape (1,), wanted is (2,). Hint: think"),
        ("two", 2.0, "'two' is no number, nor numbers. Hint: think"),
        ("reverse", "forward", "'reverse' is not it. Hint: think"),
        (Vicious(), 2.0, "cannot be checked, RuntimeError: no"),
        (Vicious(), "forward", "vicious is not it. Hint: think"),
    ],
)
def test_a_wrong_value_is_told_what_is_wrong(answer, right, message, capsys):
    check_value("1", answer, right, hint="think")
    out = capsys.readouterr().out
    assert out.startswith("[not yet] exercise 1: ")
    assert out.strip().endswith(message)


def raising(n):
    return n / 0


def unfinished(n): ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (..., "put your answer in the place of the three dots"),
        (unfinished, "put your answer in the place of the three dots"),
        (3, "a function is wanted, and this is 3"),
        (raising, "at (1) it raises ZeroDivisionError: division by zero. Hint: square"),
        (lambda n: n, "at (2) it returns 2, is too small. Hint: square"),
        (lambda n, m: n, "it raises TypeError: "),
    ],
)
def test_a_wrong_function_is_told_where(function, message, capsys):
    check_function("1", function, lambda n: n**2, [(1,), (2,)], hint="square")
    out = capsys.readouterr().out
    assert out.startswith("[not yet] exercise 1: ")
    assert message in out


def test_a_right_function_passes_and_may_spoil_its_arguments(capsys):
    def spoiling(values):
        values.sort()
        return values[-1]

    check_function("1", spoiling, max, [([3.0, 1.0],), (np.array([1.0, 2.0]),)])
    assert capsys.readouterr().out == "[OK] exercise 1\n"
