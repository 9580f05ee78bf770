"""The table of METHODS.md, from what each method says of itself; the text around it is written by hand."""

from __future__ import annotations

from pathlib import Path

from bonlib.course.runner import ROOT
from bonlib.draws.segments import replace_file
from bonlib.methods import METHODS

PAGE = ROOT / "METHODS.md"
BEGIN, END = "<!-- the table, by `python -m bonlib methods` -->\n", "<!-- end of the table -->"
COLUMNS = ("method", "command", "samples", "maximises or minimises", "settings", "source")


def methods_table() -> str:
    """Return a row a method, in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, method in METHODS.items():
        label = f"[{method.label}]({method.make.__module__.replace('.', '/')}.py)"
        settings = ", ".join(f"`{each}`" for each in (method.setting, *method.options))
        rows.append((label, f"`{name}`", method.samples, method.objective, settings, method.source))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def methods_page(page: str) -> str:
    """Return a page with the table between its two marks made again.

    Raises:
        ValueError: if it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks the lines {BEGIN.strip()!r} and {END!r}, between which the table goes")
    return f"{before}{BEGIN}\n{methods_table()}\n{END}{after}"


def write_methods_page(path: Path = PAGE) -> Path:
    """Put the table of today's methods into METHODS.md, and return where that is."""
    replace_file(path, methods_page(path.read_text(encoding="utf-8")).encode())
    return path
