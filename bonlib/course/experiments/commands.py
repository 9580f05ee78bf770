"""The commands that train policies and judge them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from bonlib.checks import number, one_of, whole
from bonlib.commands import train_on
from bonlib.methods import METHODS, get_method
from bonlib.options import assignments, checked, examples, folder

FIELD = "a field of TrainSettings, or of the method"
SWEEPS = ("learning_rates", "sentiment", "cdf", "budget", "bond", "noise", "price", "tldr", "exact")

MEANINGS = {
    "n": "number of draws N to imitate",
    "beta": "KL coefficient, or DPO's β",
    "every": "steps between two moves of the anchor",
    "rate": "share of the policy's weights that the anchor takes up",
}


def _settings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command an option for the setting of every method."""
    for setting in reversed(dict.fromkeys(each.setting for each in METHODS.values())):
        about = MEANINGS.get(setting) or ", ".join(each.name for each in METHODS.values() if each.setting == setting)
        command = click.option(f"--{setting}", callback=checked(number), metavar="NUMBER", help=about)(command)
    return command


@click.command(
    "train",
    epilog=examples(
        "bonlib train vbon --n 8 --profile quick",
        "bonlib train vbon --n 8 --model imdb-gpt2-tiny --data prompts.txt --count 64 --by imdb-sentiment-tiny",
        "bonlib train --sweep sentiment --profile laptop",
    ),
)
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option("--profile", default="quick")
@_settings
@click.option("--seed", callback=checked(whole, most=2**32 - 1), metavar="NUMBER", help="of training, 0 if not given")
@click.option("--set", "fields", multiple=True, metavar="NAME=VALUE", help=FIELD)
@click.option("--out", callback=folder, help="folder of the run, instead of one under _build/train")
@click.option("--sweep", type=click.Choice(SWEEPS), help="many runs, into data/results")
@click.option("--variant", help="of the sweep price: readable (a reference), few-prompts, many-prompts or few-draws")
@click.option("--model", metavar="NAME", help="one's own, in place of the course's; with --data and --by")
@click.option("--data", metavar="FILE", help="with prompts, or with responses and scores of the model as well")
@click.option("--by", metavar="WHAT", help="the reward: a classifier, an address, or FILE.py:FUNCTION")
@click.option(
    "--count", callback=checked(whole, least=2), metavar="NUMBER", help="fresh draws a prompt, not those of --data"
)
@click.option("--max-new-tokens", default="64", callback=checked(whole, least=1), metavar="NUMBER", help="of a draw")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object, for programs; with --model")
def train_command(
    methods: Sequence[str],
    profile: str,
    seed: int | None,
    fields: Sequence[str],
    out: Path | None,
    sweep: str | None,
    variant: str | None,
    model: str | None,
    data: str | None,
    by: str | None,
    count: int | None,
    max_new_tokens: int,
    as_json: bool,
    **values: float | None,
) -> int:
    """Train a policy, or a whole sweep; resumes.

    METHOD is a name from METHODS.md; a sweep takes several, or all of its own if there is none.
    """
    if model or data or by:
        if not (model and data and len(methods) == 1) or sweep:
            raise ValueError("--model, --data and one METHOD go together, without --sweep: see `bonlib train --help`")
        settings: dict[str, Any] = {name: it for name, it in {**values, "seed": seed}.items() if it is not None}
        settings |= assignments("--set", fields)
        return train_on(model, data, by, methods[0], count=count, max_new_tokens=max_new_tokens, settings=settings,
                        out=out, as_json=as_json)  # fmt: skip
    from bonlib.course import profiles
    from bonlib.course.experiments import exact_ends, exact_runs, grids, noise, sentiment
    from bonlib.course.experiments.summarisation import SummaryHarness
    from bonlib.course.experiments.summarisation import grid as tldr_grid
    from bonlib.training.trainer import DivergedError

    given = [f"--{name}" for name, value in {**values, "seed": seed}.items() if value is not None]
    if sweep and (given or fields or out):
        wrong = ", ".join(["--set", "--out", *(f"--{name}" for name in (*values, "seed"))])
        raise ValueError(f"a sweep has its own settings, seeds and folders: leave out {wrong}")
    if sweep == "exact":
        if methods:
            raise ValueError(f"method is {methods[0]!r}; the sweep exact trains them all: name none")
        exact_runs.run_all([*exact_runs.search(), *exact_runs.grid()])
        exact_runs.run_all(exact_runs.bond_grid(), table=exact_runs.BOND_TABLE)
        exact_ends.run_ends()
        noise.run_letters()
        return 0
    for method in methods:
        get_method(method)
    chosen = profiles.get_profile(profile)
    if variant is not None:
        if sweep != "price":
            raise ValueError("--variant is for --sweep price: leave it out")
        chosen = profiles.VARIANTS[one_of("variant", variant, profiles.VARIANTS)](chosen)
    harness = (SummaryHarness if sweep == "tldr" else sentiment.Harness)(chosen)
    if sweep:
        grids_of: dict[str, Callable[..., Sequence[sentiment.Run]]] = {
            "sentiment": grids.grid,
            "learning_rates": grids.rate_grid,
            "cdf": grids.cdf_grid,
            "budget": grids.budget_grid,
            "bond": grids.bond_grid,
            "noise": noise.noise_grid,
            "price": partial(grids.price_grid, variant=variant),
            "tldr": tldr_grid,
        }
        if not (runs := grids_of[sweep](harness.profile, methods)):
            raise ValueError(f"method is {methods[0]!r}; the sweep {sweep} has no runs of it")
        return 0 if harness.run_all(runs) else 1
    if len(methods) != 1:
        raise ValueError(f"name one method of {', '.join(METHODS)}, or a --sweep")
    setting = get_method(methods[0]).setting
    value, unused = values[setting], [name for name in given if name not in (f"--{setting}", "--seed")]
    if value is None:
        raise ValueError(f"the setting of {methods[0]} is {setting}: give --{setting}")
    if unused:
        raise ValueError(
            f"the setting of {methods[0]} is {setting}, not {unused[0]}: other fields of it are given by --set"
        )
    assigned = assignments("--set", fields)
    changes, options = (
        tuple(sorted((name, it) for name, it in assigned.items() if (name in sentiment.SETTABLE) == of_training))
        for of_training in (True, False)
    )
    run = sentiment.Run(methods[0], value, seed or 0, changes=changes, options=options)
    # All that can be wrong is found before a model is loaded or anything is drawn.
    _about(f"--{setting}", sentiment.Run(methods[0], value, 0).make)
    _about("--set", run.check_names)
    _about("--set has a value of the wrong kind", lambda: (run.make(), harness.settings(run)))
    harness.check(run)
    try:
        trained = harness.train(run, folder=out)
    except DivergedError as error:
        print(f"bonlib: {error}", file=sys.stderr)
        return 1
    if trained.main_process:
        for name, figure in harness.row(run, trained, harness.evaluate(trained.policy)).items():
            print(f"{name:15s} {figure:.4g}" if isinstance(figure, float) else f"{name:15s} {figure}")
        print(f"policy in {trained.folder / 'policy'}")
    return 0


def _about(beginning: str, check: Callable[[], Any]) -> None:
    """Make a check whose complaint begins with the option that it is about."""
    try:
        check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{beginning}: {error}") from error


@click.command("judge")
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option("--profile", default="laptop")
@click.option("--distribution", "distributions", multiple=True, help='"in" or "out"; both if not given')
@click.option("--temperature", "temperatures", type=float, multiple=True, help="all of the profile's if not given")
def judge_command(
    methods: tuple[str, ...], profile: str, distributions: tuple[str, ...], temperatures: tuple[float, ...]
) -> None:
    """Judge the policies of notebook 12, or those of the methods that are named; resumes."""
    from bonlib.course.experiments.summarisation import DISTRIBUTIONS, SummaryHarness
    from bonlib.course.profiles import get_profile

    harness = SummaryHarness(get_profile(profile))
    harness.judge_all(methods=methods, temperatures=temperatures, distributions=distributions or DISTRIBUTIONS)
