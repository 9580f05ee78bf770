"""Tables of claims, and the page that collects them."""

import json

import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter

from bonlib.course.claims import MIME, Claims, agreed, exceeds, found_page, verdict


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ([], "undecided"), ([True, True], "holds"), ([True, False], "holds in part"), ([False], "fails"),
        ([None, None], "undecided"), ([True, None], "holds in part"), ([False, None], "fails"),
    ],
)  # fmt: skip
def test_a_verdict_counts_its_parts(parts, word):
    assert verdict("c", parts, "e") == {"claim": "c", "here it": word, "evidence": "e"}


@pytest.mark.parametrize(
    ("difference", "told"), [(0.31, True), (0.29, None), (0.1, None), (-0.09, None), (-0.11, False)]
)
def test_a_difference_is_told_from_chance_beyond_two_errors(difference, told):
    assert exceeds(difference, error=0.1, least=0.1) is told


def test_answers_that_differ_leave_a_question_open():
    assert agreed([1, True]) is True
    assert agreed([False]) is False
    assert agreed([True, False]) is None
    assert agreed([]) is None


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
    tables = [Claims("A paper", rows), Claims("Ours", [verdict("d", [True], "5")], own=True)]
    outputs = [nbformat.v4.new_output("display_data", data=DisplayFormatter().format(table)[0]) for table in tables]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("claims", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    page = found_page(tmp_path, [tmp_path / "01_one.ipynb", tmp_path / "02_not_run.ipynb"])
    assert "Of 3 claims of the papers the tables say “holds” 2, “fails” 1." in page
    assert "Of 1 statements of the workbook's own the tables say “holds” 1." in page
    assert "## A paper\n\nFrom [](notebooks/01_one.ipynb).\n" in page
    assert "## Ours\n\nFrom [](notebooks/01_one.ipynb), statements of the workbook's own.\n" in page
    assert "| a | holds | 1 \\| 2 |" in page
    assert "02_not_run" not in page
    assert "No notebook with a claim was run" in found_page(tmp_path, [])
