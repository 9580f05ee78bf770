"""The tables of METHODS.md, from what each method says of itself; the text around them is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from bonlib.course.runner import ROOT
from bonlib.draws.segments import replace_file
from bonlib.inference import RULES
from bonlib.methods import METHODS

PAGE = ROOT / "METHODS.md"
BEGIN, END = "<!-- the table of {}, by `python -m bonlib methods` -->\n", "<!-- end of the table -->"
COLUMNS = ("method", "command", "samples", "maximises or minimises", "settings", "source")
OF_RULES = ("rule", "name", "keeps", "costs", "settings", "source")


def methods_table() -> str:
    """Return a row a training method, in Markdown."""
    rows = []
    for name, method in METHODS.items():
        settings = (method.setting, *method.options)
        rows.append((method.label, method.make, name, method.samples, method.objective, settings, method.source))
    return _table(COLUMNS, rows)


def rules_table() -> str:
    """Return a row a way to spend draws, in Markdown."""
    rows = []
    for name, rule in RULES.items():
        settings = tuple(signature(rule.make).parameters)
        rows.append((rule.label, rule.make, name, rule.keeps, rule.costs, settings, rule.source))
    return _table(OF_RULES, rows)


def _table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns)]
    for label, make, name, first, second, settings, source in rows:
        link = f"[{label}]({make.__module__.replace('.', '/')}.py)"
        lines.append((link, f"`{name}`", first, second, ", ".join(f"`{each}`" for each in settings), source))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def methods_page(page: str) -> str:
    """Return a page with the tables between their marks made again.

    Raises:
        ValueError: if it has no such marks.
    """
    for what, table in (("methods", methods_table()), ("rules", rules_table())):
        mark = BEGIN.format(what)
        before, begin, rest = page.partition(mark)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"the page lacks the lines {mark.strip()!r} and {END!r}, between which a table goes")
        page = f"{before}{mark}\n{table}\n{END}{after}"
    return page


def write_methods_page(path: Path = PAGE) -> Path:
    """Put the tables of today's methods and rules into METHODS.md, and return where that is."""
    replace_file(path, methods_page(path.read_text(encoding="utf-8")).encode())
    return path
