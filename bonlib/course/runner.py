"""Runs the notebooks in order, headless, and notes what became of each; `bonlib.course.site` makes pages of them."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bonlib.course.profiles import Profile
from bonlib.draws.segments import replace_file

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"


@dataclass
class Report:
    """What became of one notebook.

    Attributes:
        name: file name without its ending.
        status: "ok" or "failed".
        seconds: wall-clock time.
        error: for a failed one, the cell (its place in the notebook, from 1, and first line) and the message.
        figures: pictures it drew, as paths in the build folder.
        checks: assert statements of the cells that ran to their end.
        source: hash of the notebook, the library, the models and the parameters that it ran with.
        commit: version of the workbook that it ran with.
        date: when it ran.
    """

    name: str
    status: str
    seconds: float
    error: str = ""
    figures: list[str] = field(default_factory=list)
    checks: int = 0
    source: str = ""
    commit: str = ""
    date: str = ""


def find_notebooks(only: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks of the course in order, or those of them that `only` names by number or by name.

    Raises:
        ValueError: if `only` names one that is not there.
    """
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    unknown = [word for word in only if not any(_is_named(path, word) for path in found)]
    if not found:
        raise ValueError(f"folder is {folder}, without notebooks named like 01_title.ipynb: use a checkout")
    if unknown:
        raise ValueError(f"only names {unknown}; the notebooks are {', '.join(path.stem for path in found)}")
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
    """Execute notebooks through papermill, write the executed copies, their figures and reports, and say how each went.

    A notebook that fails does not stop the others.

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
    paths = plan(only, parameters, folder)
    build = build or BUILD / profile.name
    build.mkdir(parents=True, exist_ok=True)
    values = {"profile": profile.name, **(parameters or {})}
    log = build / "reports.json"
    past = read_reports(build)
    reports = []
    for number, path in enumerate(paths, 1):
        source = _source_hash(path, values)
        before = past.get(path.stem)
        print(f"[{number}/{len(paths)}] {path.stem} …", end=" ", flush=True)
        if resume and before and before.status == "ok" and before.source == source and _is_complete(before, build):
            report = before
            print("done before", flush=True)
        else:
            report = _execute(path, build, values, source)
            print(f"{report.status}, {report.seconds:.0f} s", flush=True)
        reports.append(report)
        past[path.stem] = report
        known = [past[name] for name in sorted(past) if (folder / f"{name}.ipynb").exists()]
        replace_file(log, json.dumps([asdict(row) for row in known], indent=1).encode())
    return reports


def plan(only: Sequence[str] = (), parameters: Mapping[str, Any] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks that a run would execute, after checking that each knows the parameters.

    Raises:
        ValueError: if `only` or `parameters` names something that is not there, or `parameters` the profile, or gives a
            value of another kind than the notebook has.
    """
    paths = find_notebooks(only, folder)
    if "profile" in (parameters or {}):
        raise ValueError("parameter 'profile' is set by the run: choose it with --profile")
    for path in paths:
        known = parameters_of(path)
        for name, value in (parameters or {}).items():
            if name not in known:
                raise ValueError(f"parameter {name!r} is not one of {path.stem}, which has {', '.join(sorted(known))}")
            if not _is_of_kind(value, known[name]):
                kind = _KINDS.get(type(known[name]), f"a {type(known[name]).__name__}")
                raise ValueError(
                    f"parameter {name!r} is {value!r}; {path.stem} takes {kind} there, such as {known[name]!r}"
                )
    return paths


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text in quotes", list: "a list"}


def _is_of_kind(value: Any, default: Any) -> bool:
    """Whether a value can stand for a notebook's own: a run of hours should not end at the cell that uses it."""
    if isinstance(default, list):
        return isinstance(value, list) and len(value) > 0 and all(_is_of_kind(item, default[0]) for item in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is type(default)


def publish(reports: Sequence[Report], build: Path, profile: Profile, folder: Path = ROOT / "figures") -> None:
    """Copy the figures of notebooks that ran well to where README shows them, and note the run that made each.

    Args:
        reports: of the run.
        build: folder of the run.
        profile: of the run.
        folder: where the pictures go, with `runs.json` beside them.
    """
    folder.mkdir(exist_ok=True)
    notes = folder / "runs.json"
    runs = json.loads(notes.read_text()) if notes.exists() else {}
    for report in reports:
        for figure in report.figures if report.status == "ok" else []:
            target = folder / Path(figure).name
            shutil.copyfile(build / figure, target)
            runs[target.name] = {
                "notebook": report.name,
                "profile": profile.name,
                "commit": report.commit,
                "date": report.date,
            }
    notes.write_text(json.dumps(dict(sorted(runs.items())), indent=1) + "\n")


def parameters_of(path: Path) -> dict[str, Any]:
    """Return what a notebook's parameters cell assigns: plain literals, by name."""
    import papermill

    found = papermill.inspect_notebook(str(path))
    return {name: ast.literal_eval(about["default"]) for name, about in found.items()}


def _is_named(path: Path, word: str) -> bool:
    return word in (path.stem, path.stem.split("_")[0])


def read_reports(build: Path) -> dict[str, Report]:
    """Return the reports of the runs into a folder, by notebook."""
    try:
        return {row["name"]: Report(**row) for row in json.loads((build / "reports.json").read_text())}
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or of another version: then nothing is known
        return {}


def _is_complete(report: Report, build: Path) -> bool:
    return all((build / output).exists() for output in (f"{report.name}.ipynb", *report.figures))


def _source_hash(path: Path, values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(path.read_bytes() + json.dumps(values, sort_keys=True).encode())
    models = (ROOT / "data" / "models").rglob("*.safetensors")
    for file in [*sorted((ROOT / "bonlib").rglob("*.py")), ROOT / "constraints.txt", *sorted(models)]:
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def commit_of_workbook() -> str:
    """Return the commit of the workbook, with -dirty if code, notebooks or models differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "bonlib", "notebooks", "data/models")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _execute(path: Path, build: Path, values: Mapping[str, Any], source: str) -> Report:
    import nbformat
    import papermill
    from traitlets.config import Config

    target, error = build / path.name, ""
    target.unlink(missing_ok=True)
    begun = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path),
            str(target),
            parameters=dict(values),
            kernel_name="python3",
            progress_bar=False,
            cwd=str(path.parent),
            # Without it the kernel warns, in the middle of our progress lines, that others could listen.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # the kernel died, say: one notebook's trouble must not end the run
        error = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - begun
    executed = nbformat.read(target if target.exists() else path, as_version=4)
    return Report(
        name=path.stem,
        status="failed" if error else "ok",
        seconds=round(seconds, 1),
        error=f"{_culprit(executed)}: {error}" if error else "",
        figures=_save_figures(executed, build, path.stem),
        checks=_count_checks(executed),
        source=source,
        commit=commit_of_workbook(),
        date=time.strftime("%Y-%m-%d"),
    )


def _culprit(executed: Any) -> str:
    """Name the cell that failed, or at least the last that began, by its place in the notebook as it is committed."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell for cell in executed.cells if not added & set(cell.metadata.get("tags", []))]
    failed = [i for i, cell in enumerate(cells) if any(o.output_type == "error" for o in cell.get("outputs", []))]
    begun = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    place = (failed or begun[-1:] or [0])[0]
    first_line = cells[place].source.strip().splitlines()[0] if cells[place].source.strip() else ""
    return f"cell {place + 1} ({first_line[:60]})"


def _count_checks(executed: Any) -> int:
    ran = [cell.source for cell in executed.cells if cell.metadata.get("papermill", {}).get("status") == "completed"]
    return len(re.findall(r"^\s*assert ", "\n".join(ran), flags=re.MULTILINE))


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
