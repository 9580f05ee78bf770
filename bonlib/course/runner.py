"""Runs notebooks side by side, headless, and notes what became of each; `bonlib.course.site` makes pages of them."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonlib.course.profiles import Profile
from bonlib.draws.segments import replace_file

if TYPE_CHECKING:
    import psutil

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"
# Seconds of the longest at the quick profile, and of any other: a guess for those of which no run is reported.
LONG, USUAL = {"05": 40.0, "07": 46.0, "09": 43.0, "11": 58.0, "12": 72.0, "13": 61.0}, 20.0


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
    jobs: int | None = None,
    pages: Callable[[], Path] | None = None,
) -> list[Report]:
    """Execute notebooks through papermill, write the executed copies, their figures and reports, and say how each went.

    Several run side by side, each in a kernel of its own with its share of the cores. One that fails does not stop the
    others. An interrupt stops them all; what had ended by then is kept.

    Args:
        profile: sizes, models and device.
        only: numbers or names of notebooks; all of them if empty.
        resume: skip those that already succeeded with the same text and the same library.
        parameters: values for the parameters cell of each notebook, besides the profile.
        folder: where the notebooks are.
        build: where results go; `_build/<profile>` if None.
        jobs: how many run at a time; as many as `jobs_for` says if None.
        pages: makes the pages of what has ended, and returns their folder; called while other notebooks run.

    Returns:
        A report for each notebook, in the order of the course.

    Raises:
        ValueError: if `only` or `parameters` names something that a notebook does not have.
    """
    import psutil

    paths = plan(only, parameters, folder)
    build = build or BUILD / profile.name
    build.mkdir(parents=True, exist_ok=True)
    values = {"profile": profile.name, **(parameters or {})}
    past = read_reports(build)
    kept = {path for path in paths if resume and _is_done(past.get(path.stem), _source_hash(path, values), build)}
    to_run = [path for path in paths if path not in kept]
    jobs = min(jobs or jobs_for(profile), len(to_run)) or 1
    recording, stopped, others = threading.Lock(), threading.Event(), psutil.Process().children()

    def run(path: Path) -> Path:
        report = _execute(path, build, values, stopped)
        with recording:
            past[path.stem] = report
            known = [past[name] for name in sorted(past) if (folder / f"{name}.ipynb").exists()]
            replace_file(build / "reports.json", json.dumps([asdict(row) for row in known], indent=1).encode())
        return path

    with _cores_shared(jobs), ThreadPoolExecutor(jobs) as threads:
        running = {threads.submit(run, path) for path in in_order(to_run, past, jobs)}
        try:
            ended, said = kept, 0
            while ended or running:
                site = _made(pages)  # the first time all of them, while the first notebooks run
                for path in sorted(ended):
                    said += 1
                    how = "done before" if path in kept else _outcome(past[path.stem])
                    print(f"[{said:2}/{len(paths)}] {path.stem}  {how}{_page(site, path)}", flush=True)
                done, running = wait(running, return_when=FIRST_COMPLETED)
                ended = {future.result() for future in done}
        except BaseException:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in running):  # a kernel may just be starting
                _kill_children(others)
                time.sleep(0.1)
            raise
    return [past[path.stem] for path in paths]


def jobs_for(profile: Profile) -> int:
    """Return how many notebooks of a profile run side by side here: a core and the memory for each, one on a GPU."""
    import psutil

    from bonlib.course.check import this_machine
    from bonlib.models.loaded import pick_device

    if pick_device(profile.device) != "cpu":
        return 1
    machine = this_machine()
    free = min(machine.memory_gb, psutil.virtual_memory().available / 1e9)
    return max(1, min(machine.cores, int(free / profile.memory_gb)))


def in_order(paths: Sequence[Path], past: Mapping[str, Report], jobs: int) -> list[Path]:
    """Return notebooks in the order in which to start them.

    One at a time: as in the course. Side by side: one worker goes through the course, so that its beginning can be read
    soon, and the others begin with what takes longest, so that none of that is left for the end.

    Args:
        paths: in the order of the course.
        past: reports of earlier runs, which say how long each takes.
        jobs: how many run at a time.
    """

    def seconds(path: Path) -> float:
        return past[path.stem].seconds if path.stem in past else LONG.get(path.stem[:2], USUAL)

    left, order, busy = list(paths), [], [0.0] * jobs
    while left:
        worker = busy.index(min(busy))
        order.append(left.pop(0) if worker == 0 else left.pop(left.index(max(left, key=seconds))))
        busy[worker] += seconds(order[-1])
    return order


@contextmanager
def _cores_shared(jobs: int) -> Iterator[None]:
    """Give each kernel that is started meanwhile its share of the cores, unless the user has said how many are used."""
    from bonlib.course.check import this_machine

    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, this_machine().cores // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _kill_children(others: Sequence[psutil.Process]) -> None:
    """End the processes that this one has started, and theirs, but for others."""
    import psutil

    for child in psutil.Process().children():
        if child not in others:
            with suppress(psutil.NoSuchProcess):
                for process in [*child.children(recursive=True), child]:
                    process.kill()


def _made(pages: Callable[[], Path] | None) -> Path | None:
    """The folder of the pages, made now: a run of hours does not end for want of one."""
    try:
        return pages() if pages else None
    except Exception as error:
        print(f"no pages: {error}", flush=True)
        return None


def _outcome(report: Report) -> str:
    return f"{report.status}  {report.seconds:.0f} s"


def _page(site: Path | None, path: Path) -> str:
    if site is None:
        return ""
    page = site / "notebooks" / f"{path.stem}.html"
    return f"  {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}"


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


def _is_done(report: Report | None, source: str, build: Path) -> bool:
    if report is None or report.status != "ok" or report.source != source:
        return False
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


def _execute(path: Path, build: Path, values: Mapping[str, Any], stopped: threading.Event) -> Report:
    import nbformat
    import papermill
    from jupyter_core.utils import ensure_event_loop
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the report says what went wrong
    source, error = _source_hash(path, values), ""
    target = build / "running" / path.name  # papermill writes it cell by cell, while pages are made of what has ended
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)
    begun = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path),
            str(target),
            parameters=dict(values),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # one told to end may say so among our lines
            resources={"metadata": {"path": str(path.parent)}},  # the kernel's folder alone: threads share their own
            # Without it the kernel warns, in the middle of our progress lines, that others could listen.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
    except papermill.PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # the kernel died, say: one notebook's trouble must not end the run
        if stopped.is_set():
            raise
        error = f"{type(failure).__name__}: {failure}"
    finally:
        ensure_event_loop().close()  # of this thread, in which papermill has spoken with the kernel
    seconds = time.perf_counter() - begun
    (build / path.name).unlink(missing_ok=True)
    if target.exists():
        target.replace(build / path.name)
    executed = nbformat.read(build / path.name if (build / path.name).exists() else path, as_version=4)
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
