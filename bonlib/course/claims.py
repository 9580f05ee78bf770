"""What became of the papers' claims: tables in notebooks, and a page with all of them, *What we found*."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

MIME = "application/vnd.bonlib.claims+json"
OUTCOMES = ("holds", "holds in part", "fails", "undecided", "not at this scale")
SURE = 2.0  # standard errors that a difference must exceed to be told from chance


def exceeds(difference: float, error: float, least: float = 0.0, sure: float = SURE) -> bool | None:
    """Return whether a measured difference is above `least`; None if it is too near to tell.

    Args:
        difference: as measured.
        error: its standard error.
        least: what it is compared with.
        sure: how many of its errors it must be away from that.
    """
    return None if abs(difference - least) <= sure * error else bool(difference > least)


def agreed(answers: Iterable[Any]) -> bool | None:
    """Return what all answers say, such as one for every pair of seeds; None if they differ, or there are none."""
    said = {bool(answer) for answer in answers}
    return said.pop() if len(said) == 1 else None


def verdict(claim: str, parts: Collection[bool | None], evidence: str, *, scale: bool = False) -> dict[str, str]:
    """Return the row of a table of claims: it holds if all its parts do, and in part if some do.

    Args:
        claim: in a sentence.
        parts: whether each of the inequalities holds that the claim amounts to; None is one that cannot be told, as of
            `exceeds`. If there are no others, the claim is undecided.
        evidence: the numbers.
        scale: whether what fails here may hold for larger models, longer texts or more training.
    """
    fails = "not at this scale" if scale else "fails"
    told = [part for part in parts if part is not None]
    whole = "holds" if len(told) == len(parts) else "holds in part"
    here = "undecided" if not told else whole if all(told) else "holds in part" if any(told) else fails
    return {"claim": claim, "here it": here, "evidence": evidence}


class Claims:
    """A table of claims; the page *What we found* takes its rows from the executed notebook.

    Args:
        source: the paper, or papers, that they are from.
        rows: each with "claim", "here it" and "evidence", as of `verdict`.
        shown: a table to be shown in place of the usual one.
        own: whether they are the workbook's own statements, and nobody's claims.
    """

    def __init__(self, source: str, rows: Sequence[Mapping[str, str]], shown: Any = None, *, own: bool = False) -> None:
        self.source, self.rows = source, [dict(row) for row in rows]
        self.shown, self.own = shown, own

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        table = self.shown
        if table is None:
            table = pd.DataFrame(self.rows).style.hide().set_properties(None, **{"text-align": "left"})
        plain = "\n".join(f"{row['claim']}: {row['here it']} ({row['evidence']})" for row in self.rows)
        told = {"source": self.source, "rows": self.rows, "own": self.own}
        return {"text/html": table.to_html(), "text/plain": plain, MIME: told}


def found_page(executed: Path, notebooks: Sequence[Path]) -> str:
    """Return the page *What we found* as Markdown: a line a claim, from the notebooks that were run.

    Args:
        executed: folder of executed notebooks; those that are missing there have no line.
        notebooks: of the course, in order.
    """
    import nbformat

    parts, outcomes = list[str](), {own: Counter[str]() for own in (False, True)}
    for path in notebooks:
        if not (ran := executed / path.name).exists():
            continue
        for cell in nbformat.read(ran, as_version=4).cells:
            for told in (output["data"][MIME] for output in cell.get("outputs", []) if MIME in output.get("data", {})):
                # A notebook that was executed before tables said whose they are has none of the workbook's own.
                rows, own = told["rows"], told.get("own", False)
                outcomes[own].update(_outcome(row["here it"]) for row in rows)
                cells = (" | ".join(_in_a_cell(row[name]) for name in ("claim", "here it", "evidence")) for row in rows)
                whose = ", statements of the workbook's own" if own else ""
                parts += [f"## {told['source']}\n", f"From [](notebooks/{path.name}){whose}.\n"]
                parts += ["| claim | here it | by these numbers |", "|---|---|---|", *(f"| {line} |" for line in cells)]
                parts.append("")
    lines = [
        "# What we found\n",
        "What became of the claims of the papers, each with the numbers that it rests on, as the notebooks worked them",
        "out when these pages were made, most from stored results, a few from what they timed or trained themselves.",
        "A claim *holds* if all its inequalities do, *in part* if some do; what lies within its error, or differs",
        "between seeds, is *undecided*.",
    ]
    about = {False: "claims of the papers", True: "statements of the workbook's own"}
    lines += [
        f"Of {found.total()} {about[own]} the tables say {_counts(found)}." for own, found in outcomes.items() if found
    ]
    return "\n".join([*lines, "" if parts else "No notebook with a claim was run.\n", *parts])


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"“{name}” {outcomes[name]}" for name in OUTCOMES if outcomes[name])


def _outcome(here: str) -> str:
    """The first word or words of what a table says, which may go on with a number."""
    known = sorted(OUTCOMES, key=len, reverse=True)
    return next((name for name in known if here.startswith(name)), "holds")


def _in_a_cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
