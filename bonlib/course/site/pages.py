"""A notebook as a page of the site: results with alternative texts, exercises with their solutions folded away."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from bonlib.course.exercises import BEGIN, END, is_tagged
from bonlib.course.runner import Report

LEFT_OUT = {"injected-parameters", "papermill-error-cell-tag", "check"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook_page(notebook: Any, solutions: Any, report: Report | None, with_links: Callable[[str], str]) -> Any:
    """Return a copy of a notebook to be shown rather than run.

    Args:
        notebook: executed, or not.
        solutions: the notebook with solutions.
        report: of its run, or None.
        with_links: what puts cross-references into the text of a page.
    """
    import nbformat

    page = copy.deepcopy(notebook)
    answers = {cell.id: cell.source for cell in solutions.cells if is_tagged(cell, "exercise")}
    cells = []
    for cell in page.cells:
        if LEFT_OUT & set(cell.metadata.get("tags", [])) or cell.id == "install":
            continue
        if cell.cell_type == "code":
            _show_results(cell)
        cells.append(cell)
        if is_tagged(cell, "exercise"):
            cell.outputs = []
            cells.append(nbformat.v4.new_markdown_cell(_folded(answers[cell.id]), id=f"{cell.id}-solution"))
    page.cells = cells
    _link_once(page, with_links)
    page.cells[0].source += _ran(report)
    page.metadata.pop("papermill", None)
    page.metadata.pop("widgets", None)
    return page


def has_same_exercises(notebook: Any, solutions: Any) -> bool:
    """Return whether an executed notebook is one of those solved today, not one of an older version of the course."""
    known = {cell.id for cell in solutions.cells}
    return all(cell.id in known for cell in notebook.cells if is_tagged(cell, "exercise"))


def alternative_text(output: Any) -> str:
    """Return what stands for a picture where it cannot be seen: its own description, or an empty string."""
    given = output.get("metadata", {}).get("image/png", {}).get("alt", "")
    text = output.get("data", {}).get("text/plain", "")
    return given or ("" if text.startswith("<") else " ".join(text.split()))


def failure(report: Report) -> str:
    """Return where and how a notebook failed, in Markdown, or an empty string."""
    error = report.error.partition("\n")[0].replace("`", "'")
    return f"**failed**: `{error}`" if error else ""


def _show_results(cell: Any) -> None:
    cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            cell.metadata["mystnb"] = {"image": {"alt": alternative_text(output) or "see the caption"}}


def _folded(source: str) -> str:
    code = "\n".join(
        re.sub(r"\s*# SOLUTION$", "", line) for line in source.splitlines() if line.strip() not in (BEGIN, END)
    )
    return f"<details><summary>A solution</summary>\n\n```python\n{code}\n```\n\n</details>"


def _link_once(page: Any, with_links: Callable[[str], str]) -> None:
    """Put cross-references into the text, each once a page: the cells are one text while that is done."""
    import nbformat

    border = "\n\n%%%cell%%%\n\n"
    texts = [cell for cell in page.cells if cell.cell_type == "markdown"]
    linked = with_links(border.join(cell.source for cell in texts)).split(border)
    for cell, source in zip(texts, linked, strict=True):
        cell.source = source
    nbformat.validate(page)


def _ran(report: Report | None) -> str:
    if report is None:
        return "\n\n*This notebook had not been run when the page was made.*"
    when = f"{report.seconds:.0f} seconds on {report.date}, version {report.commit}"
    return f"\n\n*The results on this page: {when}.*\n\n{failure(report)}"
