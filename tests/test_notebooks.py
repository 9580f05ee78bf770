"""Every notebook runs at the quick profile, headless, from an empty store."""

import nbformat
import pytest

from bonlib.course.profiles import get_profile
from bonlib.course.runner import find_notebooks, run_notebooks


@pytest.mark.slow
@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("BONLIB_STORE", str(tmp_path / "store"))
    (report,) = run_notebooks(get_profile("quick"), only=[path.stem], build=tmp_path)
    assert report.status == "ok", report.error
    executed = nbformat.read(tmp_path / path.name, as_version=4)
    planned = [cell.metadata["figure"] for cell in executed.cells if "figure" in cell.metadata]
    assert report.figures == [f"figures/{path.stem[:2]}_{name}.png" for name in planned]
