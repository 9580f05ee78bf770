"""The commands that run the notebooks and make pages of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from bonlib.checks import whole
from bonlib.options import assignments, checked, folder


@click.command("run")
@click.option("--profile", default="quick", help="quick (default), laptop, gpu or paper")
@click.option("--only", default="", help="numbers or names of notebooks, separated by commas")
@click.option("--resume", is_flag=True, help="skip notebooks that already ran well, unchanged since")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="NAME=VALUE", help="for the notebooks")
@click.option("--build", callback=folder, help="folder for the results, instead of _build/PROFILE")
@click.option("--publish", "publishes", is_flag=True, help="copy the figures to figures/, for README")
@click.option("--without-gpu", is_flag=True, help="run a profile that wants a GPU without one")
@click.option("--jobs", callback=checked(whole, least=1), help="notebooks at a time; by cores and memory if not given")
def run_command(
    profile: str,
    only: str,
    resume: bool,
    parameters: Sequence[str],
    build: Path | None,
    publishes: bool,
    without_gpu: bool,
    jobs: int | None,
) -> int:
    """Execute the notebooks, and make pages of them."""
    from bonlib.course.check import missing_gpu, sampling_cost
    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD, plan, publish, run_notebooks
    from bonlib.course.site import SiteBuilder

    sizes, names, values = get_profile(profile), only.split(",") if only else (), assignments("-p", parameters)
    plan(names, values)
    trouble = missing_gpu(sizes)
    if trouble and not without_gpu:
        raise ValueError(trouble)
    place = (build or BUILD / sizes.name).resolve()
    print(f"profile {sizes.name}: {sampling_cost(sizes)}", flush=True)
    with SiteBuilder(place) as site:
        reports = run_notebooks(
            sizes,
            only=names,
            resume=resume,
            parameters=values,
            build=place,
            jobs=jobs,
            pages=lambda: site.build().folder,
        )
        index = site.build().folder / "index.html"
    if publishes:
        publish(reports, place, sizes)
    failed = [report for report in reports if report.status != "ok"]
    print(f"{len(reports) - len(failed)} of {len(reports)} notebooks ran well; open {index}")
    for report in failed:
        print(f"FAILED {report.name}, {report.error}")
    return 1 if failed else 0


@click.command("site")
@click.option("--profile", default="quick", help="whose run")
@click.option("--build", callback=folder, help="folder of executed notebooks, instead of _build/PROFILE")
@click.option("--out", callback=folder, help="folder for the pages, instead of site in that folder")
def site_command(profile: str, build: Path | None, out: Path | None) -> int:
    """Make the pages of the last run again."""
    import sys

    from bonlib.course.profiles import get_profile
    from bonlib.course.runner import BUILD
    from bonlib.course.site import build_site

    executed = build or BUILD / get_profile(profile).name
    if not any(executed.glob("*.ipynb")):
        raise ValueError(
            f"--build is {str(executed)!r}, without an executed notebook: make some with `python -m bonlib run`, or "
            "name the folder of another run"
        )
    site = build_site(executed, out)
    print(*site.warnings, sep="\n", file=sys.stderr)
    print(f"{len(site.pages)} pages, {site.megabytes:.1f} MB; open {site.folder / 'index.html'}")
    return 1 if site.warnings else 0


@click.command("stubs")
def stubs_command() -> None:
    """Cut the exercises out of notebooks/solutions."""
    from bonlib.course.exercises import write_stubs

    for path in write_stubs():
        print(f"wrote {path}")


@click.command("methods")
def methods_command() -> None:
    """Write the table of METHODS.md."""
    from bonlib.course.methods_page import write_methods_page

    print(f"wrote {write_methods_page()}")
