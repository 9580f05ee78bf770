"""Cross-references: mentions of terms, papers, equations and names of the library become links."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import relpath
from typing import Any

import bonlib

# What no link is put into: code, mathematics, links and pictures, HTML, headings, and the lines of a table's head.
PROTECTED = re.compile(
    r"```.*?```|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|^#.*?$|^\|[-:| ]+\|$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Paper:
    """A reference of CITATION.cff: its mark in links, how the text names it, and how a list does."""

    mark: str
    short: str
    full: str


@dataclass(frozen=True)
class Links:
    """Where terms, papers and names of the library are explained.

    Attributes:
        terms: term as the text has it, to its mark in the glossary.
        papers: as CITATION.cff lists them.
        api: name as the text has it, to the full name.
    """

    terms: Mapping[str, str]
    papers: list[Paper]
    api: Mapping[str, str]

    def of_text(self, text: str, page: str) -> str:
        """Return the Markdown of a page with links.

        Args:
            text: of the page or a cell of it.
            page: its path in the site's source, from which links are relative.
        """
        text = _equations(text)
        text = re.sub(r"\]\(bonlib/([\w/]+?)(?:\.py)?\)", self._to_module, text)
        to = relpath(".", str(Path(page).parent))
        for term, mark in self.terms.items():
            text = _link_first(text, rf"(?<![\w-]){re.escape(term)}(?![\w-])", f"{to}/GLOSSARY.html#{mark}")
        for paper in self.papers:
            text = _link_first(text, re.escape(paper.short), f"{to}/papers.html#{paper.mark}")
        return re.sub(r"(?<!`)`([A-Za-z_][\w.]*)(\([^`]*\))?`(?!`)", self._to_api, text)

    def papers_page(self) -> str:
        """Return the list of papers, each under its mark."""
        rows = "\n".join(f'- <a id="{paper.mark}"></a>**{paper.short}** {paper.full}' for paper in self.papers)
        return f"# Papers\n\n{rows}\n"

    def marked(self, text: str) -> str:
        """Return the Markdown of the glossary with a mark in the row of each term."""
        rows = ((row, self.terms.get(_term(row))) for row in text.splitlines())
        return "".join((row.replace("| ", f'| <a id="{mark}"></a>', 1) if mark else row) + "\n" for row, mark in rows)

    def _to_api(self, match: re.Match[str]) -> str:
        full = self.api.get(match[1])
        return f"{{py:obj}}`{match[1]}{match[2] or ''} <{full}>`" if full else match[0]

    def _to_module(self, match: re.Match[str]) -> str:
        name = "bonlib." + match[1].replace("/", ".")
        return f"](api/{name}.md)"


def terms(glossary: Path) -> dict[str, str]:
    """Return the terms of the glossary that are words of the text, longest first, and their marks."""
    found = filter(None, map(_term, glossary.read_text(encoding="utf-8").splitlines()))
    return {term: "term-" + term.replace(" ", "-") for term in sorted(found, key=len, reverse=True)}


def _term(row: str) -> str:
    """The first name of a row as words, where the text uses it so: `win_rate` is the win rate; else an empty string."""
    cells = row.split("|") if row.startswith("|") else []
    if len(cells) < 4 or "in code" in cells[2]:
        return ""
    name = re.match(r"\s*(?:`([a-z_0-9]+)`|(on-policy|proxy|return|profile))", cells[2])
    word = (name[1] or name[2]).replace("_", " ") if name else ""
    return word if len(word) > 3 and word not in ("beta", "group", "block", "threshold", "draws") else ""


def papers(citation: Path) -> list[Paper]:
    """Return the references of CITATION.cff."""
    import yaml

    found = []
    for entry in yaml.safe_load(citation.read_text(encoding="utf-8"))["references"]:
        first = entry["authors"][0]["family-names"]
        where = entry.get("conference", {}).get("name") or entry.get("journal") or "preprint"
        full = f"{entry['year']}. *{entry['title']}*, {where}."
        found.append(Paper(f"paper-{first.lower()}", f"{first} et al.", full))
    return found


def modules() -> list[str]:
    """Return the public modules of the library, the course's own code apart."""
    found = pkgutil.walk_packages(bonlib.__path__, "bonlib.")
    return sorted(
        m.name for m in found if not m.name.startswith(("bonlib.course.", "bonlib.__")) and m.name != "bonlib.course"
    )


def api_names() -> dict[str, str]:
    """Return the names of public classes, their methods, and functions as the text has them, to their full names.

    Functions of the front door are written `bon.load`; `load` alone may be anything.
    """
    found: dict[str, str] = {}
    for module in modules():
        found[module] = module
        for name, thing in vars(importlib.import_module(module)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != module:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                bon = (
                    "bon."
                    if module in ("bonlib.front", "bonlib.files", "bonlib.ingredients") and inspect.isfunction(thing)
                    else ""
                )
                found.setdefault(bon + name, f"{module}.{name}")
            if inspect.isclass(thing):
                methods = (m for m, value in vars(thing).items() if inspect.isfunction(value) and not m.startswith("_"))
                found |= {f"{name}.{method}": f"{module}.{name}.{method}" for method in methods}
    return found


def _equations(text: str) -> str:
    """Give each numbered equation a mark, and lead mentions of its number there."""
    for number in re.findall(r"\\tag\{(\d+)\}", text):
        text = _replace_first(text, rf"\({number}\)", f'<a href="#equation-{number}">({number})</a>', every=True)
    start = re.compile(r"^\$\$(?=(?:(?!\$\$).)*\\tag\{(\d+)\})", re.DOTALL | re.MULTILINE)
    return start.sub(r'<a id="equation-\1"></a>\n\n$$', text)


def _link_first(text: str, pattern: str, target: str) -> str:
    return _replace_first(text, pattern, lambda match: f'<a class="lookup" href="{target}">{match[0]}</a>')


def _replace_first(text: str, pattern: str, new: Any, *, every: bool = False) -> str:
    """Replace the first match (or every one) outside of what is protected."""
    pieces: list[str] = []
    at = 0
    for match in [*PROTECTED.finditer(text), None]:
        plain, count = re.subn(pattern, new, text[at : match.start() if match else None], count=0 if every else 1)
        pieces += [plain, match[0] if match else ""]
        at = match.end() if match else len(text)
        if count and not every:
            break
    return "".join([*pieces, text[at:]])
