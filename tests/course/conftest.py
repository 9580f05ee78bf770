"""The site, made once by the command, for those that read its pages and those that look at them."""

import io
import json
import os
from contextlib import redirect_stdout
from types import SimpleNamespace

import nbformat
import pytest

from bonlib.__main__ import main
from bonlib.course.runner import find_notebooks
from bonlib.course.site import SiteBuilder

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """What `bonlib run` made and said in another directory, of a notebook made to fail by a parameter.

    Of the others one had run well before, one had failed, and the rest had not run.
    """
    place = tmp_path_factory.mktemp("site")
    executed = place / "quick"
    executed.mkdir()
    good, _, bad = find_notebooks(["01", "02", "03"])
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

    sites, build, here = [], SiteBuilder.build, os.getcwd()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr(SiteBuilder, "build", lambda self: sites.append(build(self)) or sites[-1])
        patch.chdir(place)
        code = main(["run", "--only", "02", "--build", "quick", "-p", "probs=[0.3, 0.8, -0.1]"])
    assert os.getcwd() == here
    return SimpleNamespace(sites=sites, code=code, lines=said.getvalue().splitlines())


@pytest.fixture(scope="session")
def site(ran):
    return ran.sites[-1]
