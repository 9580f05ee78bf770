"""Every notebook runs as its solution at the quick profile, headless, from an empty store."""

import copy

import nbformat
import pytest

from bonlib.course.exercises import FAILED, PASSED, SOLUTIONS, is_tagged, stub
from bonlib.course.figures import UNLABELLED
from bonlib.course.profiles import get_profile
from bonlib.course.runner import find_notebooks, run_notebooks
from bonlib.course.site.pages import alternative_text


def with_stubs_first(notebook):
    """A copy in which each exercise is tried as a stub, in cells tagged so, before it is solved: one run shows both."""
    both = copy.deepcopy(notebook)
    cells = []
    for cell, after in zip(both.cells, [*both.cells[1:], None], strict=True):
        if is_tagged(cell, "exercise"):
            if after is None or not is_tagged(after, "check"):
                raise ValueError(f"notebook has no check after its exercise {cell.source[:60]!r}: tag the next cell")
            first = copy.deepcopy(cell), copy.deepcopy(after)
            first[0].source = stub(cell.source)
            for trial in first:
                trial.id += "-stub"
                trial.metadata["tags"] = [*trial.metadata["tags"], "stub"]
            cells += first
        cells.append(cell)
    both.cells = cells
    return both


@pytest.mark.slow
@pytest.mark.parametrize("path", find_notebooks(folder=SOLUTIONS), ids=lambda path: path.stem)
def test_the_notebook_runs_its_solutions_pass_and_its_stubs_do_not(path, tmp_path, monkeypatch):
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(with_stubs_first(nbformat.read(path, as_version=4)), tmp_path / "notebooks" / path.name)
    (report,) = run_notebooks(get_profile("quick"), folder=tmp_path / "notebooks", build=tmp_path)
    assert report.status == "ok", report.error
    executed = nbformat.read(tmp_path / path.name, as_version=4)
    for cell in executed.cells:
        if is_tagged(cell, "check"):
            lines = "".join(output.text for output in cell.outputs).splitlines()
            wanted = FAILED if is_tagged(cell, "stub") else PASSED
            assert lines
            assert all(line.startswith(wanted) for line in lines), lines
    planned = [cell for cell in executed.cells if "figure" in cell.metadata]
    assert report.figures == [f"figures/{path.stem[:2]}_{cell.metadata['figure']}.png" for cell in planned]
    for cell in planned:
        about = [alternative_text(output) for output in cell.outputs if "image/png" in output.get("data", {})]
        assert all(about), f"{cell.metadata['figure']} has no description"
        assert UNLABELLED not in " ".join(about), about


def test_a_stub_is_tried_before_it_is_solved():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("x = 1  # SOLUTION", metadata={"tags": ["exercise"]}),
            nbformat.v4.new_code_cell("check(x)", metadata={"tags": ["check"]}),
            nbformat.v4.new_code_cell("y = 2"),
        ]
    )
    both = with_stubs_first(notebook)
    nbformat.validate(both)
    sources = [cell.source for cell in both.cells]
    assert sources == ["x = ...  # your turn", "check(x)", "x = 1  # SOLUTION", "check(x)", "y = 2"]
    del notebook.cells[1]
    with pytest.raises(ValueError, match="no check after its exercise"):
        with_stubs_first(notebook)
