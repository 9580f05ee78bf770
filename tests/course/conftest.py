"""The site, made once for those that read its pages and those that look at them."""

import json

import nbformat
import pytest

from bonlib.course.runner import find_notebooks
from bonlib.course.site import build_site

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site of the notebooks, of which one ran well, one failed, and the others did not run."""
    executed = tmp_path_factory.mktemp("site") / "quick"
    executed.mkdir()
    good, bad = find_notebooks(["01", "02"])
    notebook = nbformat.read(good, as_version=4)
    drawn = next(cell for cell in notebook.cells if cell.metadata.get("figure") == "T1_kl_of_a_coin")
    drawn.metadata["tags"] = ["hide-input"]
    drawn.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="sampling: 100%"),
        nbformat.v4.new_output("display_data", {"image/png": PICTURE, "text/plain": "Figure. KL against n."}),
    ]
    nbformat.write(notebook, executed / good.name)
    notebook = nbformat.read(bad, as_version=4)
    failing = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.id != "install")
    trace = ["\x1b[31mValueError\x1b[0m: a deliberate error"]
    failing.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=trace)]
    nbformat.write(notebook, executed / bad.name)
    run = {"date": "today", "commit": "abc"}
    failed = run | {"status": "failed", "error": "cell 4 (x = 'a|b'): ValueError: *no* $\nmore"}
    reports = [
        run | {"name": good.stem, "seconds": 4.0, "status": "ok", "checks": 9},
        failed | {"name": bad.stem, "seconds": 120.0, "checks": 3},
    ]
    (executed / "reports.json").write_text(json.dumps(reports))
    return build_site(executed)
