"""Runs the notebooks in order, headless, and gathers what they made into one page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bonlib.course.profiles import Profile

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"


@dataclass
class Report:
    """What became of one notebook.

    Attributes:
        name: file name without its ending.
        title: its first heading.
        status: "ok" or "failed".
        seconds: wall-clock time.
        error: for a failed one, the cell (counted from 1 over all cells) and the message.
        figures: pictures it drew, as paths in the build folder.
        source: hash of the notebook and of the library that it ran with.
    """

    name: str
    title: str
    status: str
    seconds: float
    error: str = ""
    figures: list[str] = field(default_factory=list)
    source: str = ""


def find_notebooks(only: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks of the course in order, or those of them that `only` names by number or by name.

    Raises:
        ValueError: if `only` names one that is not there.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    unknown = [word for word in only if not any(_is_named(path, word) for path in found)]
    if unknown or not found:
        names = ", ".join(path.stem for path in found) or f"none in {folder}"
        raise ValueError(f"only names {unknown}; the notebooks are {names}")
    return [path for path in found if not only or any(_is_named(path, word) for word in only)]


def run_notebooks(
    profile: Profile,
    *,
    only: Sequence[str] = (),
    resume: bool = False,
    parameters: Mapping[str, Any] | None = None,
    folder: Path = NOTEBOOKS,
    build: Path | None = None,
) -> list[Report]:
    """Execute notebooks through papermill, write the executed copies, their pages and an index, and say how each went.

    A notebook that fails stops neither the others nor the index.

    Args:
        profile: sizes, models and device.
        only: numbers or names of notebooks; all of them if empty.
        resume: skip those that already succeeded with the same text and the same library.
        parameters: values for the parameters cell of each notebook, besides the profile.
        folder: where the notebooks are.
        build: where results go; `_build/<profile>` if None.

    Raises:
        ValueError: if `only` or `parameters` names something that a notebook does not have.
    """
    paths = find_notebooks(only, folder)
    build = build or BUILD / profile.name
    build.mkdir(parents=True, exist_ok=True)
    values = {"profile": profile.name, **(parameters or {})}
    for path in paths:
        _check_parameters(path, values)
    log = build / "reports.json"
    past = {row["name"]: Report(**row) for row in json.loads(log.read_text())} if log.exists() else {}
    reports = []
    for number, path in enumerate(paths, 1):
        source = _source_hash(path, values)
        before = past.get(path.stem)
        if resume and before and before.status == "ok" and before.source == source:
            report, remark = before, "done before"
        else:
            print(f"[{number}/{len(paths)}] {path.stem} …", end=" ", flush=True)
            report = _execute(path, build, values, source)
            remark = f"{report.status}, {report.seconds:.0f} s"
        print(remark if report is not before else f"[{number}/{len(paths)}] {path.stem} … {remark}", flush=True)
        reports.append(report)
        past[path.stem] = report
        known = [past[name] for name in sorted(past) if (folder / f"{name}.ipynb").exists()]
        log.write_text(json.dumps([asdict(row) for row in known], indent=1))
        (build / "index.html").write_text(_index_page(profile, known), encoding="utf-8")
    return reports


def parameter_names(path: Path) -> set[str]:
    """Return the names that a notebook's parameters cell assigns."""
    import papermill

    return set(papermill.inspect_notebook(str(path)))


def _is_named(path: Path, word: str) -> bool:
    return word in (path.stem, path.stem.split("_")[0])


def _check_parameters(path: Path, values: Mapping[str, Any]) -> None:
    known = parameter_names(path)
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"parameter {unknown[0]!r} is not one of {path.stem}, which has {', '.join(sorted(known))}")


def _source_hash(path: Path, values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(path.read_bytes() + json.dumps(values, sort_keys=True).encode())
    for module in sorted((ROOT / "bonlib").rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def _execute(path: Path, build: Path, values: Mapping[str, Any], source: str) -> Report:
    import nbformat
    import papermill
    from traitlets.config import Config

    target = build / path.name
    begun, error = time.perf_counter(), ""
    try:
        papermill.execute_notebook(
            str(path),
            str(target),
            parameters=dict(values),
            kernel_name="python3",
            progress_bar=False,
            cwd=str(path.parent),
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except papermill.PapermillExecutionError as failure:
        error = f"cell {failure.cell_index + 1}: {failure.ename}: {failure.evalue}"
    except Exception as failure:  # the kernel died, say: one notebook's trouble must not end the run
        error = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - begun
    executed = nbformat.read(target if target.exists() else path, as_version=4)
    if error and "cell" not in error:
        error = f"cell {_last_started(executed)}: {error}"
    _write_page(executed, build / f"{path.stem}.html")
    return Report(
        name=path.stem,
        title=_title(executed, path.stem),
        status="failed" if error else "ok",
        seconds=round(seconds, 1),
        error=error,
        figures=_save_figures(executed, build, path.stem),
        source=source,
    )


def _last_started(notebook: Any) -> int:
    started = [i for i, cell in enumerate(notebook.cells, 1) if cell.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else 1


def _title(notebook: Any, fallback: str) -> str:
    for cell in notebook.cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "markdown" and line.startswith("# "):
                return str(line[2:].strip())
    return fallback


def _save_figures(notebook: Any, build: Path, name: str) -> list[str]:
    """Write each picture in the outputs to a file, named after its cell's `figure` entry where it has one."""
    folder = build / "figures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{name[:2]}_*.png"):
        old.unlink()
    saved: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                title = cell.metadata.get("figure", f"{len(saved) + 1}")
                file = folder / f"{name[:2]}_{title}.png"
                file.write_bytes(base64.b64decode(picture))
                saved.append(f"figures/{file.name}")
    return saved


def _write_page(notebook: Any, target: Path) -> None:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(notebook)
    target.write_text(page, encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Best-of-N workbook, {profile}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
article {{ border-top: 1px solid #ccc; padding: 1rem 0 }} h2 {{ margin: 0; font-size: 1.2rem }}
.thumbs {{ display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem }}
img {{ height: 9rem; border: 1px solid #ddd }}
.failed {{ color: #b00020; font-weight: bold }} .meta {{ color: #555 }}
</style>
<h1>Best-of-N workbook</h1><p class="meta">Profile {profile}; {total:.1f} minutes in all.</p>
{articles}
</html>
"""


def _index_page(profile: Profile, reports: Sequence[Report]) -> str:
    articles = []
    for report in reports:
        thumbs = "".join(
            f'<a href="{src}"><img src="{src}" alt="{html.escape(Path(src).stem)}" loading="lazy"></a>'
            for src in report.figures
        )
        trouble = f'<p class="failed">{html.escape(report.error)}</p>' if report.error else ""
        articles.append(
            f'<article><h2><a href="{report.name}.html">{html.escape(report.title)}</a></h2>'
            f'<p class="meta"><span class="{report.status}">{report.status}</span>, {report.seconds / 60:.1f} minutes, '
            f'<a href="{report.name}.ipynb">executed notebook</a></p>{trouble}'
            f'<div class="thumbs">{thumbs}</div></article>'
        )
    total = sum(report.seconds for report in reports) / 60
    return _PAGE.format(profile=html.escape(profile.name), total=total, articles="\n".join(articles))
