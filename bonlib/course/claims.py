"""What became of the papers' claims: tables in notebooks, and a page with all of them, *What we found*."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

MIME = "application/vnd.bonlib.claims+json"
OUTCOMES = ("holds", "holds in part", "fails", "undecided", "not at this scale")


def verdict(claim: str, parts: Collection[bool], evidence: str, *, scale: bool = False) -> dict[str, str]:
    """Return the row of a table of claims: it holds if all its parts do, in part if some do; open if there are none.

    Args:
        claim: in a sentence.
        parts: whether each of the inequalities holds that the claim amounts to.
        evidence: the numbers.
        scale: whether what fails here may hold for larger models, longer texts or more training.
    """
    fails = "not at this scale" if scale else "fails"
    here = "undecided" if not len(parts) else "holds" if all(parts) else "holds in part" if any(parts) else fails
    return {"claim": claim, "here it": here, "evidence": evidence}


class Claims:
    """A table of claims; the page *What we found* takes its rows from the executed notebook.

    Args:
        source: the paper, or papers, that they are from.
        rows: each with "claim", "here it" and "evidence", as of `verdict`.
        shown: a table to be shown in place of the usual one.
    """

    def __init__(self, source: str, rows: Sequence[Mapping[str, str]], shown: Any = None) -> None:
        self.source, self.rows = source, [dict(row) for row in rows]
        self.shown = shown

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        table = self.shown
        if table is None:
            table = pd.DataFrame(self.rows).style.hide().set_properties(None, **{"text-align": "left"})
        plain = "\n".join(f"{row['claim']}: {row['here it']} ({row['evidence']})" for row in self.rows)
        return {"text/html": table.to_html(), "text/plain": plain, MIME: {"source": self.source, "rows": self.rows}}


def found_page(executed: Path, notebooks: Sequence[Path]) -> str:
    """Return the page *What we found* as Markdown: a line a claim, from the notebooks that were run.

    Args:
        executed: folder of executed notebooks; those that are missing there have no line.
        notebooks: of the course, in order.
    """
    import nbformat

    parts, outcomes = list[str](), Counter[str]()
    for path in notebooks:
        if not (ran := executed / path.name).exists():
            continue
        for cell in nbformat.read(ran, as_version=4).cells:
            for told in (output["data"][MIME] for output in cell.get("outputs", []) if MIME in output.get("data", {})):
                rows = told["rows"]
                outcomes.update(_outcome(row["here it"]) for row in rows)
                cells = (" | ".join(_in_a_cell(row[name]) for name in ("claim", "here it", "evidence")) for row in rows)
                parts += [f"## {told['source']}\n", f"From [](notebooks/{path.name}).\n"]
                parts += ["| claim | here it | by these numbers |", "|---|---|---|", *(f"| {line} |" for line in cells)]
                parts.append("")
    counts = ", ".join(f"“{name}” {outcomes[name]}" for name in OUTCOMES if outcomes[name])
    lines = [
        "# What we found\n",
        "What became of the claims of the papers, each with the numbers that it rests on, as the notebooks worked them",
        "out from stored results when these pages were made.",
        f"Of {outcomes.total()} claims the tables say {counts}.\n"
        if outcomes
        else "No notebook with a claim was run.\n",
    ]
    return "\n".join([*lines, *parts])


def _outcome(here: str) -> str:
    """The first word or words of what a table says, which may go on with a number."""
    known = sorted(OUTCOMES, key=len, reverse=True)
    return next((name for name in known if here.startswith(name)), "holds")


def _in_a_cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
