"""Tables of claims, and the page that collects them."""

import json

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter

from bonlib.course.claims import MIME, Claims, found_page, verdict


@pytest.mark.parametrize(
    ("parts", "word"),
    [([], "undecided"), ([True, True], "holds"), ([True, False], "holds in part"), ([False], "fails")],
)
def test_a_verdict_counts_its_parts(parts, word):
    assert verdict("c", parts, "e") == {"claim": "c", "here it": word, "evidence": "e"}


def test_what_fails_at_a_small_scale_says_so():
    assert verdict("c", [False], "e", scale=True)["here it"] == "not at this scale"
    assert verdict("c", [True], "e", scale=True)["here it"] == "holds"


def test_a_table_is_shown_and_its_rows_are_kept_beside_it():
    shown, _ = DisplayFormatter().format(Claims("A paper", [verdict("a < b", [True], "1 | 2")]))
    assert "a < b" in shown["text/html"].replace("&lt;", "<")
    assert json.loads(json.dumps(shown[MIME]))["rows"][0]["evidence"] == "1 | 2"
    assert "a < b: holds (1 | 2)" in shown["text/plain"]


def test_the_page_has_a_line_a_claim_of_the_notebooks_that_were_run(tmp_path):
    rows = [verdict("a", [True], "1 | 2"), verdict("b", [False], "3"), {"claim": "c", "here it": "loose, 3% used",
            "evidence": "4"}]  # fmt: skip
    shown, _ = DisplayFormatter().format(Claims("A paper", rows))
    output = nbformat.v4.new_output("execute_result", data=shown, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("claims", outputs=[output])])
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    page = found_page(tmp_path, [tmp_path / "01_one.ipynb", tmp_path / "02_not_run.ipynb"])
    assert "Of 3 claims the tables say “holds” 2, “fails” 1." in page
    assert "## A paper" in page
    assert "| a | holds | 1 \\| 2 |" in page
    assert "02_not_run" not in page
    assert "No notebook with a claim was run" in found_page(tmp_path, [])
