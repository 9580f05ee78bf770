"""The course as a static site that works offline: Sphinx over executed notebooks, Markdown files and docstrings."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bonlib.course.claims import found_page
from bonlib.course.frames import PRESETS, frames
from bonlib.course.runner import ROOT, Report, find_notebooks, read_reports
from bonlib.course.site.links import Links, api_names, modules, papers, terms
from bonlib.course.site.pages import failure, has_same_exercises, notebook_page

STATIC = Path(__file__).parent / "static"
# Beside the glossary, and README, which becomes the first page.
TEXTS = (
    "GUIDE.md",
    "METHODS.md",
    "TRAINERS.md",
    "MACHINES.md",
    "MODELS.md",
    "data/README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
CONFIGURATION: dict[str, Any] = {
    "project": "The best-of-N workbook",
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"],
    "html_theme": "furo",
    "html_title": "The best-of-N workbook",
    "html_static_path": [str(STATIC)],
    "html_css_files": ["course.css"],
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_show_search_summary": False,  # would fetch pages, which browsers refuse where there is no server
    "html_theme_options": {"footer_icons": []},
    "mathjax_path": "mathjax/tex-svg.js",  # one file, and no fonts to fetch
    "nb_execution_mode": "off",
    "nb_output_stderr": "remove",  # progress bars and log lines
    "nb_ipywidgets_js": {},
    "nb_code_prompt_show": "Show the code",
    "nb_code_prompt_hide": "Hide the code",
    "myst_enable_extensions": ["dollarmath", "html_image"],
    "myst_heading_anchors": 3,
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "none",  # types and shapes stand in the text
    "napoleon_use_ivar": True,
    "napoleon_attr_annotations": False,
    "napoleon_use_rtype": False,
    "default_role": "code",
    "add_module_names": False,
    # The last: two classes may have a field of the same name.
    "suppress_warnings": ["myst.header", "mystnb.unknown_mime_type", "ref.python"],
    "exclude_patterns": ["**/.ipynb_checkpoints"],
}


@dataclass(frozen=True)
class Site:
    """What was built.

    Attributes:
        folder: open its index.html.
        pages: names of the HTML files, relative to the folder.
        megabytes: of all files.
        warnings: what Sphinx complained of, a line each.
    """

    folder: Path
    pages: list[str]
    megabytes: float
    warnings: list[str]


def build_site(executed: Path, out: Path | None = None) -> Site:
    """Build the site from a folder of executed notebooks; one that has not been run is shown without its results.

    Args:
        executed: as `run_notebooks` left it, with reports.json.
        out: folder of the site, replaced once the new one is whole; `site` in `executed` if None.

    Raises:
        ValueError: if `out` holds something else, which would be lost.
        ModuleNotFoundError: if Sphinx is not installed.
    """
    with SiteBuilder(executed, out) as builder:
        return builder.build()


class SiteBuilder:
    """Builds the site again and again while notebooks run: after the first time only the pages that changed.

    Args:
        executed: as for `build_site`.
        out: likewise.

    Raises:
        ValueError: if `out` holds something else, which would be lost.
        ModuleNotFoundError: if Sphinx is not installed.
    """

    def __init__(self, executed: Path, out: Path | None = None) -> None:
        if importlib.util.find_spec("sphinx") is None:
            raise ModuleNotFoundError('Sphinx is not installed: `pip install -e ".[course]"`')
        self._executed, self._out = executed, out or executed / "site"
        if self._out.exists() and any(self._out.iterdir()) and not (self._out / ".buildinfo").exists():
            raise ValueError(f"out is {self._out}, which holds something else than a site: name an empty folder")
        self._scratch = TemporaryDirectory()
        self._source, self._trees = Path(self._scratch.name, "source"), Path(self._scratch.name, "trees")
        self._shown: dict[str, Report | None] = {}  # by notebook, whose page was made with this report
        self._site: Site | None = None
        self._links = Links(terms(ROOT / "GLOSSARY.md"), papers(ROOT / "CITATION.cff"), api_names())

    def __enter__(self) -> SiteBuilder:
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()

    def build(self) -> Site:
        """Build the site from what is there now."""
        changed, built = self._write_notebooks(), Path(self._scratch.name, "site")
        if self._site and not changed:
            return self._site
        if self._site is None:
            write_texts(self._source, self._links)
        warnings = [line.replace(f"{self._source}/", "") for line in _run_sphinx(self._source, built, self._trees)]
        if self._site is None:
            (built / "_static" / "mathjax").mkdir()
            shutil.copy(_mathjax() / "tex-svg.js", built / "_static" / "mathjax")
            shutil.rmtree(self._out, ignore_errors=True)
        shutil.copytree(built, self._out, dirs_exist_ok=True)
        files = [file for file in self._out.rglob("*") if file.is_file()]
        pages = sorted(str(file.relative_to(self._out)) for file in files if file.suffix == ".html")
        self._site = Site(self._out, pages, sum(file.stat().st_size for file in files) / 1e6, warnings)
        return self._site

    def _write_notebooks(self) -> bool:
        """Write the pages of the notebooks that were run since the last time, and the table of times; are there any?"""
        import nbformat

        reports, paths = read_reports(self._executed), find_notebooks()
        changed = [p for p in paths if p.stem not in self._shown or self._shown[p.stem] != reports.get(p.stem)]
        for path in changed:
            report, ran = reports.get(path.stem), self._executed / path.name
            notebook, solutions = (
                nbformat.read(p, as_version=4) for p in (path, path.parent / "solutions" / path.name)
            )
            if ran.exists() and has_same_exercises(executed := nbformat.read(ran, as_version=4), solutions):
                notebook = executed
            else:
                report = None
            page = notebook_page(
                notebook, solutions, report, partial(self._links.of_text, page=f"notebooks/{path.name}")
            )
            _write(self._source / "notebooks" / path.name, nbformat.writes(page))
            self._shown[path.stem] = reports.get(path.stem)
        _write(self._source / "found.md", found_page(self._executed, paths))
        _write(self._source / "times.md", _times_page(reports, paths, self._executed.name))
        return bool(changed)


def write_texts(source: Path, links: Links) -> None:
    """Write what Sphinx reads besides notebooks, in folders as the workbook has them: links lead where they did."""
    _write(source / "index.md", _first_page(links, find_notebooks()))
    _write(source / "GLOSSARY.md", links.marked((ROOT / "GLOSSARY.md").read_text(encoding="utf-8")))
    for name in _texts():
        _write(source / name, links.of_text((ROOT / name).read_text(encoding="utf-8"), name))
    for card in sorted((ROOT / "data" / "models").glob("*/README.md")):
        about = re.sub(r"\A---\n.*?\n---\n", "", card.read_text(), flags=re.DOTALL)  # metadata for the hub
        _write(source / card.relative_to(ROOT), f"---\norphan: true\n---\n{about}")
    for name in ("LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "figures", source / "figures")
    _write(source / "papers.md", links.papers_page())
    data = json.dumps({name: frames(outcomes) for name, outcomes in PRESETS.items()}, separators=(",", ":"))
    sliders = (Path(__file__).parent / "sliders.md").read_text(encoding="utf-8")
    _write(source / "sliders.md", sliders.replace("@frames@", data))
    for module in modules():
        options = "   :members:\n   :show-inheritance:\n"
        _write(
            source / "api" / f"{module}.md", f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{options}```\n"
        )
    about = "Every public class and function of `bonlib`: what it does, arguments with shapes and units, its source."
    names = "\n".join(modules())
    _write(source / "api" / "index.md", f"# The library\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n")


def _run_sphinx(source: Path, out: Path, trees: Path) -> list[str]:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    logging.basicConfig(
        level=logging.WARNING
    )  # before a style of the theme does, by which all libraries' logs are shown
    complaints = io.StringIO()
    with patch_docutils(), docutils_namespace():  # so that a second site can be built in the same process
        sphinx = Sphinx(source, None, out, trees, "html", CONFIGURATION, status=None, warning=complaints)
        sphinx.connect("autodoc-skip-member", _is_named_by_number)
        sphinx.build()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", complaints.getvalue()).splitlines()
    return [line for line in lines if line.strip()]


def _is_named_by_number(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple: the class describes them, and Python only counts them."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def _mathjax() -> Path:
    """The folder of MathJax 3 in the package `sphinx-mathjax-offline`, of which one file is wanted, not all 24 MB."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("sphinx-mathjax-offline is not installed: `pip install sphinx-mathjax-offline`")
    return Path(next(iter(spec.submodule_search_locations))) / "static" / "mathjax"


def _texts() -> list[str]:
    """Those of the texts that are there: the table of models is made by the tests of all architectures."""
    return [name for name in TEXTS if (ROOT / name).exists()]


def _first_page(links: Links, paths: list[Path]) -> str:
    text = links.of_text((ROOT / "README.md").read_text(encoding="utf-8"), "index.md")
    text = re.sub(r"^\[!\[.*\n", "", text, flags=re.MULTILINE)  # badges are pictures of other sites
    texts = [name.removesuffix(".md") for name in _texts()]
    parts = {
        "The course": ["sliders", *(f"notebooks/{path.stem}" for path in paths), "found", "times"],
        "To look up": ["GLOSSARY", *texts, "papers", "api/index"],
    }
    trees = "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in parts.items()
    )
    return f"{text}\n\n{trees}"


def _times_page(reports: Mapping[str, Report], paths: list[Path], profile: str) -> str:
    """A row a notebook; empty link texts become the titles of the pages."""
    rows = []
    for path in paths:
        row, link = reports.get(path.stem), f"[](notebooks/{path.name})"
        if row is None:
            rows.append(f"| {link} | | not run | | | |")
            continue
        result = failure(row).replace("|", "\\|") or "ok"
        cells = f"{row.seconds / 60:.1f}", result, row.checks, row.date, f"`{row.commit}`"
        rows.append(f"| {link} | " + " | ".join(map(str, cells)) + " |")
    total = f"{sum(row.seconds for row in reports.values()) / 60:.1f} minutes in all" if reports else "nothing was run"
    lines = [
        "# Times and checks\n",
        f"Of the runs whose results these pages show, folder `{profile}`: {total}, less where draws were stored.",
        "*Checks* are the assertions of a notebook in the cells that ran to their end. What each profile takes from an",
        "empty store stands on the [first page](index.md).\n",
        "| notebook | minutes | result | checks | date | version |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
